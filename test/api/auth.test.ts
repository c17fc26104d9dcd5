import { afterAll, beforeAll, expect, test } from "bun:test";
import { call, makeAssistant, makeUser, openChat } from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

const refresh = (token: string) => call(reef.url, "POST", "/api/auth/refresh", { refresh_token: token });

test("sign-up gives a user and tokens that work; the address can't be taken twice, also in other case", async () => {
  const user = await makeUser(reef);
  expect((await user.call("GET", "/api/assistants")).body).toEqual([]);
  const again = await call(reef.url, "POST", "/api/auth/signup", {
    email: user.email.toUpperCase(),
    password: "another password",
  });
  expect([again.status, again.body.code]).toEqual([409, "email_taken"]);
});

test("parallel sign-ups with one address make one account", async () => {
  const body = { email: `${crypto.randomUUID()}@example.org`, password: "long enough" };
  const answers = await Promise.all(Array.from({ length: 8 }, () => call(reef.url, "POST", "/api/auth/signup", body)));
  expect(answers.map((answer) => answer.status).sort((a, b) => a - b)).toEqual([201, ...Array(7).fill(409)]);
});

test("where it must not be told, a taken address answers 202 like nothing", async () => {
  const user = await makeUser(reef);
  const quiet = await startProcess({ ...reef.env, REVEAL_EMAIL_TAKEN: "false" });
  try {
    expect(
      (await call(quiet.url, "POST", "/api/auth/signup", { email: user.email, password: "long enough" })).status,
    ).toBe(202);
  } finally {
    await quiet.stop();
  }
});

test("password rules and time zone", async () => {
  const email = `${crypto.randomUUID()}@example.org`;
  const codes = [];
  for (const body of [
    { email, password: "short" },
    { email, password: "x".repeat(257) },
    { email, password: email.toUpperCase() },
    { email, password: "long enough", timezone: "Mars/Base" },
  ]) {
    codes.push((await call(reef.url, "POST", "/api/auth/signup", body)).body.code);
  }
  expect(codes).toEqual(["validation_failed", "validation_failed", "weak_password", "validation_failed"]);
});

test("login: right, wrong, unknown; ten failures block this address for this account", async () => {
  const user = await makeUser(reef);
  const login = (password: string, email = user.email) =>
    call(reef.url, "POST", "/api/auth/login", { email, password });
  expect((await login(user.password)).status).toBe(200);
  expect((await login("wrong", "nobody@example.org")).body.code).toBe("invalid_credentials");
  for (let i = 0; i < 10; i++) expect((await login("wrong")).body.code).toBe("invalid_credentials");
  const blocked = await login(user.password);
  expect([blocked.status, blocked.body.code]).toEqual([429, "too_many_attempts"]);
  expect(Number(blocked.headers.get("retry-after"))).toBeGreaterThan(0);
});

test("forty wrong passwords at once are ten tries; a right one gives its address the count back", async () => {
  for (const REDIS_URL of [reef.env["REDIS_URL"]!, "redis://127.0.0.1:1"]) {
    const other = await startProcess({ ...reef.env, REDIS_URL, REDIS_PREFIX: `${crypto.randomUUID()}:` });
    const user = await makeUser(other);
    const login = (password: string) => call(other.url, "POST", "/api/auth/login", { email: user.email, password });
    for (let i = 0; i < 31; i++) expect((await login(user.password)).status).toBe(200);
    const answers = await Promise.all(Array.from({ length: 40 }, () => login("wrong")));
    expect(answers.map((answer) => answer.status).sort((a, b) => a - b)).toEqual([
      ...Array(10).fill(401),
      ...Array(30).fill(429),
    ]);
    const wait = Number(answers.find((answer) => answer.status === 429)!.headers.get("retry-after"));
    expect(wait).toBeWithin(800, 901);
    await other.stop();
  }
});

test("refresh rotates; a lost answer is given again, any number of times; parallel refreshes all get one that works", async () => {
  const user = await makeUser(reef);
  let answers = [await refresh(user.refreshToken)];
  for (let i = 0; i < 3; i++) answers.push(await refresh(user.refreshToken));
  for (const which of [0, 3, 5]) {
    const token = answers[which]!.body.refresh_token;
    expect((await call(reef.url, "GET", "/api/assistants", undefined, answers[which]!.body.access_token)).status).toBe(
      200,
    );
    answers = await Promise.all(Array.from({ length: 6 }, () => refresh(token)));
    expect(answers.map(({ status }) => status)).toEqual(Array(6).fill(200));
  }
});

test("an older token ends the session for everybody and is audited", async () => {
  const user = await makeUser(reef);
  const second = (await refresh(user.refreshToken)).body.refresh_token;
  const third = (await refresh(second)).body;
  const stolen = await refresh(user.refreshToken);
  expect([stolen.status, stolen.body.code]).toEqual([401, "session_revoked"]);
  expect((await refresh(third.refresh_token)).body.code).toBe("session_revoked");
  expect((await call(reef.url, "GET", "/api/assistants", undefined, third.access_token)).body.code).toBe(
    "session_revoked",
  );
  const [audit] =
    await reef.sql`select action from audit_log where subject_user_id = ${user.id} and action = 'session.token_reuse'`;
  expect(audit).toBeDefined();
});

test("forged refresh tokens are refused", async () => {
  const user = await makeUser(reef);
  for (const token of ["x", `${user.refreshToken.slice(0, -2)}AA`, `rt_${"A".repeat(70)}`]) {
    expect((await refresh(token)).body.code).toBe("invalid_refresh_token");
  }
});

test("logout ends the access token at once and closes the session's sockets", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const chat = await openChat(reef, user.token, assistant.agent_id);
  expect((await user.call("POST", "/api/auth/logout", {})).status).toBe(204);
  expect((await user.call("GET", "/api/assistants")).body.code).toBe("session_revoked");
  await until("the socket is closed", () => chat.closed);
  expect(chat.closed?.code).toBe(1008);
  expect((await refresh(user.refreshToken)).body.code).toBe("session_revoked");
});

test("neither tokens nor passwords nor addresses are in the log or, in clear, in the database", async () => {
  const user = await makeUser(reef);
  await call(reef.url, "POST", "/api/auth/login", { email: user.email, password: user.password });
  const log = reef.logs.join("");
  for (const secret of [user.password, user.token, user.refreshToken, user.email]) expect(log).not.toContain(secret);
  const [row] =
    await reef.sql`select (select jsonb_agg(to_jsonb(r)) from refresh_tokens r)::text || (select jsonb_agg(to_jsonb(u)) from users u)::text as dump`;
  for (const secret of [user.password, user.token, user.refreshToken]) expect(row!["dump"]).not.toContain(secret);
});
