import { afterAll, beforeAll, expect, test } from "bun:test";
import { createServer } from "../../src/server.ts";
import { ChatHub } from "../../src/services/chatHub.ts";
import { createOperator, revokeOperator } from "../../src/services/operators.ts";
import { call, idle, type Json, makeAssistant, makeUser, openChat, type TestUser } from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
let second: Awaited<ReturnType<typeof startProcess>>;
let token: string;
const job = { osUser: "tester" };

beforeAll(async () => {
  reef = await startTestReef();
  second = await startProcess(reef.env);
  token = (await createOperator(reef.deps, job, "ann"))!;
});
afterAll(async () => {
  await second.stop();
  await reef.stop();
});

const admin = (method: string, path: string, body?: unknown, bearer = token) =>
  call(reef.url, method, `/api/admin${path}`, body, bearer);
const auditsOf = async (userId: string) =>
  (await admin("GET", `/audit?user_id=${userId}`)).body.items.map(
    ({ action, actor, details }: Record<string, unknown>) => [action, actor, details],
  );
const login = (user: TestUser) =>
  call(reef.url, "POST", "/api/auth/login", { email: user.email, password: user.password });

test("users are found by address in any case, id and status, page by page; nobody's secrets are shown", async () => {
  const people = [await makeUser(reef), await makeUser(reef), await makeUser(reef)];
  const [first] = people as [TestUser, ...TestUser[]];
  const byEmail = await admin("GET", `/users?email=${first.email.toUpperCase()}`);
  expect(byEmail.body.items.map(({ id }: { id: string }) => id)).toEqual([first.id]);
  expect((await admin("GET", `/users?id=${first.id}`)).body.items.length).toBe(1);
  expect((await admin("GET", `/users?email=nobody@example.org`)).body).toEqual({ items: [], next_cursor: null });
  const seen: string[] = [];
  let cursor: string | null = null;
  do {
    const page: Json = (await admin("GET", `/users?status=active&limit=2${cursor ? `&cursor=${cursor}` : ""}`)).body;
    expect(page.items.length).toBeLessThanOrEqual(2);
    seen.push(...page.items.map(({ id }: { id: string }) => id));
    cursor = page.next_cursor;
  } while (cursor !== null);
  expect(new Set(seen).size).toBe(seen.length);
  for (const { id } of people) expect(seen).toContain(id);
  for (const query of ["limit=0", "limit=201", "status=gone", "id=17", "cursor=17", "email=", "email=%00", "x=1"])
    expect([query, (await admin("GET", `/users?${query}`)).body.code]).toEqual([query, "validation_failed"]);
  expect(JSON.stringify(byEmail.body)).not.toContain("argon2");
});

test("one user: plan, devices, usage, how the assistants stand; no text; an unknown one is 404", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user, { display_name: "Secret Name" });
  await user.call("POST", `/api/assistants/${assistant.id}/messages`, {
    content: "a private word",
    client_id: crypto.randomUUID(),
  });
  await until("it has answered", async () => {
    return (await reef.sql`select 1 from turns where user_id = ${user.id} and status = 'done'`).length === 1;
  });
  const { status, body } = await admin("GET", `/users/${user.id}`);
  expect(status).toBe(200);
  expect(body.user).toMatchObject({ id: user.id, email: user.email, status: "active", plan: "free" });
  expect([body.sessions, body.usage.text_messages, body.deletion]).toEqual([1, { used: 1, limit: 50 }, null]);
  expect(body.assistants).toMatchObject([{ id: assistant.id, status: "active" }]);
  for (const text of ["private", "Secret", "argon2"]) expect(JSON.stringify(body)).not.toContain(text);
  for (const [method, path, sent] of [
    ["GET", "", undefined],
    ["POST", "/suspend", { reason: "x" }],
    ["POST", "/restore", undefined],
    ["POST", "/end-sessions", undefined],
  ] as const)
    expect((await admin(method, `/users/${crypto.randomUUID()}${path}`, sent)).body.code).toBe("user_not_found");
});

