import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { call, makeAssistant, makeUser, openChat, isAnswer, type Answer } from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

const UNREACHABLE = "redis://127.0.0.1:1";
const sorted = (answers: Answer[]) => answers.map(({ status }) => status).sort((a, b) => a - b);
const times = <T>(n: number, make: (i: number) => Promise<T>) =>
  Promise.all(Array.from({ length: n }, (_, i) => make(i)));
const logIn = (url: string, email: string, password: string, forwarded?: string) =>
  call(
    url,
    "POST",
    "/api/auth/login",
    { email, password },
    undefined,
    forwarded ? { "x-forwarded-for": forwarded } : {},
  );

/** A process with counters of its own. */
async function withProcess(env: Record<string, string>, run: (url: string) => Promise<void>): Promise<void> {
  const process = await startProcess({ ...reef.env, REDIS_PREFIX: `${crypto.randomUUID()}:`, ...env });
  try {
    await run(process.url);
  } finally {
    await process.stop();
  }
}

describe("with Redis and without", () => {
  for (const REDIS_URL of [undefined, UNREACHABLE]) {
    test(`${REDIS_URL ? "without" : "with"} Redis: forty right sign-ins of one account at once all get in`, async () => {
      await withProcess(REDIS_URL ? { REDIS_URL } : {}, async (url) => {
        const user = await makeUser({ url });
        expect(sorted(await times(40, () => logIn(url, user.email, user.password)))).toEqual(Array(40).fill(200));
      });
    });

    test(`${REDIS_URL ? "without" : "with"} Redis: of wrong ones among them ten are looked at, and nobody else is blocked`, async () => {
      await withProcess({ TRUSTED_PROXIES: "1", ...(REDIS_URL ? { REDIS_URL } : {}) }, async (url) => {
        const user = await makeUser({ url });
        const guesses = await times(25, (i) => logIn(url, user.email, `guess number ${i}`, "198.51.100.1"));
        expect(sorted(guesses)).toEqual([...Array(10).fill(401), ...Array(15).fill(429)]);
        expect((await logIn(url, user.email, user.password, "198.51.100.1")).body.code).toBe("too_many_attempts");
        expect((await logIn(url, user.email, user.password, "198.51.100.2")).status).toBe(200);
      });
    });

    test(`${REDIS_URL ? "without" : "with"} Redis: sign-ups from one address have an end; a /64 is one address`, async () => {
      await withProcess(
        { TRUSTED_PROXIES: "1", SIGNUPS_PER_HOUR: "3", ...(REDIS_URL ? { REDIS_URL } : {}) },
        async (url) => {
          const signUp = (forwarded: string) =>
            call(
              url,
              "POST",
              "/api/auth/signup",
              { email: `${crypto.randomUUID()}@example.org`, password: "long enough" },
              undefined,
              { "x-forwarded-for": forwarded },
            );
          for (let i = 1; i <= 3; i++) expect((await signUp(`2001:db8::${i}`)).status).toBe(201);
          const refused = await signUp("2001:db8::4");
          expect([refused.status, refused.body.code]).toEqual([429, "too_many_attempts"]);
          expect(Number(refused.headers.get("retry-after"))).toBeWithin(3000, 3601);
          const odd = {
            email: `${crypto.randomUUID()}@example.org`,
            password: "long enough",
            timezone: "Mars/Olympus",
          };
          const header = { "x-forwarded-for": "2001:db8::5" };
          expect((await call(url, "POST", "/api/auth/signup", odd, undefined, header)).status).toBe(429);
          expect((await signUp("2001:db8:0:1::1")).status).toBe(201);
        },
      );
    });
  }
});

test("an address tries thirty passwords, whatever the accounts; an unknown account is like a known one", async () => {
  await withProcess({}, async (url) => {
    const user = await makeUser({ url });
    const known = await times(12, () => logIn(url, user.email, "wrong"));
    const unknown = await times(12, () => logIn(url, "nobody@example.org", "wrong"));
    expect([sorted(known), sorted(unknown)]).toEqual(Array(2).fill([...Array(10).fill(401), 429, 429]));
    // Which of twelve at once are the two refused is nobody's choice.
    const sentence = (answers: typeof known) => answers.find(({ status }) => status === 401)!.body.error;
    expect(sentence(known)).toBe(sentence(unknown));
    const others = await times(15, (i) => logIn(url, `${i}@example.org`, "wrong"));
    expect(sorted(others)).toEqual([...Array(10).fill(401), ...Array(5).fill(429)]);
  });
});

