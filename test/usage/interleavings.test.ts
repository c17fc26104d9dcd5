import { afterAll, beforeAll, expect, test } from "bun:test";
import { Redis } from "ioredis";
import { connectDatabase } from "../../src/db/connect.ts";
import { createTestDatabase } from "../harness.ts";
import { explore } from "./explore.ts";
import { Violation, type Lane } from "./run.ts";

/** Another beginning, more runs or longer ones: by hand, in the environment. */
const number = (name: string, usual: number) => Number(process.env[name] ?? usual);
const FIRST_SEED = number("USAGE_SEED", 1);
const RUNS = number("USAGE_RUNS", 10);
const STEPS = number("USAGE_STEPS", 140);
const LANES = 5;

const lanes: Lane[] = [];
beforeAll(async () => {
  const redisUrl = process.env["TEST_REDIS_URL"]!;
  for (let n = 0; n < LANES; n++) {
    const databaseUrl = await createTestDatabase();
    const sql = connectDatabase(databaseUrl, { max: 2, name: "usage truth" });
    lanes.push({ databaseUrl, redisUrl, sql, redis: new Redis(redisUrl) });
  }
});
afterAll(async () => {
  for (const lane of lanes) {
    lane.redis.disconnect();
    await lane.sql.end({ timeout: 1 });
  }
});

test("random interleavings of reservations, settlements, crashes, lost Redis and changed plans: what must be true is true", async () => {
  const seeds = Array.from({ length: RUNS }, (_, n) => FIRST_SEED + n);
  const counts: Record<string, number> = {};
  const violations: string[] = [];
  const work = async (lane: Lane) => {
    for (let seed = seeds.shift(); seed !== undefined; seed = seeds.shift()) {
      try {
        for (const [what, n] of Object.entries(await explore(lane, seed, STEPS)))
          counts[what] = (counts[what] ?? 0) + n;
      } catch (error) {
        if (!(error instanceof Violation)) throw error;
        violations.push(error.message);
      }
    }
  };
  await Promise.all(lanes.map(work));
  console.log(`usage: seeds ${FIRST_SEED} to ${FIRST_SEED + RUNS - 1}, ${JSON.stringify(counts)}`);
  expect(violations).toEqual([]);
  // Else it would say nothing.
  for (const what of ["granted", "refused by redis", "refused by postgres", "settle", "swept"])
    expect([what, (counts[what] ?? 0) > RUNS]).toEqual([what, true]);
}, 480_000);
