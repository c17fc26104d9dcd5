import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { resetUserPassword } from "../../src/db/credentials.ts";
import { createOneTimeToken, deriveOneTimeToken } from "../../src/services/oneTimeTokens.ts";
import { revokeAllSessions } from "../../src/services/sessions.ts";
import { verifyFreshIdentity } from "../../src/services/socialSignIn.ts";
import { startFakeIdentityProvider, type FakeIdentityProvider } from "../fakes/identityProvider.ts";
import { call, makeUser, type Answer } from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

let apple: FakeIdentityProvider;
let google: FakeIdentityProvider;
let reef: TestReef;
beforeAll(async () => {
  [apple, google] = await Promise.all([startFakeIdentityProvider("apple"), startFakeIdentityProvider("google")]);
  reef = await startTestReef({ ...apple.env, ...google.env });
});
afterAll(async () => {
  await reef.stop();
  await Promise.all([apple.stop(), google.stop()]);
});
// Every test comes from one address; failures of one are not to block the next.
beforeEach(async () => {
  const keys = await reef.deps.redis.keys(`${reef.env["REDIS_PREFIX"]}throttle:*`);
  for (const key of keys) await reef.deps.redis.del(key.slice(reef.env["REDIS_PREFIX"]!.length));
});

const unique = () => crypto.randomUUID();
const NOW = () => Math.floor(Date.now() / 1000);
const signIn = (body: object, url = reef.url) => call(url, "POST", "/api/auth/social", body);
const withApple = async (claims: object, body: object = {}) =>
  signIn({ provider: "apple", id_token: await apple.sign({ email_verified: "true", ...claims }), ...body });
const withGoogle = async (claims: object, body: object = {}) =>
  signIn({ provider: "google", id_token: await google.sign({ email_verified: true, ...claims }), ...body });
const outcome = (answer: Answer) => [answer.status, answer.body.code];
const auditsOf = async (userId: string) =>
  (await reef.sql`select action, details from audit_log where subject_user_id = ${userId} order by action`).map(
    (row) => [row["action"], row["details"].provider],
  );
const usersWith = async (email: string) =>
  Number((await reef.sql`select count(*) as n from users where email = ${email}`)[0]!["n"]);

test("a first sign-in with Apple makes an account, a second finds it; the tokens work", async () => {
  const email = `${unique()}@example.org`;
  const first = await withApple(
    { sub: email, email },
    { name: "Ada", device_name: "Phone", timezone: "Europe/Berlin" },
  );
  expect(first.status).toBe(200);
  expect(first.body.user).toMatchObject({ email, name: "Ada", email_verified: true, timezone: "Europe/Berlin" });
  const list = await call(reef.url, "GET", "/api/assistants", undefined, first.body.access_token);
  expect([list.status, list.body]).toEqual([200, []]);
  const refreshed = await call(reef.url, "POST", "/api/auth/refresh", { refresh_token: first.body.refresh_token });
  expect(refreshed.status).toBe(200);
  const second = await withApple({ sub: email, email: "now-hidden@privaterelay.example" }, { name: "Eve" });
  expect(second.body.user).toEqual(first.body.user);
  expect(await auditsOf(first.body.user.id)).toEqual([
    ["account.signup", "apple"],
    ["session.login", "apple"],
  ]);
  const sessions = await reef.sql`select device_name from refresh_tokens where user_id = ${first.body.user.id}`;
  expect(new Set(sessions.map((row) => row["deviceName"]))).toEqual(new Set(["Phone", null]));
});

test("a first sign-in with Google takes the name from the token; a nonce is matched over the wire", async () => {
  const email = `${unique()}@gmail.com`;
  const answer = await withGoogle({ sub: email, email, name: " Ada L. ", nonce: "raw" }, { nonce: "raw" });
  expect([answer.status, answer.body.user.name, answer.body.user.email_verified]).toEqual([200, "Ada L.", true]);
  expect(outcome(await withGoogle({ sub: email, email, nonce: "raw" }))).toEqual([401, "invalid_id_token"]);
  const nonce = createHash("sha256").update("secret").digest("hex");
  expect(
    (await withApple({ sub: unique(), email: `${unique()}@example.org`, nonce }, { nonce: "secret" })).status,
  ).toBe(200);
});

