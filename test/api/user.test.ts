import { afterAll, beforeAll, expect, test } from "bun:test";
import { call, makeAssistant, makeUser, openChat, type TestUser } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

const PROFILE = "/api/user/profile";
const put = (user: TestUser, body: object) => user.call("PUT", PROFILE, body);
const faults = (answer: { status: number; body: { code: string; details?: { path: string }[] } }) => [
  answer.status,
  answer.body.code,
  answer.body.details && [...new Set(answer.body.details.map(({ path }) => path))],
];
const logIn = (email: string, password: string) =>
  call(reef.url, "POST", "/api/auth/login", { email, password, device_name: "Phone" });

test("the profile: what was signed up with, then what was changed; null clears", async () => {
  const user = await makeUser(reef);
  const fresh = await user.call("GET", PROFILE);
  expect([fresh.status, fresh.body]).toEqual([
    200,
    {
      id: user.id,
      email: user.email,
      name: null,
      avatar_url: null,
      email_verified: false,
      timezone: "UTC",
      plan: "free",
      created_at: expect.any(String),
      timezone_changed_at: null,
      has_password: true,
      providers: [],
    },
  ]);
  const changed = await put(user, { name: "  Zoë 🐚 ", avatar_url: "https://example.org/me.png" });
  expect([changed.body.name, changed.body.avatar_url]).toEqual(["Zoë 🐚", "https://example.org/me.png"]);
  expect((await put(user, { name: null })).body).toMatchObject({
    name: null,
    avatar_url: "https://example.org/me.png",
  });
  expect((await put(user, { avatar_url: null })).body).toMatchObject({ name: null, avatar_url: null });
  await reef.sql`insert into identities (provider, subject, user_id) values ('google', ${`g-${user.id}`}, ${user.id}), ('apple', ${`a-${user.id}`}, ${user.id})`;
  await reef.sql`update users set password_hash = null, email_verified = true where id = ${user.id}`;
  expect((await user.call("GET", PROFILE)).body).toMatchObject({
    has_password: false,
    email_verified: true,
    providers: ["apple", "google"],
  });
});

test("profile fields at, under and over their limits", async () => {
  const user = await makeUser(reef);
  const address = (length: number) => `https://example.org/${"x".repeat(length - 20)}`;
  for (const good of [
    { name: "x" },
    { name: "x".repeat(100) },
    { avatar_url: address(2048) },
    { avatar_url: "https://b\u00fccher.example/\u00e4" },
  ])
    expect((await put(user, good)).status).toBe(200);
  for (const [bad, path] of [
    [{}, ""],
    [{ name: "" }, "name"],
    [{ name: "   " }, "name"],
    [{ name: "x".repeat(101) }, "name"],
    [{ name: "a\u0000b" }, "name"],
    [{ name: 5 }, "name"],
    [{ avatar_url: address(2049) }, "avatar_url"],
    [{ avatar_url: "" }, "avatar_url"],
    [{ avatar_url: "http://example.org/a.png" }, "avatar_url"],
    [{ avatar_url: "javascript:alert(1)" }, "avatar_url"],
    [{ avatar_url: "data:image/png;base64,AA==" }, "avatar_url"],
    [{ avatar_url: "https://" }, "avatar_url"],
    [{ avatar_url: "https://exa mple.org/" }, "avatar_url"],
    [{ avatar_url: "https://example.org/a\nb" }, "avatar_url"],
    [{ avatar_url: "https://example.org/\u0000" }, "avatar_url"],
    [{ timezone: "" }, "timezone"],
    [{ timezone: null }, "timezone"],
    [{ timezone: "Mars/Olympus" }, "timezone"],
    [{ timezone: "europe/berlin'; --" }, "timezone"],
    [{ timezone: "x".repeat(65) }, "timezone"],
    [{ timezone: "a\u0000b" }, "timezone"],
    [{ email: "other@example.org" }, "email"],
    [{ plan: "premium" }, "plan"],
    [{ name: "ok", status: "active" }, "status"],
  ] as const) {
    const answer = await put(user, bad);
    expect([bad, answer.status, answer.body.code]).toEqual([bad, 400, "validation_failed"]);
    expect(answer.body.details.map((detail: { path: string }) => detail.path)).toContain(path);
  }
  expect((await user.call("GET", PROFILE)).body.avatar_url).toBe("https://b\u00fccher.example/\u00e4");
});

