import { afterAll, beforeAll, expect, test } from "bun:test";
import { newId } from "../../src/lib/ids.ts";
import { revokeAllSessions } from "../../src/services/sessions.ts";
import { call, makeAssistant, makeUser, openChat, type Json, type TestUser } from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

const SESSIONS = "/api/auth/sessions";
const logIn = async (user: TestUser, deviceName?: string): Promise<Json> => {
  const body = { email: user.email, password: user.password, ...(deviceName ? { device_name: deviceName } : {}) };
  return (await call(reef.url, "POST", "/api/auth/login", body)).body;
};
const refresh = (token: string) => call(reef.url, "POST", "/api/auth/refresh", { refresh_token: token });
const namesOf = async (user: TestUser) =>
  (await user.call("GET", SESSIONS)).body.map((session: Json) => session.device_name);

test("devices are listed with name, address and use, the last used first; current is the one that asks", async () => {
  const user = await makeUser(reef);
  const phone = await logIn(user, "Phone");
  const list = (await user.call("GET", SESSIONS)).body;
  expect(list).toMatchObject([
    { device_name: "Phone", ip: "127.0.0.1", current: false },
    { device_name: null, ip: "127.0.0.1", current: true },
  ]);
  expect(Object.keys(list[0]).sort()).toEqual(["created_at", "current", "device_name", "id", "ip", "last_used_at"]);
  await refresh(user.refreshToken);
  expect(await namesOf(user)).toEqual([null, "Phone"]);
  const fromPhone = (await call(reef.url, "GET", SESSIONS, undefined, phone.access_token)).body;
  expect(fromPhone.find((session: Json) => session.current).device_name).toBe("Phone");
});

test("a device is named: at, under and over the limits", async () => {
  const user = await makeUser(reef);
  const [{ id }] = (await user.call("GET", SESSIONS)).body;
  const rename = async (name: unknown) => (await user.call("PUT", `${SESSIONS}/${id}`, { device_name: name })).status;
  expect(await rename("x")).toBe(200);
  expect(await rename("é".repeat(100))).toBe(200);
  for (const bad of ["", "   ", "x".repeat(101), "nul \u0000", null, 5, undefined]) expect(await rename(bad)).toBe(400);
  const renamed = await user.call("PUT", `${SESSIONS}/${id}`, { device_name: "  Kitchen tablet  " });
  expect(renamed.body).toMatchObject({ id, device_name: "Kitchen tablet", current: true });
});

test("a device is signed out: its tokens and its socket, not the others", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const phone = await logIn(user, "Phone");
  const chat = await openChat(reef, phone.access_token, assistant.agent_id);
  const mine = await openChat(reef, user.token, assistant.agent_id);
  const [{ id }] = (await user.call("GET", SESSIONS)).body;
  expect((await user.call("DELETE", `${SESSIONS}/${id}`)).status).toBe(204);
  expect((await user.call("DELETE", `${SESSIONS}/${id}`)).body.code).toBe("session_not_found");
  expect((await user.call("PUT", `${SESSIONS}/${id}`, { device_name: "x" })).body.code).toBe("session_not_found");
  await until("its socket is closed", () => chat.closed);
  expect((await refresh(phone.refresh_token)).body.code).toBe("session_revoked");
  expect((await call(reef.url, "GET", SESSIONS, undefined, phone.access_token)).body.code).toBe("session_revoked");
  expect([await namesOf(user), mine.closed]).toEqual([[null], null]);
  mine.close();
});

test("the device that asks may sign itself out; what is unknown, foreign or no id is a 404", async () => {
  const user = await makeUser(reef);
  const other = await makeUser(reef);
  const [{ id }] = (await user.call("GET", SESSIONS)).body;
  expect((await other.call("DELETE", `${SESSIONS}/${id}`)).body.code).toBe("session_not_found");
  expect((await user.call("DELETE", `${SESSIONS}/${newId()}`)).body.code).toBe("session_not_found");
  expect((await user.call("DELETE", `${SESSIONS}/17`)).body.code).toBe("not_found");
  expect((await user.call("DELETE", `${SESSIONS}/${id}`)).status).toBe(204);
  expect((await user.call("GET", SESSIONS)).body.code).toBe("session_revoked");
});