test("an account guessed at from everywhere: its owner's address gets in, an unknown one waits", async () => {
  await withProcess({ TRUSTED_PROXIES: "1" }, async (url) => {
    const user = await makeUser({ url });
    expect((await logIn(url, user.email, user.password, "203.0.113.7")).status).toBe(200);
    const guesses = await times(100, (i) => logIn(url, user.email, "wrong", `198.51.100.${i}`));
    expect(sorted(guesses)).toEqual(Array(100).fill(401));
    const late = await logIn(url, user.email, user.password, "203.0.113.8");
    expect([late.status, late.body.code]).toEqual([429, "too_many_attempts"]);
    expect((await logIn(url, user.email, user.password, "203.0.113.7")).status).toBe(200);
  });
});

test("refresh tokens that are none of ours are counted by address; a good one gets through all the same", async () => {
  await withProcess({}, async (url) => {
    const user = await makeUser({ url });
    const refresh = (token: string) => call(url, "POST", "/api/auth/refresh", { refresh_token: token });
    const answers = await times(70, () => refresh("garbage"));
    expect(sorted(answers)).toEqual([...Array(60).fill(401), ...Array(10).fill(429)]);
    expect((await refresh(user.refreshToken)).status).toBe(200);
  });
});

describe("whose address counts", () => {
  const addressOf = async (env: Record<string, string>, forwarded: string) => {
    const seen: string[] = [];
    await withProcess(env, async (url) => {
      const user = await makeUser({ url });
      await logIn(url, user.email, user.password, forwarded);
      const [session] = (await user.call("GET", "/api/auth/sessions")).body;
      seen.push(session.ip);
    });
    return seen[0];
  };
  test("without a proxy of ours the header is the client's own words", async () =>
    expect(await addressOf({}, "203.0.113.7")).toBe("127.0.0.1"));
  test("with one, what it added and not what the client wrote", async () =>
    expect(await addressOf({ TRUSTED_PROXIES: "1" }, "6.6.6.6, 203.0.113.7")).toBe("203.0.113.7"));

  test("no header makes anybody an operator", async () => {
    await withProcess({ TRUSTED_PROXIES: "1" }, async (url) => {
      for (const forwarded of ["127.0.0.1", "::1", "6.6.6.6, 127.0.0.1", "[::ffff:127.0.0.1]:80", ""])
        expect(
          (await call(url, "GET", "/metrics", undefined, undefined, { "x-forwarded-for": forwarded })).status,
        ).toBe(404);
      expect((await fetch(`${url}/metrics`)).status).toBe(200);
    });
  });
});

test("two hundred sign-ins wait in line: a chat is opened and answered all the same; then all of them are", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const other = await makeUser(reef);
  const gate = Promise.withResolvers<void>();
  const held = Array.from({ length: 2 }, () => reef.deps.passwords.inTurn(() => gate.promise));
  let pending = 200;
  const storm = times(200, async () => {
    const answer = await logIn(reef.url, other.email, other.password);
    pending -= 1;
    return answer;
  });
  const chat = await openChat(reef, user.token, assistant.agent_id);
  chat.say("hello");
  await chat.next("the message is acknowledged", (frame) => frame.type === "ack");
  await chat.next("the answer is there", isAnswer);
  expect(pending).toBe(200);
  gate.resolve();
  await Promise.all(held);
  chat.say("and now, while they are hashed");
  await until("the second answer is there", () => chat.frames.filter(isAnswer).length === 2);
  expect(sorted(await storm)).toEqual(Array(200).fill(200));
  chat.close();
});

test("who finds the line full is told when to come back, and the attempt does not count", async () => {
  const other = await startProcess({ ...reef.env, REDIS_PREFIX: `${crypto.randomUUID()}:` });
  try {
    const user = await makeUser(other);
    const gate = Promise.withResolvers<void>();
    // As many as there is room for, and some more.
    const line = Array.from({ length: 300 }, () =>
      other.deps.passwords.inTurn(() => gate.promise).catch(() => undefined),
    );
    for (let i = 0; i < 20; i++) {
      const answer = await logIn(other.url, user.email, user.password);
      expect([answer.status, answer.body.code, answer.headers.get("retry-after")]).toEqual([
        503,
        "service_unavailable",
        "5",
      ]);
    }
    const body = { email: `${crypto.randomUUID()}@example.org`, password: "long enough" };
    expect((await call(other.url, "POST", "/api/auth/signup", body)).status).toBe(503);
    gate.resolve();
    await Promise.all(line);
    expect((await logIn(other.url, user.email, user.password)).status).toBe(200);
  } finally {
    await other.stop();
  }
});
