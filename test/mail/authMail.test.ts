import { afterAll, beforeAll, expect, test } from "bun:test";
import { resetUserPassword } from "../../src/db/credentials.ts";
import { notify } from "../../src/db/notify.ts";
import { listSessionAddresses } from "../../src/db/sessions.ts";
import { newId } from "../../src/lib/ids.ts";
import { announceNewDevice } from "../../src/services/knownDevices.ts";
import { deriveOneTimeToken, useOneTimeToken } from "../../src/services/oneTimeTokens.ts";
import { add, digestOf } from "../../src/services/throttle.ts";
import { call, makeAssistant, makeUser, openChat, type TestUser } from "../factories.ts";
import { startFakeSmtp, type FakeSmtp } from "../fakes/smtp.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

let smtp: FakeSmtp;
let reef: TestReef;
const tokens: string[] = [];
const NEW = "another correct horse";

beforeAll(async () => {
  smtp = await startFakeSmtp();
  reef = await startTestReef({ SMTP_URL: smtp.url, REVEAL_EMAIL_TAKEN: "false" });
});
afterAll(async () => {
  await reef.stop();
  await smtp.close();
});

const post = (path: string, body: unknown) => call(reef.url, "POST", `/api/auth/${path}`, body);
const reset = (token: string, new_password = NEW) => post("reset-password", { token, new_password });
const login = (user: TestUser, password: string, device_name?: string) =>
  post("login", { email: user.email, password, ...(device_name ? { device_name } : {}) });
const code = async (answer: ReturnType<typeof post>) => (await answer).body?.code ?? (await answer).status;
const mails = (user: TestUser, subject: RegExp) =>
  smtp.mails.filter((mail) => mail.to === user.email && subject.test(mail.subject));
const settled = () => until("nothing waits", async () => (await reef.sql`select 1 from outbox`).length === 0);
const forgetThrottles = async () => {
  const keys = await reef.deps.redis.keys(`${reef.env["REDIS_PREFIX"]}throttle:*`);
  if (keys.length > 0) await reef.deps.redis.del(keys.map((key) => key.slice(reef.env["REDIS_PREFIX"]!.length)));
};

/** The token of the user's `n`th mail (from 1) of a kind. */
async function tokenFrom(user: TestUser, subject: RegExp, n = 1): Promise<string> {
  const mail = await until(`mail ${n} is there`, () => mails(user, subject)[n - 1]);
  const token = /token=([\w-]+)/.exec(mail.text)?.[1] ?? expect.unreachable();
  expect(mail.html).toContain(`token=${token}"`);
  tokens.push(token);
  return token;
}
const VERIFY = /Confirm your address/;
const RESET = /Set a new password/;
async function forgot(user: TestUser, n = 1): Promise<string> {
  expect((await post("forgot-password", { email: user.email.toUpperCase() })).status).toBe(202);
  return tokenFrom(user, RESET, n);
}

test("sign-up mails a link that verifies the address, once", async () => {
  const user = await makeUser(reef);
  const token = await tokenFrom(user, VERIFY);
  expect((await post("verify-email", { token })).status).toBe(204);
  const [row] = await reef.sql`select email_verified from users where id = ${user.id}`;
  expect(row!["emailVerified"]).toBe(true);
  const again = await post("verify-email", { token });
  expect([again.status, again.body.code]).toEqual([400, "token_invalid"]);
  const [audit] =
    await reef.sql`select 1 from audit_log where subject_user_id = ${user.id} and action = 'email.verified'`;
  expect(audit).toBeDefined();
});

test("resend: a new link, the old one is dead; three an hour; nothing where it is verified", async () => {
  const user = await makeUser(reef);
  const first = await tokenFrom(user, VERIFY);
  const resend = async () => (await user.call("POST", "/api/auth/verify-email/resend")).status;
  expect(await resend()).toBe(202);
  const second = await tokenFrom(user, VERIFY, 2);
  expect(await code(post("verify-email", { token: first }))).toBe("token_invalid");
  for (let n = 0; n < 4; n++) expect(await resend()).toBe(202);
  await settled();
  // The one of the sign-up, three more; a superseded one may have been dropped before it was sent.
  expect(mails(user, VERIFY).length).toBeWithin(3, 5);
  expect(await code(post("verify-email", { token: second }))).toBe("token_invalid");
  expect(
    (await post("verify-email", { token: await tokenFrom(user, VERIFY, mails(user, VERIFY).length) })).status,
  ).toBe(204);
  await forgetThrottles();
  const before = mails(user, VERIFY).length;
  expect(await resend()).toBe(202);
  await settled();
  expect(mails(user, VERIFY).length).toBe(before);
});

