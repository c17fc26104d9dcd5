import { afterAll, beforeAll, expect, test } from "bun:test";
import { insertAudit } from "../../src/db/audit.ts";
import { newId } from "../../src/lib/ids.ts";
import { call, makeAssistant, makeUser, openChat, idle } from "../factories.ts";
import { startFakeIdentityProvider, type FakeIdentityProvider } from "../fakes/identityProvider.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

let apple: FakeIdentityProvider;
let reef: TestReef;
let second: Awaited<ReturnType<typeof startProcess>>;
beforeAll(async () => {
  apple = await startFakeIdentityProvider("apple");
  reef = await startTestReef(apple.env);
  second = await startProcess(reef.env);
});
afterAll(async () => {
  await second.stop();
  await reef.stop();
  await apple.stop();
});

const PATH = "/api/user/account";
const auditsOf = async (userId: string) => {
  const rows = await reef.sql`select action from audit_log where subject_user_id = ${userId} order by id`;
  return rows.map((row) => row["action"] as string);
};
const isDone = (userId: string) => async () =>
  (await reef.sql`select 1 from account_deletions where user_id = ${userId} and step = 'done'`).length === 1;

test("without a proof 400; a wrong password 401, audited, and blocked after ten like signing in; nothing has changed", async () => {
  const user = await makeUser(reef);
  for (const body of [undefined, {}, { provider: "apple" }, { id_token: "x" }]) {
    const answer = await user.call("DELETE", PATH, body);
    expect([answer.status, answer.body.code]).toEqual([400, "password_required"]);
  }
  for (const body of [{ password: "" }, { password: "x".repeat(257) }, { provider: "github", id_token: "x" }])
    expect((await user.call("DELETE", PATH, body)).body.code).toBe("validation_failed");
  for (let n = 0; n < 10; n++)
    expect((await user.call("DELETE", PATH, { password: `wrong ${n}` })).body.code).toBe("invalid_credentials");
  const blocked = await user.call("DELETE", PATH, { password: user.password });
  expect([blocked.status, blocked.body.code, blocked.headers.has("retry-after")]).toEqual([
    429,
    "too_many_attempts",
    true,
  ]);
  expect((await auditsOf(user.id)).filter((action) => action === "account.deletion_refused").length).toBe(10);
  expect((await user.call("GET", "/api/assistants")).status).toBe(200);
});

test("signed out at once on every process and socket, the running answer stops, the address is free at once", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  reef.gateway.setAnswer(async function* () {
    yield { text: "Once upon " };
    yield { hang: true };
  });
  const chats = [
    await openChat(reef, user.token, assistant.agent_id),
    await openChat(second, user.token, assistant.agent_id),
  ];
  chats[0]!.say("tell me a story");
  chats[0]!.say("and another");
  await chats[1]!.next("some text", (frame) => frame.type === "chunk");
  // The gateway goes for hours: the deletion has to wait for it, the person has not.
  await reef.gateway.stop();
  const answer = await user.call("DELETE", PATH, { password: user.password });
  expect([answer.status, typeof answer.body.message]).toEqual([202, "string"]);
  await until("both sockets are closed", () => chats.every((chat) => chat.closed));
  expect(chats.map((chat) => chat.closed?.code)).toEqual([1008, 1008]);
  for (const { url } of [reef, second]) {
    expect((await call(url, "GET", "/api/assistants", undefined, user.token)).body.code).toBe("session_revoked");
    expect((await call(url, "DELETE", PATH, { password: user.password }, user.token)).status).toBe(401);
    const refresh = await call(url, "POST", "/api/auth/refresh", { refresh_token: user.refreshToken });
    expect(refresh.body.code).toBe("session_revoked");
  }
  const credentials = { email: user.email, password: user.password };
  expect((await call(reef.url, "POST", "/api/auth/login", credentials)).body.code).toBe("invalid_credentials");
  const again = await call(reef.url, "POST", "/api/auth/signup", credentials);
  expect(again.status).toBe(201);
  await until("it waits for its assistants", async () => {
    const [row] = await reef.sql`select step from account_deletions where user_id = ${user.id}`;
    return row?.["step"] === "agents";
  });
  const asked = await reef.sql`
    select 1 from turns where user_id = ${user.id} and status in ('queued', 'dispatched', 'streaming') and not stop_requested`;
  expect(asked.length).toBe(0);
  expect(await auditsOf(user.id)).toEqual(["account.signup", "account.deletion_requested"]);
  // Somebody without assistants needs no gateway.
  const free = await makeUser(reef);
  expect((await free.call("DELETE", PATH, { password: free.password })).status).toBe(202);
  await until("the other one is gone meanwhile", isDone(free.id));
  reef.gateway = await reef.gateway.restart();
  await until("it is done", isDone(user.id), 30_000);
  expect((await reef.sql`select 1 from users where email = ${user.email}`).length).toBe(1);
  const log = reef.logs.concat(second.logs).join("");
  for (const secret of [user.email, user.password, "tell me a story"]) expect(log).not.toContain(secret);
});