test("suspended: sockets close on every process, turns stop and are given back, the assistant sleeps; restored: all is well", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  reef.gateway.setAnswer(async function* (turn) {
    if (turn.text !== "hello") yield { hang: true };
    yield { text: "yes" };
  });
  const chats = [
    await openChat(reef, user.token, assistant.agent_id),
    await openChat(second, user.token, assistant.agent_id),
  ];
  for (const text of ["one", "two"]) chats[0]!.say(text);
  await until("it answers", async () => {
    const rows = await reef.sql`select 1 from turns where user_id = ${user.id} and status = 'dispatched'`;
    return rows.length === 1 && reef.gateway.running.length === 1;
  });
  const suspended = await admin("POST", `/users/${user.id}/suspend`, { reason: "spam" });
  expect([suspended.status, suspended.body.user.status, suspended.body.sessions]).toEqual([200, "suspended", 0]);
  await until("both sockets are closed", () => chats.every((chat) => chat.closed));
  expect((await user.call("GET", "/api/assistants")).status).toBe(401);
  expect((await login(user)).body.code).toBe("account_suspended");
  const refused =
    await reef.sql`select 1 from audit_log where subject_user_id = ${user.id} and action = 'session.login_failed'`;
  expect(refused.length).toBe(1);
  await until("its turns have ended and it sleeps", async () => {
    const [row] =
      await reef.sql`select state, (select count(*) from turns where assistant_id = a.id and status = 'stopped') as stopped
      from assistants a where id = ${assistant.id}`;
    return row!["state"] === "asleep" && row!["stopped"] === 2;
  });
  const [usage] = await reef.sql`select text_messages from daily_usage where user_id = ${user.id}`;
  expect(usage!["textMessages"]).toBe(0);
  await until("it is not configured", () => !reef.gateway.agents.includes(assistant.agent_id));
  expect((await admin("POST", `/users/${user.id}/suspend`, { reason: "again" })).status).toBe(200);
  expect((await admin("POST", `/users/${user.id}/restore`)).body.user.status).toBe("active");
  const back = await login(user);
  const chat = await openChat(reef, back.body.access_token, assistant.agent_id);
  chat.say("hello");
  await chat.next("the answer", (frame) => frame.type === "message" && frame.content === "yes");
  chat.close();
  const audits = await auditsOf(user.id);
  expect(audits.filter(([action]: string[]) => action!.startsWith("account."))).toEqual([
    ["account.restored", "operator:ann", {}],
    ["account.suspended", "operator:ann", { reason: "spam", sessions: 1 }],
    ["account.signup", `user:${user.id}`, {}],
  ]);
});

test("turns of somebody suspended while they were accepted are stopped and given back", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  reef.gateway.setAnswer(async function* () {
    yield { hang: true };
  });
  const send = (content: string) =>
    user.call("POST", `/api/assistants/${assistant.id}/messages`, { content, client_id: crypto.randomUUID() });
  await send("one");
  await until(
    "it answers",
    async () => (await reef.sql`select 1 from turns where user_id = ${user.id} and status = 'dispatched'`).length === 1,
  );
  await send("two");
  await reef.sql`update users set status = 'suspended' where id = ${user.id}`;
  // Either may be first.
  await until(
    "both are stopped, though nobody asked them to",
    async () => (await reef.sql`select 1 from turns where user_id = ${user.id} and status = 'stopped'`).length === 2,
  );
  const [usage] = await reef.sql`select text_messages from daily_usage where user_id = ${user.id}`;
  expect(usage!["textMessages"]).toBe(0);
});

test("sessions are ended by an operator, and one that leaves can't be suspended, restored or signed out", async () => {
  const user = await makeUser(reef);
  await login(user);
  expect((await admin("POST", `/users/${user.id}/end-sessions`)).body.sessions).toBe(0);
  expect((await user.call("GET", "/api/assistants")).body.code).toBe("session_revoked");
  expect((await auditsOf(user.id))[0]).toEqual(["session.ended_by_operator", "operator:ann", { sessions: 2 }]);
  await reef.sql`update users set status = 'deleting' where id = ${user.id}`;
  for (const [path, body] of [["suspend", { reason: "x" }], ["restore"], ["end-sessions"]] as const)
    expect((await admin("POST", `/users/${user.id}/${path}`, body)).body.code).toBe("account_deleting");
});

test("the audit log is read by user and action, newest first, page by page", async () => {
  const user = await makeUser(reef);
  for (let n = 0; n < 4; n++) await login(user);
  const page = (await admin("GET", `/audit?user_id=${user.id}&action=session.login&limit=3`)).body;
  expect(page.items.map(({ action }: { action: string }) => action)).toEqual(Array(3).fill("session.login"));
  const rest = (await admin("GET", `/audit?user_id=${user.id}&action=session.login&cursor=${page.next_cursor}`)).body;
  expect([rest.items.length, rest.next_cursor]).toEqual([1, null]);
  const times = [...page.items, ...rest.items].map(({ at }: { at: string }) => at);
  expect(times).toEqual([...times].sort().reverse());
  for (const query of ["action=nothing", "user_id=17", "limit=x"])
    expect((await admin("GET", `/audit?${query}`)).body.code).toBe("validation_failed");
});

