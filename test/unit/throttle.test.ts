import { expect, test } from "bun:test";
import { connectRedis } from "../../src/clients/redis.ts";
import { newId } from "../../src/lib/ids.ts";
import { createLocalCounts } from "../../src/lib/localCounts.ts";
import { createLog } from "../../src/lib/log.ts";
import { countAttempt, forgetFailures } from "../../src/services/throttle.ts";
import { until } from "../harness.ts";

const ADDRESS = "throttle:login:192.0.2.1";

async function setUp() {
  const redis = connectRedis(process.env["TEST_REDIS_URL"]!, `${newId()}:`, createLog("silent"));
  await until("Redis is connected", () => redis.status === "ready");
  const deps = { redis, localCounts: createLocalCounts() };
  const attempt = (email: string) =>
    countAttempt(deps, { email, ip: "192.0.2.1" }).then(
      () => "counted",
      (error: { code: string }) => error.code,
    );
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
  await forgetFailures(deps, { email: "a@example.org", ip: "192.0.2.1" });
  expect([await redis.get(ADDRESS), await attempt("a@example.org")]).toEqual(["9", "counted"]);
  redis.disconnect();
});