test("who signs in with a provider only has no password that fits, not even an empty one", async () => {
  const email = `${unique()}@example.org`;
  await withApple({ sub: unique(), email });
  for (const password of ["null", "x", email])
    expect(outcome(await call(reef.url, "POST", "/api/auth/login", { email, password }))).toEqual([
      401,
      "invalid_credentials",
    ]);
  const again = await call(reef.url, "POST", "/api/auth/signup", {
    email: email.toUpperCase(),
    password: "long enough",
  });
  expect(again.body.code).toBe("email_taken");
});

test("a lost answer can be asked for again with the same token: the same account, another session", async () => {
  const email = `${unique()}@example.org`;
  const body = { provider: "apple", id_token: await apple.sign({ sub: email, email, email_verified: true }) };
  const [first, second] = [await signIn(body), await signIn(body)];
  expect(second.body.user.id).toBe(first.body.user.id);
  expect(second.body.refresh_token).not.toBe(first.body.refresh_token);
});

test("twenty parallel first sign-ins, by two providers, make one account", async () => {
  const email = `${unique()}@gmail.com`;
  const ofApple = { provider: "apple", id_token: await apple.sign({ sub: email, email, email_verified: true }) };
  const ofGoogle = { provider: "google", id_token: await google.sign({ sub: email, email, email_verified: true }) };
  const answers = await Promise.all(Array.from({ length: 20 }, (_, i) => signIn(i % 2 ? ofApple : ofGoogle)));
  expect(answers.map((answer) => answer.status)).toEqual(Array(20).fill(200));
  const [id, ...others] = new Set(answers.map((answer) => answer.body.user.id));
  expect(others).toEqual([]);
  expect(await usersWith(email)).toBe(1);
  const actions = Map.groupBy(await auditsOf(id), ([action]) => action);
  expect([...actions].map(([action, rows]) => [action, rows.length])).toEqual(
    expect.arrayContaining([
      ["account.signup", 1],
      ["identity.linked", 1],
      ["session.login", 19],
    ]),
  );
  expect((await reef.sql`select 1 from identities where user_id = ${id}`).length).toBe(2);
  expect((await reef.sql`select 1 from refresh_tokens where user_id = ${id}`).length).toBe(20);
});

test("parallel first sign-ins never see each other half done, also where the address proves nothing", async () => {
  for (const claims of [{ hd: "example.org" }, {}]) {
    for (let round = 0; round < 10; round++) {
      const email = `${unique()}@example.org`;
      const id_token = await google.sign({ sub: email, email, email_verified: true, ...claims });
      const answers = await Promise.all(Array.from({ length: 8 }, () => signIn({ provider: "google", id_token })));
      expect(answers.map((answer) => answer.status)).toEqual(Array(8).fill(200));
      expect(new Set(answers.map((answer) => answer.body.user.id)).size).toBe(1);
    }
  }
});

test("an account that has proven its address is linked, whatever the case; its password goes on", async () => {
  const user = await makeUser(reef);
  await reef.sql`update users set email_verified = true where id = ${user.id}`;
  const answer = await withApple({ sub: unique(), email: user.email.toUpperCase() });
  expect([answer.status, answer.body.user.id]).toEqual([200, user.id]);
  expect(await auditsOf(user.id)).toEqual([
    ["account.signup", undefined],
    ["identity.linked", "apple"],
    ["session.login", "apple"],
  ]);
  const login = await call(reef.url, "POST", "/api/auth/login", { email: user.email, password: user.password });
  expect(login.status).toBe(200);
});

test("an account that somebody made with an address that is not theirs is not shared with its owner", async () => {
  const attacker = await makeUser(reef);
  for (const attempt of [
    () => withApple({ sub: "owner-a", email: attacker.email }),
    () => withGoogle({ sub: "owner-g", email: attacker.email, hd: "example.org" }),
  ]) {
    const answer = await attempt();
    expect(outcome(answer)).toEqual([409, "email_unverified"]);
    expect(answer.body.error).toContain("reset the password");
  }
  expect((await reef.sql`select 1 from identities where user_id = ${attacker.id}`).length).toBe(0);
  expect((await reef.sql`select 1 from refresh_tokens where user_id = ${attacker.id}`).length).toBe(1);
  await reef.sql`update users set email_verified = true where id = ${attacker.id}`;
  expect((await withApple({ sub: "owner-a", email: attacker.email })).body.user.id).toBe(attacker.id);
});

