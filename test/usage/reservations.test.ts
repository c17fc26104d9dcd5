import { afterAll, beforeAll, expect, test } from "bun:test";
import { getUsage, type Amounts } from "../../src/db/usage.ts";
import { newId } from "../../src/lib/ids.ts";
import { findCheapRefusal, isRefused, reserveUsage, settleUsage, sweepReservations } from "../../src/services/usage.ts";
import { makeUser } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

/** Reserves in a transaction of its own; null: refused. `expiresInMs` below zero: it has run out already. */
async function reserve(userId: string, amounts: Partial<Amounts>, expiresInMs: number | null = null) {
  const key = newId();
  const outcome = await reef.deps.sql.begin(async (sql) => {
    const usage = await getUsage(sql, userId);
    return reserveUsage(reef.deps, sql, { userId, key, usage, amounts, expiresInMs });
  });
  return isRefused(outcome) ? null : key;
}
const settle = (userId: string, key: string, how: Omit<Parameters<typeof settleUsage>[2], "userId" | "key">) =>
  reef.deps.sql.begin((sql) => settleUsage(reef.deps, sql, { userId, key, ...how }));
const givePlan = (userId: string, plan: string) => reef.sql`
  insert into subscriptions (user_id, plan) values (${userId}, ${plan})`;

test("a plan that grows after it was read and before the reservation: nobody is refused by the old one", async () => {
  const user = await makeUser(reef);
  expect(await reserve(user.id, { textMessages: 50 })).not.toBe(null);
  const outcome = await reef.deps.sql.begin(async (sql) => {
    const usage = await getUsage(sql, user.id);
    await givePlan(user.id, "pro");
    const input = { userId: user.id, key: newId(), usage, amounts: { textMessages: 1 }, expiresInMs: null };
    return reserveUsage(reef.deps, sql, input);
  });
  expect(outcome).toMatchObject({ plan: "pro", used: { textMessages: 51 }, limits: { textMessages: 500 } });
});

test("a settlement that took all that was left and was rolled back: nobody is refused because of it", async () => {
  const user = await makeUser(reef);
  const seconds = { voiceInputSeconds: 120 };
  expect(await reserve(user.id, { voiceInputSeconds: 121 })).toBe(null);
  const key = (await reserve(user.id, { voiceInputSeconds: 10 }))!;
  const rolledBack = reef.deps.sql.begin(async (sql) => {
    const settled = await settleUsage(reef.deps, sql, { userId: user.id, key, status: "committed", actual: seconds });
    expect(settled!.totals!.voiceInputSeconds).toBe(120);
    throw new Error("rolled back");
  });
  expect(await rolledBack.catch((error: Error) => error.message)).toBe("rolled back");
  expect(await findCheapRefusal(reef.deps, user.id, { voiceInputSeconds: 1 })).toBe(null);
  expect(await reserve(user.id, { voiceInputSeconds: 110 })).not.toBe(null);
});

test("a refusal on its way to Redis while the plan grows does not bring the old plan back", async () => {
  const user = await makeUser(reef);
  expect(await reserve(user.id, { textMessages: 50 })).not.toBe(null);
  const slow = Promise.withResolvers<void>();
  const asked = Promise.withResolvers<void>();
  const { redis } = reef.deps;
  const late = {
    eval: async (...args: Parameters<typeof redis.eval>) => {
      asked.resolve();
      await slow.promise;
      return redis.eval(...args);
    },
  } as unknown as typeof redis;
  const refused = reef.deps.sql.begin(async (sql) => {
    const input = { userId: user.id, key: newId(), amounts: { textMessages: 1 }, expiresInMs: null };
    return reserveUsage({ ...reef.deps, redis: late }, sql, { ...input, usage: await getUsage(sql, user.id) });
  });
  await asked.promise;
  await givePlan(user.id, "pro");
  await until("the change was heard", async () => (await redis.get(`plan:${user.id}`)) === "");
  slow.resolve();
  expect(isRefused(await refused)).toBe(true);
  expect(await findCheapRefusal(reef.deps, user.id, { textMessages: 1 })).toBe(null);
  expect(await reserve(user.id, { textMessages: 1 })).not.toBe(null);
});