test("the time zone: a first change at any time, the next after 24 hours, the same one always", async () => {
  const user = await makeUser(reef);
  expect((await put(user, { timezone: "UTC" })).body.timezone_changed_at).toBeNull();
  const first = await put(user, { timezone: "Europe/Berlin" });
  expect([first.status, first.body.timezone]).toEqual([200, "Europe/Berlin"]);
  const resetAt = new Date(Date.parse(first.body.timezone_changed_at) + 86_400_000).toISOString();
  const second = await put(user, { timezone: "Asia/Tokyo", name: "Not now either" });
  expect([second.status, second.body.code, second.body.reset_at]).toEqual([429, "timezone_changed", resetAt]);
  expect(second.body.retry_after).toBeWithin(86_300, 86_401);
  expect(second.headers.get("retry-after")).toBe(String(second.body.retry_after));
  const same = await put(user, { timezone: "Europe/Berlin", name: "Now" });
  expect(same.body).toMatchObject({ name: "Now", timezone_changed_at: first.body.timezone_changed_at });
  await reef.sql`update users set timezone_changed_at = now() - interval '24 hours' where id = ${user.id}`;
  expect((await put(user, { timezone: "Asia/Tokyo" })).body.timezone).toBe("Asia/Tokyo");
});

test("of ten changes of the time zone at once one is made", async () => {
  const user = await makeUser(reef);
  const zones = ["Paris", "Rome", "Madrid", "Oslo", "Vienna", "Lisbon", "Athens", "Dublin", "Warsaw", "Prague"];
  const answers = await Promise.all(zones.map((zone) => put(user, { timezone: `Europe/${zone}` })));
  expect(answers.map(({ status }) => status).sort((a, b) => a - b)).toEqual([200, ...Array<number>(9).fill(429)]);
  const made = answers.find(({ status }) => status === 200)!.body.timezone;
  expect((await user.call("GET", PROFILE)).body.timezone).toBe(made);
});

test("a new password: this session goes on, every other ends with its socket, the old password is none", async () => {
  const user = await makeUser(reef);
  const other = (await logIn(user.email, user.password)).body;
  const { agent_id } = await makeAssistant(user);
  const mine = await openChat(reef, user.token, agent_id);
  const theirs = await openChat(reef, other.access_token, agent_id);
  await reef.sql`
    insert into one_time_tokens (id, user_id, kind, token_hash, expires_at)
    values (${crypto.randomUUID()}, ${user.id}, 'reset_password', '', now() + interval '1 hour')`;
  const body = { current_password: user.password, new_password: "quite another one" };
  expect((await user.call("POST", "/api/user/password", body)).status).toBe(204);
  expect((await until("the other socket is closed", () => theirs.closed)).code).toBe(1008);
  expect((await call(reef.url, "GET", PROFILE, undefined, other.access_token)).body.code).toBe("session_revoked");
  const refresh = await call(reef.url, "POST", "/api/auth/refresh", { refresh_token: other.refresh_token });
  expect(refresh.body.code).toBe("session_revoked");
  expect((await user.call("GET", PROFILE)).status).toBe(200);
  expect(mine.closed).toBeNull();
  mine.close();
  expect((await logIn(user.email, user.password)).body.code).toBe("invalid_credentials");
  expect((await logIn(user.email, body.new_password)).status).toBe(200);
  const [audit] = await reef.sql`
    select actor, details from audit_log where subject_user_id = ${user.id} and action = 'account.password_changed'`;
  expect({ ...audit }).toEqual({ actor: `user:${user.id}`, details: { sessions: 1 } });
  expect(
    (await reef.sql`select kind from one_time_tokens where user_id = ${user.id}`).map((row) => row["kind"]),
  ).toEqual(["verify_email"]);
});

test("a wrong current password is 401, counted together with sign-ins, and changes nothing", async () => {
  const user = await makeUser(reef);
  const tryOne = (current: string) =>
    user.call("POST", "/api/user/password", { current_password: current, new_password: "quite another one" });
  for (let i = 0; i < 5; i++) expect(faults(await tryOne("wrong"))).toEqual([401, "invalid_credentials", undefined]);
  for (let i = 0; i < 5; i++) expect((await logIn(user.email, "wrong")).status).toBe(401);
  const blocked = await tryOne(user.password);
  expect([blocked.status, blocked.body.code]).toEqual([429, "too_many_attempts"]);
  expect(blocked.body.retry_after).toBeGreaterThan(0);
  expect(
    (
      await reef.sql`select 1 from audit_log where subject_user_id = ${user.id} and action = 'account.password_change_failed'`
    ).length,
  ).toBe(5);
  await reef.deps.redis.flushdb();
  expect((await tryOne(user.password)).status).toBe(204);
});

test("of two changes of a password at once one is made", async () => {
  const user = await makeUser(reef);
  const answers = await Promise.all(
    ["the first of them", "the second of them"].map((password) =>
      user.call("POST", "/api/user/password", { current_password: user.password, new_password: password }),
    ),
  );
  expect(answers.map(({ status }) => status).sort((a, b) => a - b)).toEqual([204, 401]);
});