test("an address that Google does not host opens no account that has it, and proves nothing of a new one", async () => {
  const user = await makeUser(reef);
  await reef.sql`update users set email_verified = true where id = ${user.id}`;
  expect(outcome(await withGoogle({ sub: unique(), email: user.email }))).toEqual([409, "email_unverified"]);
  const [email, sub] = [`${unique()}@example.org`, unique()];
  const made = await withGoogle({ sub, email });
  expect([made.status, made.body.user.email_verified]).toEqual([200, false]);
  expect((await withGoogle({ sub, email })).body.user.id).toBe(made.body.user.id);
  // Whoever has the address now is not let into the account of whoever had it.
  expect(outcome(await withApple({ sub: unique(), email }))).toEqual([409, "email_unverified"]);
});

test("a reset of an account that never proved its address ends the Apple or Google sign-in that opened it", async () => {
  const [email, sub] = [`${unique()}@example.org`, unique()];
  const id: string = (await withGoogle({ sub, email })).body.user.id;
  const waiting = await reef.sql`select template from outbox where user_id = ${id}`;
  expect(waiting.map((row) => row["template"])).toEqual(["verify-email"]);
  const reset = { userId: id, kind: "reset_password" } as const;
  const tokenId = (await createOneTimeToken(reef.deps, reef.sql, reset))!;
  const token = deriveOneTimeToken(reef.deps, { id: tokenId, kind: reset.kind });
  const body = { token, new_password: "of the mailbox's owner" };
  expect((await call(reef.url, "POST", "/api/auth/reset-password", body)).status).toBe(204);
  expect(outcome(await withGoogle({ sub, email }))).toEqual([409, "email_unverified"]);
  const apple = await withApple({ sub: unique(), email });
  expect([apple.status, apple.body.user.id, apple.body.user.email_verified]).toEqual([200, id, true]);
});

test("a sign-in that runs beside the reset that unlinks it leaves no session", async () => {
  const [email, sub] = [`${unique()}@example.org`, unique()];
  const id: string = (await withGoogle({ sub, email })).body.user.id;
  const beside = await reef.sql.begin(async (sql) => {
    expect(await resetUserPassword(sql, { userId: id, passwordHash: "another" })).toBe(true);
    await revokeAllSessions(sql, { userId: id, reason: "password_reset" });
    const signingIn = withGoogle({ sub, email });
    await until("the sign-in waits", async () => {
      const waiting = await reef.sql`
        select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`;
      return waiting.length > 0;
    });
    return { signingIn };
  });
  expect(outcome(await beside.signingIn)).toEqual([409, "email_unverified"]);
  const living = await reef.sql`select 1 from refresh_tokens where user_id = ${id} and revoked_at is null`;
  expect(living.length).toBe(0);
});

test("an address that the provider gave to somebody else does not open the first one's account", async () => {
  const email = `${unique()}@gmail.com`;
  const first = await withGoogle({ sub: unique(), email });
  const answer = await withGoogle({ sub: unique(), email });
  expect(outcome(answer)).toEqual([409, "identity_taken"]);
  expect((await withApple({ sub: unique(), email })).body.user.id).toBe(first.body.user.id);
});

test("no address, or one that is not verified, or no address at all by our rules: nobody is let in", async () => {
  const user = await makeUser(reef);
  await reef.sql`update users set email_verified = true where id = ${user.id}`;
  const [local] = user.email.split("@");
  for (const claims of [
    { email: undefined },
    { email: user.email, email_verified: false },
    { email: user.email, email_verified: "false" },
    { email: user.email, email_verified: undefined },
    // A Kelvin sign, a full-width letter, a Cyrillic one: lower-cased or normalized they would be another's address.
    { email: `${local}@example.org\u0000` },
    { email: user.email.replace("example", "exampl\uFF45") },
    { email: user.email.replace("example", "ex\u0430mple") },
    { email: user.email.replace("@", "\u212A@") },
    { email: ` ${user.email}` },
    { email: [user.email] },
  ]) {
    const answer = await withApple({ sub: unique(), ...claims });
    expect([claims, ...outcome(answer)]).toEqual([claims, 409, "email_unverified"]);
    expect(answer.body.error).toContain("no verified e-mail address");
  }
  expect((await reef.sql`select 1 from identities where user_id = ${user.id}`).length).toBe(0);
});

test("a known identity needs no address", async () => {
  const [sub, email] = [unique(), `${unique()}@example.org`];
  const first = await withApple({ sub, email });
  expect((await withApple({ sub, email_verified: undefined })).body.user.id).toBe(first.body.user.id);
});

