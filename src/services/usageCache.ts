import type { Redis } from "ioredis";
import { z } from "zod";
import type { Amounts, Totals, Usage } from "../db/usage.ts";
import type { Deps } from "../deps.ts";

/*
 * What Redis remembers of a user's day, only to say a cheap "no" to somebody who has used it up; never a "yes".
 * `plan:{userId}`: the plan's limits and the day in force, for five minutes. Whoever changes a plan puts a mark in
 * its place for some seconds, so that who has read the old one just before can't bring it back.
 * `ratelimit:{userId}:{date}`: the day's totals as Postgres last returned them, written where they reached a limit or came
 * down. Of two readings the later one stays (`version`), so a "full" that was overtaken by a release can't come back.
 */

type CacheDeps = Pick<Deps, "redis" | "config" | "clock">;

const PLAN_MS = 300_000;
/** Longer than anybody goes on with a plan that they have read. */
const CHANGED_MS = 5_000;
const CHANGED = "changed";
/** A total that a process could not tell of (it died, or its Redis was out of reach) refuses nobody longer than this. */
const TOTALS_MS = 10_000;

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
const totalsSchema = amounts.extend({ version: z.number() });

const READ = `
local plan = redis.call('get', KEYS[1])
if not plan or plan == '${CHANGED}' then return {false, false} end
return {plan, redis.call('get', ARGV[1] .. cjson.decode(plan).date)}`;

const KEEP = `
if redis.call('get', KEYS[1]) == '${CHANGED}' then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
return 1`;

const FORGET = `
if redis.call('get', KEYS[1]) == '${CHANGED}' then return 0 end
return redis.call('del', KEYS[1])`;

const WRITE = `
local held = redis.call('get', KEYS[1])
if held and cjson.decode(held).version > tonumber(ARGV[2]) then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[3])
return 1`;

/** The user's day as Redis remembers it; null when it does not, or is away. Totals are of the last change it heard of. */
export async function findCachedUsage(deps: CacheDeps, userId: string): Promise<Usage | null> {
  const { redis, config, clock } = deps;
  try {
    const totalsKey = `${config.REDIS_PREFIX}ratelimit:${userId}:`;
    const [plan, totals] = (await redis.eval(READ, 1, `plan:${userId}`, totalsKey)) as (string | null)[];
    if (!plan || !totals) return null;
    const day = planSchema.parse(JSON.parse(plan));
    const { version, ...used } = totalsSchema.parse(JSON.parse(totals));
    return day.resetAt.getTime() > clock.now() ? { ...day, active: true, used, version } : null;
  } catch {
    return null;
  }
}

/** Remembers a plan and its day. */
export async function keepPlan(deps: CacheDeps, userId: string, usage: Usage): Promise<void> {
  const { used: _, version: __, active: ___, ...plan } = usage;
  const lifeMs = Math.min(PLAN_MS, usage.resetAt.getTime() - deps.clock.now());
  if (lifeMs <= 0) return;
  await deps.redis.eval(KEEP, 1, `plan:${userId}`, JSON.stringify(plan), Math.ceil(lifeMs)).catch(() => 0);
}

/** Forgets a plan: it has changed, perhaps. */
export async function forgetPlan(redis: Redis, userId: string): Promise<void> {
  await redis.eval(FORGET, 1, `plan:${userId}`).catch(() => 0);
}

/** Forgets a plan that is just being changed, and whatever anybody still brings of the old one. */
export async function forgetOldPlan(redis: Redis, userId: string): Promise<void> {
  await redis.set(`plan:${userId}`, CHANGED, "PX", CHANGED_MS).catch(() => null);
}

/** Remembers a day's totals, unless later ones are known. */
export async function keepTotals(
  deps: CacheDeps,
  userId: string,
  { date, version, ...used }: Totals | (Amounts & { date: string; version: number }),
): Promise<void> {
  const value = JSON.stringify({ ...used, version });
  await deps.redis.eval(WRITE, 1, `ratelimit:${userId}:${date}`, value, version, TOTALS_MS).catch(() => 0);
}