test("only a living operator token opens: none, malformed, a user's, unknown and revoked ones get one and the same 401", async () => {
  const user = await makeUser(reef);
  const revoked = (await createOperator(reef.deps, job, "bob"))!;
  expect((await admin("GET", "/users?limit=1", undefined, revoked)).status).toBe(200);
  expect(await revokeOperator(reef.deps, job, "bob")).toBe(true);
  const bodies = new Set<string>();
  const bad = ["nonsense", user.token, revoked, `op_${"A".repeat(43)}`, `${token}x`, token.toUpperCase()];
  for (const shown of ["", ...bad]) {
    const answer = await admin("GET", "/users", undefined, shown);
    expect(answer.status).toBe(401);
    bodies.add(JSON.stringify({ ...answer.body, request_id: "" }));
  }
  expect(bodies.size).toBe(1);
  const answer = await call(reef.url, "GET", "/api/assistants", undefined, token);
  expect([answer.status, answer.body.code]).toEqual([401, "unauthorized"]);
  expect(await createOperator(reef.deps, job, "bob")).toBe(null);
  expect(await revokeOperator(reef.deps, job, "bob")).toBe(false);
  const [row] = await reef.sql`select (select jsonb_agg(to_jsonb(o)) from operator_tokens o)::text as dump`;
  for (const secret of [token, revoked]) {
    expect(row!["dump"]).not.toContain(secret);
    expect(reef.logs.join("")).not.toContain(secret);
  }
});

test("an address that shows unknown tokens is not asked any more; another one is, and the log does not grow", async () => {
  const { app } = createServer(reef.deps, new ChatHub(reef.deps), idle, () => false);
  const ask = async (ip: string, shown: string) =>
    (
      await app.fetch(new Request("http://reef/api/admin/users", { headers: { authorization: `Bearer ${shown}` } }), {
        ip,
      })
    ).status;
  const wrong = `op_${"B".repeat(43)}`;
  const statuses = [];
  for (let n = 0; n < 32; n++) statuses.push(await ask("203.0.113.5", wrong));
  expect(statuses).toEqual([...Array(30).fill(401), 429, 429]);
  expect(await ask("203.0.113.5", token)).toBe(429);
  for (let n = 0; n < 40; n++) expect(await ask("203.0.113.6", token)).toBe(200);
  for (let n = 0; n < 30; n++) await ask(`2001:db8::${n}`, wrong);
  expect(await ask("2001:db8::ffff", wrong)).toBe(429);
  const rows = await reef.sql`select 1 from audit_log where action = 'operator.token_refused' and ip = '203.0.113.5'`;
  expect(rows.length).toBe(30);
});

test("right tokens side by side are never too many", async () => {
  for (let n = 0; n < 4; n++) {
    const answers = await Promise.all(
      Array.from({ length: 60 }, () => call(reef.url, "GET", "/api/admin/users?limit=1", undefined, token)),
    );
    expect(answers.filter(({ status }) => status !== 200)).toEqual([]);
  }
});

test("/metrics: an operator token opens it from anywhere; its last use is noted, at most once a minute", async () => {
  const { app } = createServer(reef.deps, new ChatHub(reef.deps), idle, () => false);
  const ask = async (shown: string) =>
    (
      await app.fetch(new Request("http://reef/metrics", { headers: { authorization: `Bearer ${shown}` } }), {
        ip: "203.0.113.7",
      })
    ).status;
  expect(await ask(token)).toBe(200);
  expect(await ask(`op_${"C".repeat(43)}`)).toBe(404);
  const used = async () =>
    (await reef.sql`select last_used_at from operator_tokens where name = 'ann'`)[0]!["lastUsedAt"];
  const first = await used();
  expect(first).not.toBe(null);
  expect(await ask(token)).toBe(200);
  expect(await used()).toEqual(first);
  await reef.sql`update operator_tokens set last_used_at = now() - interval '61 seconds' where name = 'ann'`;
  await ask(token);
  expect((await used()).getTime()).toBeGreaterThanOrEqual(first.getTime());
});
