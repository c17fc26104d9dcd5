import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createMailer, smtpOptions } from "../../src/clients/mailer.ts";
import { loadConfig } from "../../src/config.ts";
import { notify } from "../../src/db/notify.ts";
import { createLog } from "../../src/lib/log.ts";
import { sendLastMail, sendMail } from "../../src/services/mail.ts";
import { call, makeUser, type TestUser } from "../factories.ts";
import { startFakeSmtp, type FakeSmtp } from "../fakes/smtp.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

let smtp: FakeSmtp;
let reef: TestReef;
const folder = mkdtempSync(join(tmpdir(), "reef-mail-"));

beforeAll(async () => {
  smtp = await startFakeSmtp();
  reef = await startTestReef({ SMTP_URL: smtp.url, MAIL_FROM: "Reef <hello@reef.example>" });
});
afterEach(() => smtp.behave("take"));
afterAll(async () => {
  await reef.stop();
  await smtp.close();
  rmSync(folder, { recursive: true, force: true });
});

const at = "2026-11-24T12:00:00.000Z";
const send = (user: TestUser) => sendMail(reef.sql, user.id, { template: "password-changed", params: { at } });
/** A user whose verification mail has arrived, so that the outbox has nothing of theirs. */
async function makeMailedUser(): Promise<TestUser> {
  const user = await makeUser(reef);
  await until("the first mail is there and its row is gone", async () => (await rowsOf(user)).length === 0);
  return user;
}
const rowsOf = (user: TestUser) =>
  reef.sql<{ id: string; attempts: number; lastError: string | null; deadAt: Date | null; waitSeconds: number }[]>`
    select id, attempts, last_error, dead_at, extract(epoch from next_attempt_at - now())::float8 as wait_seconds
    from outbox where user_id = ${user.id}`;
const mailsTo = (user: TestUser) =>
  smtp.mails.filter((mail) => mail.to === user.email && /password/.test(mail.subject));
const hurry = async (user: TestUser) => {
  await reef.sql`update outbox set next_attempt_at = now() where user_id = ${user.id}`;
  await notify(reef.sql, "mail", "");
};

test("a mail goes out when its transaction commits, in text and HTML, and its row is gone; rolled back, it never does", async () => {
  const user = await makeMailedUser();
  const failed = reef.sql.begin(async (sql) => {
    await sendMail(sql, user.id, { template: "password-changed", params: { at } });
    throw new Error("rolled back");
  });
  expect(failed).rejects.toThrow("rolled back");
  await send(user);
  const mail = await until("the mail is there", () => mailsTo(user)[0]);
  expect(mail.raw).toContain("From: Reef <hello@reef.example>");
  expect(mail.raw).toContain("Auto-Submitted: auto-generated");
  expect(mail.messageId).toMatch(/^<[0-9a-f-]{36}@reef\.example>$/);
  for (const part of [mail.text, mail.html]) {
    expect(part).toContain("24 November 2026 at 12:00 (UTC)");
    expect(part).toContain("http://localhost:3000/security");
  }
  await until("its row is gone", async () => (await rowsOf(user)).length === 0);
  expect(smtp.to(user.email, /deleted/)).toBeUndefined();
});

test("several processes deliver each of many mails once", async () => {
  const users = await Promise.all(Array.from({ length: 5 }, makeMailedUser));
  const others = await Promise.all([startProcess(reef.env), startProcess(reef.env)]);
  await Promise.all(users.flatMap((user) => Array.from({ length: 8 }, () => send(user))));
  await until("nothing waits", async () => (await reef.sql`select 1 from outbox`).length === 0);
  const ids = users.flatMap((user) => mailsTo(user).map((mail) => mail.messageId));
  expect([ids.length, new Set(ids).size]).toEqual([40, 40]);
  await Promise.all(others.map((other) => other.stop()));
});

for (const behaviour of ["later", "drop"] as const) {
  test(`${behaviour}: the mail is tried again later, under the same name`, async () => {
    const user = await makeMailedUser();
    smtp.behave(behaviour);
    await send(user);
    const row = await until("it is put back", async () => (await rowsOf(user)).find((found) => found.lastError));
    expect([row.attempts, row.deadAt]).toEqual([1, null]);
    expect(row.waitSeconds).toBeWithin(1, 5.1);
    expect(row.lastError).not.toContain("@");
    smtp.behave("take");
    await hurry(user);
    const mail = await until("it is there", () => mailsTo(user)[0]);
    expect(mail.messageId).toContain(row.id);
  });
}

test("the server takes it and the connection breaks before it says so: again, under the same name", async () => {
  const user = await makeMailedUser();
  smtp.behave("takeAndDrop");
  await send(user);
  await until("it is put back", async () => (await rowsOf(user)).some((row) => row.lastError));
  smtp.behave("take");
  await hurry(user);
  await until("its row is gone", async () => (await rowsOf(user)).length === 0);
  const ids = mailsTo(user).map((mail) => mail.messageId);
  expect(ids.length).toBeGreaterThan(1);
  expect(new Set(ids).size).toBe(1);
});