test("a reset sets the password, ends every session, also on an open socket of another process, verifies, and tells", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const other = await startProcess(reef.env);
  const chat = await openChat(other, user.token, assistant.agent_id);
  const second = (await login(user, user.password, "phone")).body;
  expect((await reset(await forgot(user))).status).toBe(204);
  await until("the socket is closed", () => chat.closed);
  expect(chat.closed?.code).toBe(1008);
  expect((await user.call("GET", "/api/assistants")).body.code).toBe("session_revoked");
  for (const refresh_token of [user.refreshToken, second.refresh_token])
    expect(await code(post("refresh", { refresh_token }))).toBe("session_revoked");
  expect(await code(login(user, user.password))).toBe("invalid_credentials");
  expect((await login(user, NEW)).body.user.email_verified).toBe(true);
  await until("the owner is told", () => mails(user, /was changed/)[0]);
  const audits =
    await reef.sql`select action from audit_log where subject_user_id = ${user.id} and action like 'password%' order by at`;
  expect(audits.map((row) => row["action"])).toEqual(["password.reset_requested", "password.reset"]);
  await other.stop();
});

test("who has failed too often gets in at once after a reset", async () => {
  const user = await makeUser(reef);
  for (let n = 0; n < 10; n++) await login(user, "wrong");
  expect(await code(login(user, user.password))).toBe("too_many_attempts");
  expect((await reset(await forgot(user))).status).toBe(204);
  expect((await login(user, NEW)).status).toBe(200);
});

test("who is guessed at from everywhere gets in at once after a reset, though no device is known any more", async () => {
  const user = await makeUser(reef);
  const counter = { key: `throttle:account:${digestOf(user.email)}`, limit: 100, windowSeconds: 3600 };
  for (let n = 0; n < 100; n++) await add(reef.deps, counter, 1);
  expect((await reset(await forgot(user))).status).toBe(204);
  expect((await login(user, NEW)).status).toBe(200);
});

test("an account without a password (social sign-in) gets its first one", async () => {
  const user = await makeUser(reef);
  await reef.sql`update users set password_hash = null where id = ${user.id}`;
  expect((await reset(await forgot(user))).status).toBe(204);
  expect((await login(user, NEW)).status).toBe(200);
});

test("of parallel uses of one token exactly one works", async () => {
  const user = await makeUser(reef);
  const token = await forgot(user);
  const passwords = Array.from({ length: 6 }, (_, n) => `parallel password ${n}`);
  const answers = await Promise.all(passwords.map((password) => reset(token, password)));
  expect(answers.map((answer) => answer.status).sort((a, b) => a - b)).toEqual([204, 400, 400, 400, 400, 400]);
  const winner = answers.findIndex((answer) => answer.status === 204);
  expect((await login(user, passwords[winner]!)).status).toBe(200);
  const verify = await tokenFrom(user, VERIFY);
  const verified = await Promise.all(Array.from({ length: 6 }, () => post("verify-email", { token: verify })));
  expect(verified.filter((answer) => answer.status === 204).length).toBe(1);
});

test("a login that runs beside a reset leaves no session of the old password", async () => {
  for (let n = 0; n < 5; n++) {
    const user = await makeUser(reef);
    const token = await forgot(user);
    await Promise.all([reset(token), ...Array.from({ length: 4 }, () => login(user, user.password))]);
    const open = await reef.sql`select 1 from refresh_tokens where user_id = ${user.id} and revoked_at is null`;
    expect(open.length).toBe(0);
    await forgetThrottles();
  }
});

test("a change of the password beside a reset waits for it, and is one too late", async () => {
  const user = await makeUser(reef);
  const token = await forgot(user);
  const beside = await reef.sql.begin(async (sql) => {
    expect(await useOneTimeToken(reef.deps, sql, { token, kind: "reset_password" })).toBe(user.id);
    const changing = user.call("POST", "/api/user/password", { current_password: user.password, new_password: NEW });
    await until("the change waits", async () => {
      const waiting = await reef.sql`
        select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`;
      return waiting.length > 0;
    });
    expect(await resetUserPassword(sql, { userId: user.id, passwordHash: "another" })).toBe(true);
    return { changing };
  });
  expect(await code(beside.changing)).toBe("invalid_credentials");
});

