import { createHash } from "node:crypto";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";

const WINDOW_SECONDS = 15 * 60;
const LIMITS = { pair: 10, address: 30 } as const;

type ThrottleDeps = Pick<Deps, "redis" | "localCounts">;

/**
 * Refuses a sign-in after ten failures of this account from this address, or thirty from this address, in 15 minutes.
 * An account is not blocked for its owner by somebody else's failures elsewhere. Throws `too_many_attempts`.
 */
export async function requireNotThrottled(
  deps: ThrottleDeps,
  who: { email: string; ip: string | null },
): Promise<void> {
  const keys = keysOf(who);
  for (const [kind, key] of Object.entries(keys) as ["pair" | "address", string][]) {
    const { n, secondsLeft } = await readCount(deps, key);
    if (n >= LIMITS[kind]) throw new AppError("too_many_attempts", { retry_after: secondsLeft });
  }
}

export async function countFailure(deps: ThrottleDeps, who: { email: string; ip: string | null }): Promise<void> {
  for (const key of Object.values(keysOf(who))) await addOne(deps, key);
}

/** A success forgets the failures of this account from this address. */
export async function forgetFailures(deps: ThrottleDeps, who: { email: string; ip: string | null }): Promise<void> {
  const { pair } = keysOf(who);
  deps.localCounts.forget(pair);
  await deps.redis.del(pair).catch(() => 0);
}

// Addresses of people never stand in a key: a dump of Redis tells nobody's.
function keysOf(who: { email: string; ip: string | null }): { pair: string; address: string } {
  const account = createHash("sha256").update(who.email.toLowerCase()).digest("base64url").slice(0, 22);
  const address = who.ip ?? "unknown";
  return { pair: `throttle:login:${account}:${address}`, address: `throttle:login:${address}` };
}

async function readCount(deps: ThrottleDeps, key: string): Promise<{ n: number; secondsLeft: number }> {
  try {
    const [n, ttl] = await Promise.all([deps.redis.get(key), deps.redis.ttl(key)]);
    return { n: Number(n ?? 0), secondsLeft: ttl > 0 ? ttl : WINDOW_SECONDS };
  } catch {
    return deps.localCounts.read(key);
  }
}

async function addOne(deps: ThrottleDeps, key: string): Promise<void> {
  try {
    await deps.redis.multi().incr(key).expire(key, WINDOW_SECONDS, "NX").exec();
  } catch {
    deps.localCounts.add(key, WINDOW_SECONDS);
  }
}