test("a process killed between sending and deleting makes the mail come twice, under one Message-ID", async () => {
  const own = await startFakeSmtp();
  const silent = await startTestReef();
  const user = await makeUser(silent);
  own.behave("takeAndHang");
  const env = { ...silent.env, SMTP_URL: own.url };
  const child = Bun.spawn([process.execPath, "--no-env-file", "src/main.ts"], {
    cwd: join(import.meta.dir, "../.."),
    env,
    stdout: "ignore",
  });
  await until("the server has it", () => own.to(user.email), 30_000);
  child.kill("SIGKILL");
  await child.exited;
  own.behave("take");
  const next = await startProcess(env);
  // Nobody else touches it while the dead one may still be sending.
  const other = await makeUser(silent);
  await notify(silent.sql, "mail", "");
  await until("another's is there", () => own.to(other.email));
  const left = await silent.sql`
    select attempts, next_attempt_at > now() as held from outbox where user_id = ${user.id}`;
  expect([...left]).toEqual([{ attempts: 1, held: true }]);
  await silent.sql`update outbox set next_attempt_at = now()`;
  await notify(silent.sql, "mail", "");
  await until("nothing waits", async () => (await silent.sql`select 1 from outbox`).length === 0);
  const ids = own.mails.filter((mail) => mail.to === user.email).map((mail) => mail.messageId);
  expect([ids.length, new Set(ids).size]).toEqual([2, 1]);
  await next.stop();
  await silent.stop();
  await own.close();
});

test("an address that is refused for good is dead at once; it stays for the operator, and its reason tells no address", async () => {
  const user = await makeMailedUser();
  smtp.behave("refuse");
  await send(user);
  const row = await until("it is dead", async () => (await rowsOf(user)).find((found) => found.deadAt));
  expect([row.attempts, row.lastError]).toEqual([1, "EENVELOPE 550 5.1.1 RCPT TO"]);
  expect(reef.logs.join("")).toContain("mail given up");
  const metrics = await (await fetch(`${reef.url}/metrics`)).text();
  expect(metrics).toMatch(/reef_mails\{state="dead"\} [1-9]/);
  expect(metrics).toMatch(/reef_mails\{state="waiting"\} \d/);
  smtp.behave("take");
  await hurry(user);
  await send(user);
  await until("the next one is there and its row is gone", async () => {
    return mailsTo(user).length === 1 && (await rowsOf(user)).length === 1;
  });
  expect((await rowsOf(user)).map((left) => left.id)).toEqual([row.id]);
});

test("what could not be sent for a day is dead", async () => {
  const user = await makeMailedUser();
  smtp.behave("later");
  await send(user);
  await until("it is put back", async () => (await rowsOf(user)).some((row) => row.lastError));
  await reef.sql`update outbox set created_at = now() - interval '25 hours' where user_id = ${user.id}`;
  await hurry(user);
  await until("it is dead", async () => (await rowsOf(user)).some((row) => row.deadAt));
});

test("a mail server that is away: mails wait, and go out when it is back", async () => {
  const own = await startFakeSmtp();
  const other = await startTestReef({ SMTP_URL: own.url });
  await own.close();
  const user = await makeUser(other);
  const waiting = () => other.sql`select 1 from outbox where last_error is not null and dead_at is null`;
  await until("it is put back", async () => (await waiting()).length === 1);
  const back = await startFakeSmtp({ port: Number(new URL(own.url).port) });
  await other.sql`update outbox set next_attempt_at = now()`;
  await notify(other.sql, "mail", "");
  await until("it is there", () => back.to(user.email, /Confirm/));
  await other.stop();
  await back.close();
});

test("a mail server that hangs keeps neither the other mails' senders nor the end of the process", async () => {
  const own = await startFakeSmtp();
  own.behave("hang");
  const other = await startTestReef({ SMTP_URL: own.url });
  for (let n = 0; n < 6; n++) await makeUser(other);
  await until("as many as may are under way", () => own.begun() === 4);
  const another = await startProcess({ ...reef.env, DATABASE_URL: other.env["DATABASE_URL"]! });
  await until(
    "the rest is sent by another process",
    () => smtp.mails.filter(({ subject }) => /Confirm/.test(subject)).length >= 2,
  );
  const began = performance.now();
  await other.stopProcess();
  expect(performance.now() - began).toBeLessThan(8_000);
  expect(other.logs.join("")).not.toContain("did not stop in time");
  await until(
    "what it held goes out elsewhere",
    async () => (await another.deps.sql`select 1 from outbox`).length === 0,
  );
  await another.stop();
  await other.stop();
  await own.close();
});

test("a restart sends what was left", async () => {
  const own = await startFakeSmtp();
  const silent = await startTestReef();
  const user = await makeUser(silent);
  expect((await silent.sql`select attempts from outbox`).map((row) => row["attempts"])).toEqual([0]);
  await silent.stopProcess();
  const next = await startProcess({ ...silent.env, SMTP_URL: own.url });
  await until("it is there", () => own.to(user.email, /Confirm/));
  await next.stop();
  await silent.stop();
  await own.close();
});