test("passwords at, under and over their limits, weak ones, and an account that has none", async () => {
  const user = await makeUser(reef);
  const change = (current: unknown, next: unknown) =>
    user.call("POST", "/api/user/password", { current_password: current, new_password: next });
  for (const [current, next, path] of [
    [user.password, "seven77", "new_password"],
    [user.password, "x".repeat(257), "new_password"],
    ["", "long enough", "current_password"],
    ["x".repeat(257), "long enough", "current_password"],
    [null, "long enough", "current_password"],
  ])
    expect(faults(await change(current, next))).toEqual([400, "validation_failed", [path as string]]);
  expect(faults(await change(user.password, user.email.toUpperCase()))).toEqual([400, "weak_password", undefined]);
  expect((await change(user.password, "p".repeat(256))).status).toBe(204);
  expect((await change("p".repeat(256), "zq7-kfpw")).status).toBe(204);
  await reef.sql`update users set password_hash = null where id = ${user.id}`;
  expect(faults(await change("zq7-kfpw", "long enough"))).toEqual([409, "no_password", undefined]);
});

test("an idempotent change of a password keeps no hash that could be guessed", async () => {
  const user = await makeUser(reef);
  const body = { current_password: user.password, new_password: "quite another one" };
  for (let i = 0; i < 2; i++)
    expect((await user.call("POST", "/api/user/password", body, { "idempotency-key": "p" })).status).toBe(204);
  const text = `POST /api/user/password\n${JSON.stringify(body)}`;
  const plain = new Bun.CryptoHasher("sha256").update(text).digest();
  const [row] = await reef.sql`select request_hash from idempotency_keys where user_id = ${user.id}`;
  expect(row!["requestHash"].equals(plain)).toBe(false);
});

test("usage: today beside the plan's limits; the history newest first, days without use included", async () => {
  const user = await makeUser(reef);
  await reef.sql`update users set timezone = 'Pacific/Kiritimati' where id = ${user.id}`;
  const { id } = await makeAssistant(user);
  const zero = (limit: number) => ({ used: 0, limit, remaining: limit });
  const fresh = await user.call("GET", "/api/user/usage");
  expect(fresh.body).toEqual({
    date: new Intl.DateTimeFormat("sv", { timeZone: "Pacific/Kiritimati" }).format(new Date()),
    timezone: "Pacific/Kiritimati",
    reset_at: expect.stringMatching(/T10:00:00.000Z$/),
    plan: "free",
    text_messages: zero(50),
    voice_input_seconds: zero(120),
    voice_output_seconds: zero(120),
    tts_characters: zero(5000),
    assistants: { used: 1, limit: 1, remaining: 0 },
  });
  expect(Date.parse(fresh.body.reset_at)).toBeGreaterThan(Date.now());
  await user.call("POST", `/api/assistants/${id}/messages`, { content: "hi", client_id: crypto.randomUUID() });
  await reef.sql`
    insert into daily_usage (user_id, date, text_messages, voice_input_seconds, tts_characters)
    values (${user.id}, ${fresh.body.date}::date - 2, 60, 7, 9), (${user.id}, ${fresh.body.date}::date - 3, 1, 1, 1)`;
  const { body } = await user.call("GET", "/api/user/usage?days=3");
  expect(body.text_messages).toEqual({ used: 1, limit: 50, remaining: 49 });
  const none = { text_messages: 0, voice_input_seconds: 0, voice_output_seconds: 0, tts_characters: 0 };
  const dayBefore = (n: number) => new Date(Date.parse(fresh.body.date) - n * 86_400_000).toISOString().slice(0, 10);
  expect(body.history).toEqual([
    { ...none, date: fresh.body.date, text_messages: 1 },
    { ...none, date: dayBefore(1) },
    { ...none, date: dayBefore(2), text_messages: 60, voice_input_seconds: 7, tts_characters: 9 },
  ]);
  expect((await user.call("GET", "/api/user/usage?days=90")).body.history.length).toBe(90);
  expect((await user.call("GET", "/api/user/usage?days=1")).body.history.length).toBe(1);
  for (const query of ["days=0", "days=91", "days=1.5", "days=x", "days=", "days=-1", "day=1"])
    expect([query, (await user.call("GET", `/api/user/usage?${query}`)).status]).toEqual([query, 400]);
});

test("more used than the plan of today gives: nothing remains, not less", async () => {
  const user = await makeUser(reef);
  await reef.sql`insert into daily_usage (user_id, date, text_messages) values (${user.id}, (now() at time zone 'UTC')::date, 400)`;
  expect((await user.call("GET", "/api/user/usage")).body.text_messages).toEqual({
    used: 400,
    limit: 50,
    remaining: 0,
  });
});

test("a suspended account has none of these", async () => {
  const user = await makeUser(reef);
  await reef.sql`update users set status = 'suspended' where id = ${user.id}`;
  for (const [method, path, body] of [
    ["GET", PROFILE],
    ["PUT", PROFILE, { name: "x" }],
    ["POST", "/api/user/password", { current_password: user.password, new_password: "long enough" }],
    ["GET", "/api/user/usage"],
    ["GET", "/api/user/export"],
  ] as const) {
    const answer = await user.call(method, path, body);
    expect([path, answer.status, answer.body.code]).toEqual([path, 403, "account_suspended"]);
  }
});