test("reused, expired, superseded, foreign-kind, malformed and forged tokens are refused alike", async () => {
  const user = await makeUser(reef);
  const verify = await tokenFrom(user, VERIFY);
  const first = await forgot(user);
  const second = await forgot(user, 2);
  expect(await code(reset(first))).toBe("token_invalid");
  expect(await code(reset(verify))).toBe("token_invalid");
  expect(await code(post("verify-email", { token: second }))).toBe("token_invalid");
  const id = newId();
  for (const token of [
    "x",
    second.slice(0, -1),
    `${second}A`,
    `${second}=`,
    ` ${second}`,
    second.toLowerCase(),
    `${second.slice(0, -4)}AAAA`,
    deriveOneTimeToken(reef.deps, { id, kind: "reset_password" }),
    deriveOneTimeToken({ config: { ...reef.deps.config, JWT_SECRET: "x".repeat(32) } }, { id, kind: "reset_password" }),
    "A".repeat(64),
    "\u0000",
    "A".repeat(256),
  ])
    expect([token.length, await code(reset(token))]).toEqual([token.length, "token_invalid"]);
  for (const token of ["", "A".repeat(257)]) expect(await code(reset(token))).toBe("validation_failed");
  // None of this has used it up, and neither does a bad password.
  for (const [password, refusal] of [
    ["short", "validation_failed"],
    ["x".repeat(257), "validation_failed"],
    [user.email.toUpperCase(), "weak_password"],
  ] as const)
    expect(await code(reset(second, password))).toBe(refusal);
  expect((await reset(second, "x".repeat(256))).status).toBe(204);
  expect(await code(reset(second))).toBe("token_invalid");
  await forgetThrottles();
  const late = await forgot(user, 3);
  await reef.sql`update one_time_tokens set expires_at = now() where user_id = ${user.id}`;
  expect(await code(reset(late))).toBe("token_invalid");
});

test("how long links live: an hour for a password, a day for an address; at rest there are hashes only", async () => {
  const user = await makeUser(reef);
  const token = await forgot(user);
  const rows = await reef.sql`
    select kind, round(extract(epoch from expires_at - created_at))::int as seconds, row_to_json(t)::text as text
    from one_time_tokens t where user_id = ${user.id} order by kind`;
  expect(rows.map((row) => [row["kind"], row["seconds"]])).toEqual([
    ["reset_password", 3600],
    ["verify_email", 86_400],
  ]);
  for (const row of rows) expect(row["text"]).not.toContain(token);
});

test("forgot-password answers alike for known, unknown, suspended and flooded; a suspended account gets no mail, its token is dead", async () => {
  await forgetThrottles();
  const [known, suspended, flooded] = [await makeUser(reef), await makeUser(reef), await makeUser(reef)];
  const token = await forgot(suspended);
  await reef.sql`update users set status = 'suspended' where id = ${suspended.id}`;
  for (let n = 0; n < 4; n++) await post("forgot-password", { email: flooded.email });
  const answers = [];
  for (const email of [known.email, `${newId()}@example.org`, suspended.email, flooded.email])
    answers.push(await post("forgot-password", { email }));
  for (const { status, body } of answers) expect([status, body]).toEqual([202, answers[0]!.body]);
  await until("the known one is mailed", () => mails(known, RESET)[0]);
  await settled();
  expect([mails(suspended, RESET).length, await code(reset(token))]).toEqual([1, "token_invalid"]);
  expect(mails(flooded, RESET).length).toBeWithin(1, 4);
  const verify = await tokenFrom(suspended, VERIFY);
  expect(await code(post("verify-email", { token: verify }))).toBe("token_invalid");
  await forgetThrottles();
});

test("one address asks thirty times in a quarter of an hour, with Redis and without", async () => {
  for (const REDIS_URL of [reef.env["REDIS_URL"]!, "redis://127.0.0.1:1"]) {
    const other = await startProcess({ ...reef.env, REDIS_URL, REDIS_PREFIX: `${newId()}:` });
    const ask = () => call(other.url, "POST", "/api/auth/forgot-password", { email: `${newId()}@example.org` });
    const answers = await Promise.all(Array.from({ length: 32 }, ask));
    expect(answers.filter((answer) => answer.status === 429).length).toBe(2);
    const refused = answers.find((answer) => answer.status === 429)!;
    expect([refused.body.code, Number(refused.headers.get("retry-after")) > 800]).toEqual(["too_many_attempts", true]);
    await other.stop();
  }
});

test("a mail whose link is of no use any more is not sent", async () => {
  const silent = await startProcess({ ...reef.env, SMTP_URL: "", REDIS_PREFIX: `${newId()}:` });
  const user = await makeUser(reef);
  await tokenFrom(user, VERIFY);
  await settled();
  smtp.behave("later");
  await call(silent.url, "POST", "/api/auth/forgot-password", { email: user.email });
  await until("it is put back", async () => (await reef.sql`select 1 from outbox where attempts > 0`).length === 1);
  const [row] = await reef.sql`select row_to_json(o)::text as text from outbox o`;
  const [token] = await reef.sql<
    { id: string }[]
  >`select id from one_time_tokens where user_id = ${user.id} and kind = 'reset_password'`;
  // The outbox has the token's id only: the link is made when it is sent.
  expect(row!["text"]).toContain(token!.id);
  expect(row!["text"]).not.toContain(deriveOneTimeToken(reef.deps, { id: token!.id, kind: "reset_password" }));
  await reef.sql`update one_time_tokens set used_at = now() where id = ${token!.id}`;
  smtp.behave("take");
  await reef.sql`update outbox set next_attempt_at = now()`;
  await notify(reef.sql, "mail", "");
  await settled();
  expect(mails(user, RESET)).toEqual([]);
  await silent.stop();
});