test("a suspended account stays shut: by its identity, and by its address for a new one", async () => {
  const [sub, email] = [unique(), `${unique()}@example.org`];
  const { id } = (await withApple({ sub, email })).body.user;
  await reef.sql`update users set status = 'suspended' where id = ${id}`;
  expect(outcome(await withApple({ sub, email }))).toEqual([403, "account_suspended"]);
  expect(outcome(await withGoogle({ sub, email, hd: "example.org" }))).toEqual([403, "account_suspended"]);
  expect((await reef.sql`select 1 from refresh_tokens where user_id = ${id}`).length).toBe(1);
  expect((await reef.sql`select 1 from identities where user_id = ${id}`).length).toBe(1);
  const refused = (await auditsOf(id)).filter(([action]) => action === "session.login_failed");
  expect(new Set(refused.map(([, provider]) => provider))).toEqual(new Set(["apple", "google"]));
});

test("an account that is being deleted is unknown: in the way as long as it is there, then a new one is made", async () => {
  const [sub, email] = [unique(), `${unique()}@example.org`];
  const { id } = (await withApple({ sub, email })).body.user;
  await reef.sql`update users set status = 'deleting' where id = ${id}`;
  for (const claims of [
    { sub, email },
    { sub: unique(), email },
    { sub, email: `${unique()}@example.org` },
  ]) {
    const answer = await withApple(claims);
    expect(outcome(answer)).toEqual([503, "service_unavailable"]);
    expect(Number(answer.headers.get("retry-after"))).toBeGreaterThan(0);
    expect(await usersWith(claims.email)).toBe(claims.email === email ? 1 : 0);
  }
  await reef.sql`delete from users where id = ${id}`;
  const again = await withApple({ sub, email });
  expect(again.status).toBe(200);
  expect(again.body.user.id).not.toBe(id);
});

test("bad tokens: 401, audited without the token, and thirty of an address are enough", async () => {
  const body = { provider: "google", id_token: await google.sign({ sub: "a", aud: "other" }) };
  expect(outcome(await signIn(body))).toEqual([401, "invalid_id_token"]);
  expect(outcome(await withApple({ sub: "a" }, { provider: "google" }))).toEqual([401, "invalid_id_token"]);
  const [row] = await reef.sql`
    select details, actor from audit_log where action = 'session.login_failed' order by at desc limit 1`;
  expect(row).toEqual({ details: { provider: "google" }, actor: "unknown" });
  const more = await Promise.all(
    Array.from({ length: 40 }, (_, i) => signIn({ provider: "apple", id_token: `bad.${i}` })),
  );
  expect(Map.groupBy(more, (answer) => answer.status).get(401)?.length).toBe(28);
  expect(Map.groupBy(more, (answer) => answer.body.code).get("too_many_attempts")?.length).toBe(12);
});

test("forty people behind one address sign in at once", async () => {
  const answers = await Promise.all(
    Array.from({ length: 40 }, () => withApple({ sub: unique(), email: `${unique()}@example.org` })),
  );
  expect(answers.map(({ status }) => status)).toEqual(Array(40).fill(200));
});

test("bodies: limits of every field, unknown provider, unknown time zone", async () => {
  const email = `${unique()}@example.org`;
  const id_token = await apple.sign({ sub: email, email, email_verified: true });
  const good = { provider: "apple", id_token };
  for (const bad of [
    { ...good, provider: "facebook" },
    { ...good, provider: "Apple" },
    { ...good, provider: ["apple"] },
    { ...good, id_token: "" },
    { ...good, id_token: "x".repeat(8193) },
    { ...good, id_token: 1 },
    { id_token },
    { provider: "apple" },
    { ...good, nonce: "" },
    { ...good, nonce: "n".repeat(257) },
    { ...good, authorization_code: "" },
    { ...good, authorization_code: "c".repeat(2049) },
    { ...good, name: " " },
    { ...good, name: "n".repeat(101) },
    { ...good, name: "a\u0000" },
    { ...good, device_name: "n".repeat(101) },
    { ...good, timezone: "Mars/Base" },
    { ...good, timezone: "x".repeat(65) },
    { ...good, email: "eve@example.org" },
  ])
    expect(outcome(await signIn(bad))).toEqual([400, "validation_failed"]);
  expect(outcome(await signIn({ ...good, id_token: "x".repeat(70_000) }))).toEqual([413, "body_too_large"]);
  expect(await usersWith(email)).toBe(0);
  expect(outcome(await signIn({ ...good, id_token: "x".repeat(8192) }))).toEqual([401, "invalid_id_token"]);
  expect((await signIn({ ...good, name: "n".repeat(100), device_name: "d".repeat(100) })).status).toBe(200);
});