test("the last mail does not go with its user's rows", async () => {
  const user = await makeMailedUser();
  smtp.behave("later");
  await reef.sql.begin(async (sql) => {
    await send(user);
    await sendLastMail(sql, user.email, { template: "deletion-finished", params: { at } });
    await sql`delete from users where id = ${user.id}`;
  });
  smtp.behave("take");
  await reef.sql`update outbox set next_attempt_at = now()`;
  await notify(reef.sql, "mail", "");
  await until("it is there", () => smtp.to(user.email, /is deleted/));
  expect(mailsTo(user)).toEqual([]);
});

test("a last mail that is given up keeps no address", async () => {
  const user = await makeMailedUser();
  smtp.behave("refuse");
  await sendLastMail(reef.sql, user.email, { template: "deletion-finished", params: { at } });
  const dead = await until("it is dead", async () => {
    const rows = await reef.sql`select recipient from outbox where user_id is null and dead_at is not null`;
    return rows[0];
  });
  expect(dead["recipient"]).toBe("");
});

test("without a mail server mails are readable files, once each, for their owner's eyes", async () => {
  const dir = join(folder, "files");
  const other = await startTestReef({ MAIL_DIR: dir, APP_URL: "https://app.example.org/" });
  const user = await makeUser(other);
  await until("its row is gone", async () => (await other.sql`select 1 from outbox`).length === 0);
  const files = readdirSync(dir).sort();
  expect(files.map((name) => name.slice(36))).toEqual(["-verify-email.html", "-verify-email.txt"]);
  const text = readFileSync(join(dir, files[1]!), "utf8");
  expect(text).toContain(`To: ${user.email}`);
  const token = /https:\/\/app\.example\.org\/verify-email\?token=(\S+)/.exec(text)?.[1];
  expect((await call(other.url, "POST", "/api/auth/verify-email", { token })).status).toBe(204);
  expect([statSync(dir).mode & 0o777, statSync(join(dir, files[1]!)).mode & 0o777]).toEqual([0o700, 0o600]);
  expect(other.logs.join("")).not.toContain(token!);
  await other.stop();
});

test("without a mail server and a folder nothing is sent; production says so loudly, and never what a mail holds", async () => {
  const lines: string[] = [];
  const log = createLog("info", { write: (line: string) => void lines.push(line) });
  const mailer = (env: Record<string, string>) => createMailer(loadConfig({ ...reef.env, SMTP_URL: "", ...env }), log);
  const mail = {
    id: "i",
    template: "verify-email",
    recipient: "a@b.example",
    subject: "s",
    text: "http://localhost/x",
    html: "h",
    createdAt: new Date(),
  };
  expect(mailer({ NODE_ENV: "development" })).toBeNull();
  expect(lines).toEqual([]);
  expect(mailer({ NODE_ENV: "production" })).toBeNull();
  expect(lines.length).toBe(1);
  expect(lines[0]).toContain("MAILS ARE NOT SENT");
  await mailer({ NODE_ENV: "production", MAIL_DIR: join(folder, "production") })!.send(
    mail,
    new AbortController().signal,
  );
  expect(existsSync(join(folder, "production", "i-verify-email.txt"))).toBe(true);
  for (const hidden of ["http://localhost/x", "a@b.example"]) expect(lines.join("")).not.toContain(hidden);
});

test("smtps is TLS; a certificate that nobody signed is refused; a server without STARTTLS is, where it is a must", async () => {
  const own = await startFakeSmtp({ secure: true });
  const log = createLog("silent");
  const mail = {
    id: crypto.randomUUID(),
    template: "verify-email",
    recipient: "tls@b.example",
    subject: "s",
    text: "t",
    html: "h",
    createdAt: new Date(),
  };
  const sendBy = async (url: string) => {
    const mailer = createMailer(loadConfig({ ...reef.env, SMTP_URL: url }), log)!;
    const outcome = await mailer.send(mail, new AbortController().signal).then(
      () => "sent",
      (error: Error) => error.message,
    );
    mailer.close();
    return outcome;
  };
  expect(await sendBy(own.url)).toContain("not taken");
  expect(await sendBy(`${own.url}?tls.rejectUnauthorized=false`)).toBe("sent");
  expect(await sendBy(`${smtp.url}?requireTLS=true`)).toContain("ETLS");
  expect([own.to("tls@b.example")?.messageId, smtp.to("tls@b.example")]).toEqual([
    `<${mail.id}@reef.example>`,
    undefined,
  ]);
  await own.close();
});

test("a password goes to a mail server in the clear only on this machine, or when the URL asks for it", () => {
  const required = (url: string) => (smtpOptions(url) as { requireTLS?: boolean }).requireTLS ?? false;
  expect(required("smtp://user:secret@smtp.example.com")).toBe(true);
  for (const url of [
    "smtp://user:secret@127.0.0.1:25",
    "smtp://smtp.example.com",
    "smtps://user:secret@smtp.example.com",
    "smtp://user:secret@smtp.example.com?ignoreTLS=true",
  ])
    expect(required(url)).toBe(false);
});

test("no log line has an address", () => {
  expect(reef.logs.length).toBeGreaterThan(50);
  expect(reef.logs.filter((line) => /@example\.org/.test(line))).toEqual([]);
});