test("eight at once: one begins it, the others are signed out; it is audited and mailed once", async () => {
  const user = await makeUser(reef);
  const ask = () => user.call("DELETE", PATH, { password: user.password });
  const answers = await Promise.all(Array.from({ length: 8 }, ask));
  expect(answers.map(({ status }) => status).sort((a, b) => a - b)).toEqual([202, ...Array(7).fill(401)]);
  await until("it is done", isDone(user.id));
  expect(await auditsOf(user.id)).toEqual(["account.signup", "account.deletion_requested", "account.deleted"]);
  const mails = await reef.sql`select template from outbox where recipient = ${user.email} order by id`;
  expect(mails.map((row) => row["template"])).toEqual(["deletion-requested", "deletion-finished"]);
});

test("a fresh sign-in with the provider is a proof, a stale or somebody else's is not; the Apple account is free at once", async () => {
  const [user, other] = [await makeUser(reef), await makeUser(reef)];
  const subject = newId();
  await reef.sql`insert into identities (provider, subject, user_id, provider_token)
    values ('apple', ${subject}, ${user.id}, ${Buffer.from("sealed")})`;
  const ask = async (claims: object) =>
    user.call("DELETE", PATH, { provider: "apple", id_token: await apple.sign({ ...claims }) });
  const old = Math.floor(Date.now() / 1000) - 700;
  for (const claims of [{ sub: subject, iat: old }, { sub: newId() }]) {
    const answer = await ask(claims);
    expect([answer.status, answer.body.code]).toEqual([401, "invalid_id_token"]);
  }
  expect((await ask({ sub: subject })).status).toBe(202);
  await reef.sql`insert into identities (provider, subject, user_id) values ('apple', ${subject}, ${other.id})`;
  expect(await auditsOf(user.id)).toEqual(
    expect.arrayContaining(["account.deletion_refused", "account.deletion_requested"]),
  );
});

test("an assistant or a message that was under way is refused once the account leaves or is suspended", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  await reef.sql`update users set status = 'suspended' where id = ${user.id}`;
  const { createAssistantFor } = await import("../../src/services/assistants.ts");
  const { acceptMessage } = await import("../../src/services/conversations.ts");
  const actor = { kind: "user" as const, userId: user.id, sessionId: newId(), expiresAt: 0 };
  const creating = createAssistantFor(reef.deps, actor, { displayName: null, voice: null, claim: null });
  expect(await creating.catch((error: { code: string }) => error.code)).toBe("account_suspended");
  const message = { userId: user.id, assistantId: assistant.id, clientId: newId(), content: "hello" };
  expect(await acceptMessage(reef.deps, idle.claim, message)).toMatchObject({ code: "account_suspended" });
});

test("refused proofs of a provider are blocked after some, too: the audit log does not grow", async () => {
  const user = await makeUser(reef);
  const ask = () => user.call("DELETE", PATH, { provider: "apple", id_token: "x" });
  for (let n = 0; n < 10; n++) expect((await ask()).body.code).toBe("invalid_id_token");
  const blocked = await ask();
  expect([blocked.status, blocked.body.code, blocked.headers.has("retry-after")]).toEqual([
    429,
    "too_many_attempts",
    true,
  ]);
});

test("what is audited after the rows are gone keeps no address", async () => {
  const user = await makeUser(reef);
  expect((await user.call("DELETE", PATH, { password: user.password })).status).toBe(202);
  await until("it is done", isDone(user.id));
  // A request that was under way when the account went.
  await insertAudit(reef.sql, {
    actor: `user:${user.id}`,
    action: "account.deletion_refused",
    subjectUserId: user.id,
    ip: "192.0.2.77",
    requestId: "late",
    details: { sessions: 1 },
  });
  const rows = await reef.sql`
    select 1 from audit_log where subject_user_id = ${user.id} and (ip is not null or details <> '{}')`;
  expect(rows.length).toBe(0);
});