test("a provider that is not configured, or away, answers 503; nothing counts as a failure, and it recovers", async () => {
  const bare = await startProcess({ ...reef.env, APPLE_CLIENT_IDS: "" });
  const google2 = await startFakeIdentityProvider("google");
  const away = await startProcess({ ...reef.env, ...google2.env, REDIS_PREFIX: `${unique()}:` });
  try {
    const email = `${unique()}@gmail.com`;
    expect(outcome(await signIn({ provider: "apple", id_token: "x" }, bare.url))).toEqual([
      503,
      "provider_not_configured",
    ]);
    const body = { provider: "google", id_token: await google2.sign({ sub: email, email, email_verified: true }) };
    await google2.goDown();
    for (let i = 0; i < 35; i++) {
      const answer = await signIn(body, away.url);
      expect([...outcome(answer), answer.headers.get("retry-after")]).toEqual([503, "provider_unavailable", "5"]);
    }
    google2.comeBack();
    await until("it recovers", async () => (await signIn(body, away.url)).status === 200);
  } finally {
    await Promise.all([bare.stop(), away.stop(), google2.stop()]);
  }
});

test("a database that fails in the midst of a sign-in leaves nothing half done, and the same token works after", async () => {
  const email = `${unique()}@example.org`;
  const id_token = await apple.sign({ sub: email, email, email_verified: true });
  await reef.sql`alter table refresh_tokens rename to refresh_tokens_away`;
  try {
    expect((await signIn({ provider: "apple", id_token })).status).toBe(500);
  } finally {
    await reef.sql`alter table refresh_tokens_away rename to refresh_tokens`;
  }
  expect(await usersWith(email)).toBe(0);
  expect((await reef.sql`select 1 from identities where subject = ${email}`).length).toBe(0);
  expect((await signIn({ provider: "apple", id_token })).status).toBe(200);
});

test("a fresh identity: young, valid, and this user's; else not", async () => {
  const [sub, other, email] = [unique(), unique(), `${unique()}@example.org`];
  const { id } = (await withApple({ sub, email })).body.user;
  await withApple({ sub: other, email: `${unique()}@example.org` });
  const check = async (claims: object, nonce: string | null = null, provider: "apple" | "google" = "apple") =>
    verifyFreshIdentity(reef.deps, id, { provider, idToken: await apple.sign({ ...claims }), nonce });
  expect(await check({ sub })).toBe(true);
  expect(await check({ sub, iat: NOW() - 1200 })).toBe(false);
  expect(await check({ sub: other })).toBe(false);
  expect(await check({ sub }, "nonce")).toBe(false);
  expect(await check({ sub }, null, "google")).toBe(false);
  expect(
    await verifyFreshIdentity(reef.deps, unique(), {
      provider: "apple",
      idToken: await apple.sign({ sub }),
      nonce: null,
    }),
  ).toBe(false);
});

test("neither tokens nor codes nor nonces nor addresses nor names of people are in the log", async () => {
  const email = `${unique()}@example.org`;
  const code = apple.issueCode(email);
  const nonce = createHash("sha256").update("my-raw-nonce").digest("hex");
  const id_token = await apple.sign({ sub: email, email, email_verified: true, nonce });
  const body = { provider: "apple", id_token, nonce: "my-raw-nonce", authorization_code: code, name: "Adalbertine" };
  const answer = await signIn(body);
  await signIn({ ...body, nonce: "another-nonce" });
  const log = reef.logs.join("");
  const [refreshToken] = [...apple.refreshTokens].find(([, token]) => token.subject === email)!;
  for (const secret of [email, code, nonce, id_token, "my-raw-nonce", "another-nonce", "Adalbertine", refreshToken])
    expect(log).not.toContain(secret);
  for (const secret of [answer.body.access_token, answer.body.refresh_token, reef.env["APPLE_PRIVATE_KEY"]!])
    expect(log).not.toContain(secret);
  const [row] = await reef.sql`
    select (select jsonb_agg(to_jsonb(a)) from audit_log a)::text || (select jsonb_agg(to_jsonb(i)) from identities i)::text as dump`;
  for (const secret of [id_token, code, refreshToken, "my-raw-nonce"]) expect(row!["dump"]).not.toContain(secret);
});