test("a sign-up with a taken address tells its owner, once a day, and changes nothing", async () => {
  const user = await makeUser(reef);
  for (const password of ["somebody else's", "and once more"]) {
    const answer = await post("signup", {
      email: user.email.toUpperCase(),
      password,
      name: "Evil http://evil.example",
    });
    expect([answer.status, answer.body]).toEqual([202, { message: "Check your mail to go on." }]);
  }
  const mail = await until("the owner is told", () => mails(user, /have an account already/)[0]);
  expect(mail.raw).not.toContain("evil");
  await settled();
  expect(mails(user, /have an account already/).length).toBe(1);
  expect((await login(user, user.password)).status).toBe(200);
});

test("a stranger's name is not repeated to the owner of an address that nobody has verified", async () => {
  const email = `${newId()}@example.org`;
  await post("signup", { email, password: "long enough", name: "You won" });
  const mail = await until("it is there", () => smtp.to(email, VERIFY));
  expect(mail.text).toStartWith("Hello,");
  expect(mail.raw).not.toContain("You won");
});

test("a sign-in from a device that is not known is told; the first, a known name, a known network are not", async () => {
  const user = await makeUser(reef);
  const told = () => mails(user, /New sign-in/);
  await reef.sql`update users set timezone = 'Asia/Tokyo', name = 'Ada', email_verified = true where id = ${user.id}`;
  await login(user, user.password, "phone");
  await reef.sql`update refresh_tokens set ip = '2001:db8:0:1::1' where user_id = ${user.id}`;
  await login(user, user.password, "phone");
  await settled();
  expect(told()).toEqual([]);
  await reef.sql`update refresh_tokens set ip = '2001:db8:0:1::1', revoked_at = now() where user_id = ${user.id}`;
  await login(user, user.password, "<b>tablet</b>");
  const mail = await until("the owner is told", () => told()[0]);
  expect(mail.text).toStartWith("Hello Ada,");
  expect(mail.text).toContain("Device:  <b>tablet</b>\nAddress: 127.0.0.x\nTime:");
  expect(mail.text).toContain("(Asia/Tokyo)");
  expect(mail.html).toContain("&#60;b&#62;tablet");
  const from = (deviceName: string | null, ip: string | null) =>
    reef.sql.begin((sql) => announceNewDevice(sql, { userId: user.id, deviceName, ip }));
  for (const [name, ip] of [
    [null, "2001:db8:0:1:ffff::2"],
    ["phone", "203.0.113.9"],
    [null, "127.0.0.1"],
  ] as const)
    await from(name, ip);
  await settled();
  expect(told().length).toBe(1);
  for (const [name, ip] of [
    [null, "2001:db8:0:2::1"],
    ["Phone", "203.0.113.9"],
    [null, null],
  ] as const)
    await from(name, ip);
  await until("three more are told", () => told().length === 4);
  const fresh = await reef.sql.begin(async (sql) => {
    const id = newId();
    await sql`insert into users (id, email) values (${id}, ${`${id}@example.org`})`;
    await announceNewDevice(sql, { userId: id, deviceName: "new", ip: "203.0.113.9" });
    return id;
  });
  await settled();
  expect(smtp.to(`${fresh}@example.org`)).toBeUndefined();
});

test("a device that was signed out from another one is not known any more", async () => {
  const user = await makeUser(reef);
  await reef.sql`update refresh_tokens set ip = '203.0.113.1' where user_id = ${user.id}`;
  const stolen = (await login(user, user.password, "thief")).body.access_token;
  const [device] = (await call(reef.url, "GET", "/api/auth/sessions", undefined, stolen)).body;
  await until("the owner is told", () => mails(user, /New sign-in/)[0]);
  expect((await user.call("DELETE", `/api/auth/sessions/${device.id}`)).status).toBe(204);
  expect(await listSessionAddresses(reef.sql, user.id)).toEqual(["203.0.113.1"]);
  await login(user, user.password, "thief");
  await until("the owner is told again", () => mails(user, /New sign-in/)[1]);
});

test("no token and no address in any log line", async () => {
  await settled();
  expect(tokens.length).toBeGreaterThan(10);
  const logs = reef.logs.join("");
  expect(reef.logs.length).toBeGreaterThan(100);
  expect(tokens.filter((token) => logs.includes(token))).toEqual([]);
  expect(reef.logs.filter((line) => /@example\.org|token=/.test(line))).toEqual([]);
});
