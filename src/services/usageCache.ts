import type { Redis } from "ioredis";
import { z } from "zod";
import type { Totals, Usage } from "../db/usage.ts";
import type { Deps } from "../deps.ts";

/*
 * What Redis remembers of a user's day, only to say a cheap "no" to what does not fit any more; never a "yes".
 * `plan:{userId}`: the plan's limits and the day in force, for five minutes. When the plan changes it is an empty text for a
 * while, so that whoever read the plan before can't bring it back.
 * `ratelimit:{userId}:{date}`: the totals by which Postgres has just refused something; after something came back only the
 * number of that change, and nobody is refused by it.
 * Both are written while the day's row is locked, so in the order of what they say. What reaches Redis late all the same (its
 * sender gave up waiting and went on) has a lower `version` than what came after it, and changes nothing.
 */

type CacheDeps = Pick<Deps, "redis" | "config" | "clock">;

const PLAN_MS = 300_000;
/** A change that a process could not tell of (its Redis was out of reach) goes on refusing somebody no longer than this. */
export const TOTALS_MS = 10_000;
/** Longer than a transaction may take that has read a plan before it changed (db/timeouts.ts). */
const PLAN_CHANGE_MS = 60_000;
/** As a user's id: everybody's plan may have changed. */
export const EVERYONE = "everyone";

const amounts = z.object({
  textMessages: z.number(),
  voiceInputSeconds: z.number(),
  voiceOutputSeconds: z.number(),
  ttsCharacters: z.number(),
});
const planSchema = z.object({
  date: z.string(),
  timezone: z.string(),
  resetAt: z.coerce.date(),
  plan: z.string(),
  upgradeTo: z.string().nullable(),
  voices: z.array(z.string()),
  ttsModel: z.string(),
  limits: amounts,
});
const refusalSchema = z.object({ version: z.number(), used: amounts });

const READ = `
local plan = redis.call('get', KEYS[1])
if not plan or plan == '' or redis.call('exists', KEYS[2]) == 1 then return {false, false} end
return {plan, redis.call('get', ARGV[1] .. cjson.decode(plan).date)}`;

const KEEP_REFUSAL = `
if redis.call('get', KEYS[1]) == '' then return 0 end
local held = redis.call('get', KEYS[2])
if held and cjson.decode(held).version > tonumber(ARGV[5]) then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
redis.call('set', KEYS[2], ARGV[3], 'px', ARGV[4])
return 1`;

const KEEP_RETURN = `
local held = redis.call('get', KEYS[1])
if held and cjson.decode(held).version > tonumber(ARGV[3]) then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
return 1`;

const planKey = (userId: string) => `plan:${userId}`;
const dayKey = (userId: string, date: string) => `ratelimit:${userId}:${date}`;

/** The day by which the user was refused something just now; null when nothing is known of one, or Redis is away. */
export async function findRefusedDay(deps: CacheDeps, userId: string): Promise<Usage | null> {
  const { redis, config, clock } = deps;
  try {
    const keys = [planKey(userId), planKey(EVERYONE)];
    const answer = await redis.eval(READ, keys.length, ...keys, config.REDIS_PREFIX + dayKey(userId, ""));
    const [plan, totals] = answer as (string | null)[];
    if (!plan || !totals) return null;
    const day = planSchema.parse(JSON.parse(plan));
    const refusal = refusalSchema.safeParse(JSON.parse(totals)).data;
    return refusal && day.resetAt.getTime() > clock.now() ? { ...day, active: true, ...refusal } : null;
  } catch {
    return null;
  }
}

/** Remembers by what Postgres has refused something. Call it while the day is locked. */
export async function keepRefusal(deps: CacheDeps, userId: string, usage: Usage): Promise<void> {
  const { used, version, active: _, ...plan } = usage;
  const lifeMs = Math.ceil(Math.min(PLAN_MS, usage.resetAt.getTime() - deps.clock.now()));
  if (lifeMs <= 0) return;
  const keys = [planKey(userId), dayKey(userId, usage.date)];
  const refusal = JSON.stringify({ version, used });
  const args = [JSON.stringify(plan), lifeMs, refusal, TOTALS_MS, version];
  await deps.redis.eval(KEEP_REFUSAL, keys.length, ...keys, ...args).catch(() => 0);
}

/** Forgets by what the user was refused: something came back. Call it while the day is locked, before that commits. */
export async function keepReturn(deps: CacheDeps, userId: string, { date, version }: Totals): Promise<void> {
  const args = [JSON.stringify({ version }), TOTALS_MS, version];
  await deps.redis.eval(KEEP_RETURN, 1, dayKey(userId, date), ...args).catch(() => 0);
}

/** Forgets a plan that has changed, or everybody's. */
export async function forgetPlan(redis: Redis, userId: string): Promise<void> {
  await redis.set(planKey(userId), "", "PX", PLAN_CHANGE_MS).catch(() => null);
}
