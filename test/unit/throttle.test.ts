import { expect, test } from "bun:test";
import type { Redis } from "ioredis";
import { connectRedis } from "../../src/clients/redis.ts";
import type { AppError } from "../../src/lib/errors.ts";
import { newId } from "../../src/lib/ids.ts";
import { createLocalCounts } from "../../src/lib/localCounts.ts";
import { createLog } from "../../src/lib/log.ts";
import {
  countAttempt,
  countRequest,
  forgetFailures,
  requireAttemptLeft,
  takeBackAttempt,
} from "../../src/services/throttle.ts";
import { until } from "../harness.ts";

const ADDRESS = "throttle:login:192.0.2.1";

const nowhereKnown = { isKnownAddress: () => Promise.resolve(false) };
const codeOf = (work: Promise<unknown>) =>
  work.then(
    () => "counted",
    (error: { code: string }) => error.code,
  );

async function setUp() {
  const redis = connectRedis(process.env["TEST_REDIS_URL"]!, `${newId()}:`, createLog("silent"));
  await until("Redis is connected", () => redis.status === "ready");
  const deps = { redis, localCounts: createLocalCounts() };
  const attempt = (email: string, ip = "192.0.2.1", isKnown = false) =>
    codeOf(countAttempt(deps, { email, ip, isKnownAddress: () => Promise.resolve(isKnown) }));
  return { redis, deps, attempt };
}

test("thirty failures of an address are enough, whatever the accounts; the counter has a lifetime", async () => {
  const { redis, attempt } = await setUp();
  for (let i = 0; i < 30; i++) expect(await attempt(`${i}@example.org`)).toBe("counted");
  expect(await attempt("other@example.org")).toBe("too_many_attempts");
  expect(await redis.ttl(ADDRESS)).toBeWithin(800, 901);
  redis.disconnect();
});

test("a Redis that answers with an error is no Redis: the process counts", async () => {
  const { redis, attempt } = await setUp();
  await redis.lpush(ADDRESS, "not a number");
  for (let i = 0; i < 30; i++) expect(await attempt(`${i}@example.org`)).toBe("counted");
  expect(await attempt("other@example.org")).toBe("too_many_attempts");
  redis.disconnect();
});

test("a success forgets its account's failures and gives the address its count back, no more", async () => {
  const { redis, deps, attempt } = await setUp();
  for (let i = 0; i < 9; i++) await attempt("a@example.org");
  expect(await attempt("A@example.org")).toBe("counted");
  const who = { email: "a@example.org", ip: "192.0.2.1" };
  await Promise.all([takeBackAttempt(deps, who), forgetFailures(deps, who)]);
  expect([await redis.get(ADDRESS), await attempt("a@example.org")]).toEqual(["9", "counted"]);
  redis.disconnect();
});

test("IPv6 is counted by /64: another address of the same customer is no new start", async () => {
  const { redis, attempt } = await setUp();
  for (let i = 0; i < 10; i++) expect(await attempt("a@example.org", `2001:db8:1:2::${i}`)).toBe("counted");
  expect(await attempt("a@example.org", "2001:db8:1:2:ffff::1")).toBe("too_many_attempts");
  expect(await attempt("a@example.org", "2001:db8:1:3::1")).toBe("counted");
  redis.disconnect();
});

test("a guess from everywhere: after a hundred failures only an address of the account's own devices gets through", async () => {
  const { redis, attempt } = await setUp();
  for (let i = 0; i < 100; i++) expect(await attempt("a@example.org", `198.51.100.${i}`)).toBe("counted");
  expect(await attempt("a@example.org", "203.0.113.1")).toBe("too_many_attempts");
  expect(await attempt("a@example.org", "203.0.113.1", true)).toBe("counted");
  expect(await attempt("b@example.org", "203.0.113.1")).toBe("counted");
  redis.disconnect();
});

test("what is refused counts nowhere, and what was taken back neither", async () => {
  const { redis, deps, attempt } = await setUp();
  for (let i = 0; i < 15; i++) await attempt("a@example.org");
  expect(await redis.get(ADDRESS)).toBe("10");
  await takeBackAttempt(deps, { email: "a@example.org", ip: "192.0.2.1", ...nowhereKnown });
  expect([await redis.get(ADDRESS), await attempt("a@example.org")]).toEqual(["9", "counted"]);
  redis.disconnect();
});

