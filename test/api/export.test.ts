import { afterAll, beforeAll, expect, spyOn, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { linkSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeAssistant, makeUser, type Json, type TestUser } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";
import { fill, unpack, type Unpacked } from "./archives.ts";

// Much is written and read here; on a busy machine that takes its time.
let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

const get = (user: TestUser) =>
  fetch(`${reef.url}/api/user/export`, { headers: { authorization: `Bearer ${user.token}` } });
const unlimited = (user: TestUser) => reef.sql`delete from exports where user_id = ${user.id}`;

async function exported(user: TestUser): Promise<{ bytes: Buffer; files: Unpacked }> {
  const response = await get(user);
  expect(response.status).toBe(200);
  const bytes = Buffer.from(await response.arrayBuffer());
  return { bytes, files: await unpack(bytes) };
}

const workspaceOf = (assistant: Json) => join(reef.dir, "workspaces", assistant.agent_id);
const folderOf = (files: Unpacked, assistant: Json) =>
  [...files.keys()]
    .find((path) => path.endsWith(`${assistant.id.slice(-8)}/assistant.json`))!
    .replace("/assistant.json", "");
const textOf = (files: Unpacked, path: string) => files.get(path)!.content.toString();
const jsonOf = (files: Unpacked, path: string) => JSON.parse(textOf(files, path));

async function awake(user: TestUser, body: object = {}): Promise<Json> {
  const assistant = await makeAssistant(user, body);
  await until(
    "it is awake",
    async () => (await user.call("GET", `/api/assistants/${assistant.id}`)).body.state === "awake",
  );
  return assistant;
}

async function talk(user: TestUser, assistant: Json, content: string): Promise<void> {
  const path = `/api/assistants/${assistant.id}`;
  const before = (await user.call("GET", path)).body.message_count;
  await user.call("POST", `${path}/messages`, { content, client_id: crypto.randomUUID() });
  await until("it has answered", async () => (await user.call("GET", path)).body.message_count === before + 2);
}

test("everything of a person, and nothing of another", async () => {
  const user = await makeUser(reef);
  const other = await makeUser(reef);
  await user.call("PUT", "/api/user/profile", { name: "Zoë", timezone: "Asia/Tokyo" });
  const assistant = await awake(user, { display_name: "Coral" });
  const theirs = await awake(other, { display_name: "Theirs" });
  await talk(user, assistant, "**You**, 12:00\n\nremember the harbour");
  await talk(other, theirs, "the neighbour's phrase");
  writeFileSync(join(workspaceOf(assistant), "MEMORY.md"), "likes the harbour");
  await reef.sql`
    insert into identities (provider, subject, user_id, email, provider_token)
    values ('apple', 'apple-subject', ${user.id}, 'relay@example.org', ${Buffer.from("planted-provider-token")})`;
  await reef.sql`
    insert into outbox (id, user_id, template, recipient) values (${crypto.randomUUID()}, ${user.id}, 'verify-email', ${user.email})`;
  await reef.sql`
    insert into audit_log (id, actor, action, subject_user_id, ip, details) values (${crypto.randomUUID()}, 'operator:margaret',
      'account.restored', ${user.id}, '198.51.100.200', ${reef.sql.json({ reason: "bob@example.net complained" })})`;
  const response = await get(user);
  expect(response.headers.get("content-type")).toBe("application/zip");
  expect(response.headers.get("content-disposition")).toMatch(
    /^attachment; filename="reef-export-\d{4}-\d\d-\d\d\.zip"$/,
  );
  expect(response.headers.get("cache-control")).toBe("no-store");
  const files = await unpack(Buffer.from(await response.arrayBuffer()));
  const folder = folderOf(files, assistant);
  expect(folder).toBe(`assistants/Coral-${assistant.id.slice(-8)}`);
  const notes = ["AGENTS.md", "IDENTITY.md", "MEMORY.md", "SOUL.md", "USER.md"].map(
    (name) => `${folder}/workspace/${name}`,
  );
  expect([...files.keys()].filter((path) => !path.startsWith(`${folder}/workspace/`)).sort()).toEqual(
    [
      "README.txt",
      ...["account", "audit", "mails", "sessions", "usage"].map((name) => `${name}.json`),
      ...["assistant.json", "conversation.jsonl", "conversation.md"].map((name) => `${folder}/${name}`),
    ].sort(),
  );
  expect([...files.keys()]).toEqual(expect.arrayContaining(notes));
  expect(textOf(files, `${folder}/workspace/MEMORY.md`)).toBe("likes the harbour");
  const account = jsonOf(files, "account.json");
  expect(account).toMatchObject({ email: user.email, name: "Zoë", timezone: "Asia/Tokyo", plan: "free" });
  expect(account.linked_accounts).toEqual([
    { provider: "apple", subject: "apple-subject", email: "relay@example.org", created_at: expect.any(String) },
  ]);
  expect(jsonOf(files, "sessions.json").sessions.length).toBe(1);
  const usage = jsonOf(files, "usage.json");
  expect([usage.days.length, usage.days[0].text_messages]).toEqual([1, 1]);
  expect(usage.ledger).toEqual([
    expect.objectContaining({
      kind: "text_messages",
      amount: 1,
      status: "committed",
      plan: "free",
      model: "openai-custom/gpt-5-nano",
      limit_then: 50,
    }),
  ]);
  const acts = jsonOf(files, "audit.json").events.map(({ action, actor }: Json) => `${actor} ${action}`);
  expect(acts).toEqual(["you account.signup", "operator account.restored", "you account.exported"]);
  expect(jsonOf(files, "mails.json").waiting.map(({ template }: Json) => template)).toEqual([
    "verify-email",
    "verify-email",
  ]);
  const lines = textOf(files, `${folder}/conversation.jsonl`)
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(lines.map(({ seq, role }) => `${seq} ${role}`)).toEqual(["1 user", "2 assistant"]);
  expect([lines[0].content, lines[0].turn.status, lines[1].turn]).toEqual([
    "**You**, 12:00\n\nremember the harbour",
    "done",
    null,
  ]);
  const day = new Intl.DateTimeFormat("en-GB", {
    timeZone: "Asia/Tokyo",
    day: "numeric",
    month: "long",
    year: "numeric",
  });
  const transcript = textOf(files, `${folder}/conversation.md`);
  expect(transcript).toContain("# Coral\n");
  expect(transcript).toMatch(new RegExp(`## \\w+day, ${day.format(new Date(lines[0].timestamp))}\n`));
  expect(transcript).toContain("> **You**, 12:00\n>\n> remember the harbour\n");
  expect(transcript.match(/^\*\*You\*\*/gm)?.length).toBe(1);
  const all = [...files].map(([path, { content }]) => path + content.toString("latin1")).join("\n");
  for (const secret of [
    "argon2",
    "planted-provider-token",
    user.refreshToken,
    other.id,
    other.email,
    "neighbour",
    theirs.agent_id,
    "margaret",
    "198.51.100.200",
    "bob@example.net",
  ])
    expect([secret, all.includes(secret)]).toEqual([secret, false]);
});

test("links and second names planted in a workspace lead nowhere; what was left out is told", async () => {
  const user = await makeUser(reef);
  const neighbour = await makeUser(reef);
  const [assistant, theirs] = [await awake(user), await awake(neighbour)];
  const workspace = workspaceOf(assistant);
  writeFileSync(join(workspaceOf(theirs), "MEMORY.md"), "the neighbour's secret");
  symlinkSync("/etc/passwd", join(workspace, "passwd.md"));
  symlinkSync(workspaceOf(theirs), join(workspace, "neighbour"));
  linkSync(join(workspaceOf(theirs), "MEMORY.md"), join(workspace, "second.md"));
  mkdirSync(join(workspace, "notes"));
  writeFileSync(join(workspace, "notes", "trip.md"), "by train");
  const { files } = await exported(user);
  const folder = folderOf(files, assistant);
  expect(textOf(files, `${folder}/workspace/notes/trip.md`)).toBe("by train");
  expect(textOf(files, `${folder}/left-out.txt`).trimEnd().split("\n").sort()).toEqual([
    "workspace/neighbour: not a file",
    "workspace/passwd.md: not a file",
    "workspace/second.md: has a second name elsewhere",
  ]);
  const all = [...files.values()].map(({ content }) => content.toString("latin1")).join("\n");
  expect(all).not.toContain("neighbour's secret");
  expect(all).not.toContain("root:x:0");
});

test("hostile names: every archive program unpacks them, inside the folder", async () => {
  const user = await makeUser(reef);
  await reef.sql`insert into subscriptions (user_id, plan) values (${user.id}, 'premium')`;
  const names = [
    "../../../tmp/out",
    "..",
    "/etc/cron.d/x",
    "C:\\windows",
    "CON",
    "Twin",
    "Twin",
    "🐚👩‍👩‍👧",
    "عائلة\u202egpj",
    "é".repeat(60),
    "语".repeat(60),
    'a/b\\c:d|e?f*g"h<i>',
    "tab\there",
    "end. ",
  ];
  const made: Json[] = [];
  for (const display_name of names) {
    const answer = await user.call("POST", "/api/assistants", { display_name });
    expect([display_name, answer.status]).toEqual([display_name, 201]);
    made.push(answer.body);
  }
  await until(
    "one is awake",
    async () => (await user.call("GET", `/api/assistants/${made[0].id}`)).body.state === "awake",
  );
  const workspace = workspaceOf(made[0]);
  for (const name of [
    "a\\..\\..\\b",
    "nul.txt",
    "x".repeat(255),
    "Notes.md",
    "notes.md",
    "new\nline",
    "…",
    "...",
    "🐚",
  ])
    writeFileSync(join(workspace, name), name);
  // Two that read alike as text.
  for (const byte of [0xfe, 0xfd])
    writeFileSync(Buffer.concat([Buffer.from(`${workspace}/`), Buffer.from([0xff, byte])]), `bytes ${byte}`);
  const { bytes, files } = await exported(user);
  const folders = new Set([...files.keys()].filter((path) => path.endsWith("/assistant.json")));
  expect(folders.size).toBe(names.length);
  for (const path of files.keys()) {
    expect(path).not.toMatch(/(^|\/)\.*(\/|$)|\\|[\p{Cc}\u202e]|^\//u);
    for (const segment of path.split("/")) expect(Buffer.byteLength(segment)).toBeLessThanOrEqual(140);
  }
  expect(new Set([...files.keys()].map((path) => path.toLowerCase())).size).toBe(files.size);
  const contents = [...files]
    .filter(([path]) => path.includes("/workspace/"))
    .map(([, { content }]) => content.toString());
  expect(contents).toEqual(
    expect.arrayContaining(["Notes.md", "notes.md", "...", "bytes 254", "bytes 253", "a\\..\\..\\b"]),
  );
  const folder = mkdtempSync(join(tmpdir(), "reef-zip-"));
  try {
    const path = join(folder, "a.zip");
    writeFileSync(path, bytes);
    const program = "import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1])\nprint(z.testzip(), len(z.namelist()))";
    expect(execFileSync("python3", ["-c", program, path]).toString().trim()).toBe(`None ${files.size}`);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("a sleeper, a paused one and one that never woke are exported; a deleted one is not", async () => {
  const user = await makeUser(reef);
  await reef.sql`insert into subscriptions (user_id, plan) values (${user.id}, 'pro')`;
  const paused = await awake(user, { display_name: "Paused" });
  const deleted = await awake(user, { display_name: "Deleted" });
  await talk(user, deleted, "a phrase to be gone");
  await user.call("POST", `/api/assistants/${paused.id}/pause`);
  await until(
    "it sleeps",
    async () => (await user.call("GET", `/api/assistants/${paused.id}`)).body.state === "asleep",
  );
  // Deleted, not yet purged: as right after the commit.
  await reef.sql`update assistants set status = 'deleted' where id = ${deleted.id}`;
  const never = crypto.randomUUID();
  await reef.sql`
    insert into assistants (id, user_id, gateway_id, agent_id, voice, model, last_used_at)
    select ${never}, user_id, gateway_id, ${`agent_${never.slice(0, 8)}`}, voice, model, '2020-01-01' from assistants where id = ${paused.id}`;
  const { files } = await exported(user);
  expect(textOf(files, `${folderOf(files, paused)}/workspace/SOUL.md`)).toContain("# Soul");
  expect(jsonOf(files, `${folderOf(files, paused)}/assistant.json`).status).toBe("paused");
  expect(folderOf(files, { id: never })).toBe(`assistants/Assistant-${never.slice(-8)}`);
  expect(
    [...files].some(([path, { content }]) => path.includes("Deleted") || content.includes("phrase to be gone")),
  ).toBe(false);
});

test("one at a time, five an hour, each audited; HEAD begins none", async () => {
  const user = await makeUser(reef);
  await fill(reef.sql, user, await makeAssistant(user), 600, 4_000);
  for (let i = 0; i < 3; i++) {
    const head = await fetch(`${reef.url}/api/user/export`, {
      method: "HEAD",
      headers: { authorization: `Bearer ${user.token}` },
    });
    expect([head.status, head.headers.get("content-type")]).toEqual([200, "application/zip"]);
  }
  const answers = await Promise.all(Array.from({ length: 6 }, () => get(user)));
  const refused = answers.filter(({ status }) => status === 409);
  expect([answers.filter(({ status }) => status === 200).length, refused.length]).toEqual([1, 5]);
  expect(refused[0]!.headers.get("retry-after")).toBe("30");
  expect(await refused[0]!.json()).toMatchObject({ code: "export_running", retry_after: 30 });
  await answers.find(({ status }) => status === 200)!.arrayBuffer();
  for (let i = 0; i < 4; i++) {
    await until("the one before has ended", () => isFree(user));
    await exported(user);
  }
  await until("the one before has ended", () => isFree(user));
  const over = await get(user);
  const body: Json = await over.json();
  expect([over.status, body.code]).toEqual([429, "too_many_attempts"]);
  expect(body.retry_after).toBeWithin(3_000, 3_601);
  expect(
    (await reef.sql`select 1 from audit_log where subject_user_id = ${user.id} and action = 'account.exported'`).length,
  ).toBe(5);
  await reef.sql`update exports set started_at = started_at - interval '1 hour' where user_id = ${user.id}`;
  await exported(user);
  await until(
    "the hour's rows alone are kept",
    async () => (await reef.sql`select 1 from exports where user_id = ${user.id}`).length === 1,
  );
});

const isFree = async (user: TestUser) =>
  (await reef.sql`select 1 from exports where user_id = ${user.id} and lease_until > now()`).length === 0;

test("an export whose process died is over when its lease is", async () => {
  const user = await makeUser(reef);
  const id = crypto.randomUUID();
  await reef.sql`insert into exports (id, user_id, lease_until) values (${id}, ${user.id}, now() + interval '30 seconds')`;
  expect((await get(user)).status).toBe(409);
  await reef.sql`update exports set lease_until = now() where id = ${id}`;
  await exported(user);
});

/** Asks over a bare socket and reads the first bytes, then no more. */
async function begin(user: TestUser): Promise<{ destroy: () => void; resume: () => void; ended: Promise<Buffer> }> {
  const { port, hostname } = new URL(reef.url);
  const socket = connect(Number(port), hostname);
  const parts: Buffer[] = [];
  const ended = new Promise<Buffer>((done) => socket.on("close", () => done(Buffer.concat(parts))));
  socket.on("error", () => undefined);
  socket.write(`GET /api/user/export HTTP/1.1\r\nHost: reef\r\nAuthorization: Bearer ${user.token}\r\n\r\n`);
  await new Promise<void>((done) =>
    socket.on("data", (bytes: Buffer) => {
      parts.push(bytes);
      if (parts.length === 1) {
        socket.pause();
        done();
      }
    }),
  );
  return { destroy: () => socket.destroy(), resume: () => void socket.resume(), ended };
}

test("whoever hangs up ends the reading: the next export begins at once, no connection stays taken", async () => {
  const user = await makeUser(reef);
  await fill(reef.sql, user, await makeAssistant(user), 1_500, 8_000);
  const listing = spyOn(reef.deps.workspaces, "readFiles");
  for (let i = 0; i < 12; i++) {
    await unlimited(user);
    const { destroy } = await begin(user);
    expect(await isFree(user)).toBe(false);
    destroy();
    await until("its lease is given back", () => isFree(user));
  }
  // None of them came as far as the files, which are read last.
  expect(listing).toHaveBeenCalledTimes(0);
  listing.mockRestore();
  await unlimited(user);
  expect((await exported(user)).files.size).toBeGreaterThan(5);
});

test("what fails in the middle breaks the connection: never a ZIP that looks whole", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  await fill(reef.sql, user, assistant, 1_500, 8_000);
  const { resume, ended } = await begin(user);
  await reef.sql`delete from messages where assistant_id = ${assistant.id} and seq > 1400`;
  resume();
  const bytes = await ended;
  expect(bytes.includes("PK\u0005\u0006")).toBe(false);
  expect(bytes.subarray(-5).toString()).not.toBe("0\r\n\r\n");
  await until("its lease is given back", () => isFree(user));
  const logged = reef.logs.filter((line) => line.includes("an export broke off"));
  expect([logged.length, logged[0]?.includes("went missing")]).toEqual([1, true]);
});

test("an assistant deleted during the export breaks it, too", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  await fill(reef.sql, user, assistant, 1_500, 8_000);
  const { resume, ended } = await begin(user);
  await reef.sql`update assistants set status = 'deleted' where id = ${assistant.id}`;
  resume();
  expect((await ended).includes("PK\u0005\u0006")).toBe(false);
});

test("a session that ends, or a suspension, ends the export that it began", async () => {
  for (const end of [
    (user: TestUser) => user.call("POST", "/api/auth/logout", {}),
    (user: TestUser) => reef.sql`update users set status = 'suspended' where id = ${user.id}`,
  ]) {
    const user = await makeUser(reef);
    await fill(reef.sql, user, await makeAssistant(user), 1_500, 8_000);
    const { resume, ended } = await begin(user);
    await end(user);
    await until("its lease is given back", () => isFree(user));
    resume();
    expect((await ended).includes("PK\u0005\u0006")).toBe(false);
  }
});

test("messages that come during the export are not in it; those from before all are", async () => {
  const user = await makeUser(reef);
  const assistant = await awake(user);
  await fill(reef.sql, user, assistant, 1_500, 8_000);
  const response = await get(user);
  await talk(user, assistant, "this came later");
  const files = await unpack(Buffer.from(await response.arrayBuffer()));
  const conversation = textOf(files, `${folderOf(files, assistant)}/conversation.jsonl`);
  expect(conversation.trimEnd().split("\n").length).toBe(1_500);
  expect(conversation).not.toContain("this came later");
});