test("more than a day has, and more than a column holds: refused, and nothing is reserved", async () => {
  const user = await makeUser(reef);
  for (const seconds of [121, 2 ** 31, 2 ** 60, Number.POSITIVE_INFINITY])
    expect(await reserve(user.id, { voiceInputSeconds: seconds, ttsCharacters: 1 })).toBe(null);
  expect((await reef.sql`select 1 from daily_usage where user_id = ${user.id}`).length).toBe(0);
});

test("settled once: kinds that were not used come back, tokens and cost are counted once, a second time changes nothing", async () => {
  const user = await makeUser(reef);
  const key = (await reserve(user.id, { voiceOutputSeconds: 10, ttsCharacters: 100 }))!;
  const cost = { model: "tts-1", inputTokens: 7, outputTokens: 3, costMicroUsd: 5 };
  const how = { status: "committed" as const, actual: { voiceOutputSeconds: 0, ttsCharacters: 120 }, cost };
  const settled = await settle(user.id, key, how);
  expect(settled!.returned).toMatchObject({ voiceOutputSeconds: 10, ttsCharacters: -20 });
  expect(await settle(user.id, key, { status: "released" })).toBe(null);
  expect(await settle(user.id, key, how)).toBe(null);
  const rows =
    await reef.sql`select kind, status, amount, model from usage_logs where idempotency_key = ${key} order by kind`;
  expect(rows as unknown[]).toEqual([
    { kind: "tts_characters", status: "committed", amount: 120, model: "tts-1" },
    { kind: "voice_output_seconds", status: "released", amount: 10, model: "tts-1" },
  ]);
  const [sums] = await reef.sql`select sum(input_tokens)::int as input, sum(output_tokens)::int as output,
    sum(cost_micro_usd)::int as cost from usage_logs where idempotency_key = ${key}`;
  expect(sums).toEqual({ input: 7, output: 3, cost: 5 });
  expect((await getUsage(reef.sql, user.id)).used).toMatchObject({ voiceOutputSeconds: 0, ttsCharacters: 120 });
});

test("a reservation settled by many at once is settled by one", async () => {
  const user = await makeUser(reef);
  for (let round = 0; round < 10; round++) {
    const key = (await reserve(user.id, { textMessages: 1, voiceInputSeconds: 5, ttsCharacters: 100 }))!;
    const ways = [
      { status: "committed" },
      { status: "released" },
      { status: "committed", actual: { ttsCharacters: 9 } },
    ];
    const all = await Promise.all(Array.from({ length: 6 }, (_, n) => settle(user.id, key, ways[n % 3] as never)));
    expect(all.filter((settled) => settled !== null).length).toBe(1);
  }
  const [row] = await reef.sql`
    select d.tts_characters = (select coalesce(sum(amount), 0) from usage_logs
      where user_id = d.user_id and kind = 'tts_characters' and status = 'committed') as same
    from daily_usage d where user_id = ${user.id}`;
  expect(row).toEqual({ same: true });
});

test("a sweep gives back all that has run out, however much it is, also behind one that can't be given back", async () => {
  const broken = await makeUser(reef);
  const user = await makeUser(reef);
  await givePlan(user.id, "premium");
  expect(await reserve(broken.id, { textMessages: 1 }, -60_000)).not.toBe(null);
  // Whoever mended a database by hand may have left this.
  await reef.sql`update daily_usage set text_messages = 0 where user_id = ${broken.id}`;
  const keys = await Promise.all(Array.from({ length: 230 }, () => reserve(user.id, { textMessages: 1 }, -30_000)));
  const living = await reserve(user.id, { textMessages: 1, voiceInputSeconds: 3 }, 30_000);
  expect([...keys, living]).not.toContain(null);
  expect(await sweepReservations(reef.deps).catch((error: { code: string }) => error.code)).toBe("23514");
  const { used } = await getUsage(reef.sql, user.id);
  expect([used.textMessages, used.voiceInputSeconds]).toEqual([1, 3]);
  await reef.sql`delete from usage_logs where user_id = ${broken.id}`;
  await sweepReservations(reef.deps);
});