test("who has no attempt left is sent away before anything is done, and asking counts nothing", async () => {
  const { redis, deps, attempt } = await setUp();
  const ask = () => codeOf(requireAttemptLeft(deps, { email: "a@example.org", ip: "192.0.2.1", ...nowhereKnown }));
  for (let i = 0; i < 20; i++) expect(await ask()).toBe("counted");
  for (let i = 0; i < 10; i++) await attempt("a@example.org");
  expect(await ask()).toBe("too_many_attempts");
  redis.disconnect();
});

test("requests of a kind are counted by address or by anything else, whose name stands in no key", async () => {
  const { redis, deps } = await setUp();
  const count = (kind: string, who: string | null) =>
    codeOf(countRequest(deps, { kind, who, limit: 3, windowSeconds: 60 }));
  for (const who of ["192.0.2.1", "2001:db8::1", "somebody@example.org", null]) {
    for (let i = 0; i < 3; i++) expect(await count("forgot", who)).toBe("counted");
    expect(await count("forgot", who)).toBe("too_many_attempts");
    expect(await count("verify", who)).toBe("counted");
  }
  expect(await count("forgot", "2001:db8::2")).toBe("too_many_attempts");
  const keys = await redis.keys(`${redis.options.keyPrefix}*`);
  expect(keys.length).toBe(8);
  expect(keys.join()).not.toContain("somebody");
  redis.disconnect();
});

test("Redis goes: the process knows its own failures. Redis is back: its word counts, nothing is doubled", async () => {
  const { redis, deps, attempt } = await setUp();
  for (let i = 0; i < 6; i++) await attempt("a@example.org");
  const away = { localCounts: deps.localCounts, redis: connectRedis("redis://127.0.0.1:1", "", createLog("silent")) };
  const attemptAway = () => codeOf(countAttempt(away, { email: "a@example.org", ip: "192.0.2.1", ...nowhereKnown }));
  for (let i = 0; i < 4; i++) expect(await attemptAway()).toBe("counted");
  expect(await attemptAway()).toBe("too_many_attempts");
  for (let i = 0; i < 4; i++) expect(await attempt("a@example.org")).toBe("counted");
  expect(await attempt("a@example.org")).toBe("too_many_attempts");
  away.redis.disconnect();
  redis.disconnect();
});

test("asking makes no counter, in Redis or here: who makes up accounts fills nothing and pushes nothing out", async () => {
  const { redis, deps, attempt } = await setUp();
  await attempt("a@example.org");
  const before = (await redis.keys(`${redis.options.keyPrefix}*`)).length;
  for (let i = 0; i < 10_001; i += 1) deps.localCounts.add(`made up ${i}`, 0, 60);
  for (let i = 0; i < 20; i++)
    await requireAttemptLeft(deps, { email: `${i}@example.org`, ip: "192.0.2.1", ...nowhereKnown });
  expect((await redis.keys(`${redis.options.keyPrefix}*`)).length).toBe(before);
  expect(deps.localCounts.add(ADDRESS, 0, 60).n).toBe(1);
  redis.disconnect();
});

test("an attempt is counted in one journey to Redis: it holds a place among the few that look at passwords", async () => {
  const asked: string[] = [];
  const silent = {
    set: (key: string) => (asked.push(key), silent),
    incrby: () => silent,
    ttl: () => silent,
    exec: () => new Promise(() => undefined),
  };
  const deps = { redis: { multi: () => silent } as unknown as Redis, localCounts: createLocalCounts() };
  void countAttempt(deps, { email: "a@example.org", ip: "192.0.2.1", ...nowhereKnown });
  await Bun.sleep(0);
  expect(asked.length).toBe(3);
});

test("seconds to wait are whole, also where the process counts", async () => {
  const away = {
    localCounts: createLocalCounts(),
    redis: connectRedis("redis://127.0.0.1:1", "", createLog("silent")),
  };
  const request = { kind: "forgot", who: null, limit: 1, windowSeconds: 60 };
  await countRequest(away, request);
  await Bun.sleep(3);
  const error = await countRequest(away, request).catch((thrown: AppError) => thrown);
  expect(Number.isInteger(error?.extras.retry_after)).toBe(true);
  away.redis.disconnect();
});

test("made-up keys push out the oldest counter, never all of them", () => {
  const counts = createLocalCounts();
  for (let i = 0; i < 10_001; i++) counts.add(`key ${i}`, 1, 60);
  expect([counts.add("key 0", 1, 60).n, counts.add("key 9999", 1, 60).n]).toEqual([1, 2]);
});