test("an expired session is no device any more", async () => {
  const user = await makeUser(reef);
  await logIn(user, "Old phone");
  await reef.sql`update refresh_tokens set expires_at = now() where user_id = ${user.id} and device_name = 'Old phone'`;
  expect(await namesOf(user)).toEqual([null]);
});

test("the fifty-first device ends the one used longest ago, also its socket; ended ones do not pile up", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const chat = await openChat(reef, user.token, assistant.agent_id);
  await reef.sql`
    insert into refresh_tokens (id, user_id, token_hash, expires_at, last_used_at)
    select gen_random_uuid(), ${user.id}, '\\x00', now() + interval '1 day', now() + interval '1 minute' from generate_series(1, 49)`;
  await reef.sql`
    insert into refresh_tokens (id, user_id, token_hash, expires_at, revoked_at, revoked_reason)
    select gen_random_uuid(), ${user.id}, '\\x00', now(), now() - interval '1 day', 'logout' from generate_series(1, 300)`;
  const newest = await logIn(user, "Newest");
  await until("the oldest device's socket is closed", () => chat.closed);
  expect((await user.call("GET", SESSIONS)).body.code).toBe("session_revoked");
  expect((await call(reef.url, "GET", SESSIONS, undefined, newest.access_token)).body.length).toBe(50);
  const [row] = await reef.sql`select count(*)::int as n from refresh_tokens where user_id = ${user.id}`;
  expect(row!["n"]).toBe(150);
});

test("all sessions are ended but one, sockets on every process included", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const phone = await logIn(user);
  const other = await startProcess(reef.env);
  try {
    const kept = await openChat(other, user.token, assistant.agent_id);
    const chats = [reef, other].map((process) => openChat(process, phone.access_token, assistant.agent_id));
    const open = await Promise.all(chats);
    const except = (await user.call("GET", SESSIONS)).body.find((session: Json) => session.current).id;
    const ended = await reef.sql.begin((sql) =>
      revokeAllSessions(sql, { userId: user.id, reason: "password", except }),
    );
    expect(ended).toBe(1);
    await until("both sockets are closed", () => open.every((chat) => chat.closed?.code === 1008));
    expect([kept.closed, await namesOf(user)]).toEqual([null, [null]]);
    await reef.sql.begin(async (sql) => {
      await sql`update users set status = 'suspended' where id = ${user.id}`;
      await revokeAllSessions(sql, { userId: user.id, reason: "suspended" });
    });
    await until("the suspended person's socket is closed", () => kept.closed?.code === 1008);
  } finally {
    await other.stop();
  }
});

test("a socket whose session is gone from the table is closed even if no notice of it came", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const other = await startProcess(reef.env);
  try {
    const chat = await openChat(other, user.token, assistant.agent_id);
    await reef.sql`delete from refresh_tokens where user_id = ${user.id}`;
    // What a process does when its listening connection was cut: it reads everything again.
    await reef.sql`select pg_terminate_backend(pid) from pg_stat_activity where query ilike 'listen%' and pid <> pg_backend_pid()`;
    await until("the socket is closed", () => chat.closed, 40_000);
  } finally {
    await other.stop();
  }
});

test("a sign-in whose password was changed while it was under way makes no session", async () => {
  const user = await makeUser(reef);
  const { passwords } = reef.deps;
  const inTurn = passwords.inTurn.bind(passwords);
  const looked = Promise.withResolvers<void>();
  const go = Promise.withResolvers<void>();
  passwords.inTurn = async (work) => {
    const result = await inTurn(work);
    looked.resolve();
    await go.promise;
    return result;
  };
  try {
    const signIn = call(reef.url, "POST", "/api/auth/login", { email: user.email, password: user.password });
    await looked.promise;
    await reef.sql.begin(async (sql) => {
      await sql`update users set password_hash = 'another' where id = ${user.id}`;
      await revokeAllSessions(sql, { userId: user.id, reason: "password_reset" });
    });
    go.resolve();
    expect((await signIn).body.code).toBe("invalid_credentials");
  } finally {
    passwords.inTurn = inTurn;
  }
  const living = await reef.sql`select 1 from refresh_tokens where user_id = ${user.id} and revoked_at is null`;
  expect(living.length).toBe(0);
});
