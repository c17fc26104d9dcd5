import { createHash } from "node:crypto";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";

const WINDOW_SECONDS = 15 * 60;
const PAIR_LIMIT = 10;
const ADDRESS_LIMIT = 30;

type ThrottleDeps = Pick<Deps, "redis" | "localCounts">;
type Who = { email: string; ip: string | null };

/**
 * Counts a sign-in before its password is looked at: attempts that run side by side must not all see the same old count.
 * Refuses after ten failures of this account from this address, or thirty from this address, in 15 minutes; an account
 * is not blocked for its owner by somebody else's failures elsewhere. Throws `too_many_attempts`.
 */
export async function countAttempt(deps: ThrottleDeps, who: Who): Promise<void> {
  const { pair, address } = keysOf(who);
  const ofPair = await add(deps, pair, 1);
  if (ofPair.n > PAIR_LIMIT) throw new AppError("too_many_attempts", { retry_after: ofPair.secondsLeft });
  const ofAddress = await add(deps, address, 1);
  if (ofAddress.n <= ADDRESS_LIMIT) return;
  await add(deps, pair, -1);
  throw new AppError("too_many_attempts", { retry_after: ofAddress.secondsLeft });
}

/** The password was right: forgets the failures of this account from this address, and this attempt of the address. */
export async function forgetFailures(deps: ThrottleDeps, who: Who): Promise<void> {
  const { pair, address } = keysOf(who);
  deps.localCounts.forget(pair);
  await Promise.all([deps.redis.del(pair).catch(() => 0), add(deps, address, -1)]);
}

/** The password could not be looked at: the attempt does not count. */
export async function takeBackAttempt(deps: ThrottleDeps, who: Who): Promise<void> {
  await Promise.all(Object.values(keysOf(who)).map((key) => add(deps, key, -1)));
}

// Addresses of people never stand in a key: a dump of Redis tells nobody's.
function keysOf(who: Who): { pair: string; address: string } {
  const account = createHash("sha256").update(who.email.toLowerCase()).digest("base64url").slice(0, 22);
  const address = who.ip ?? "unknown";
  return { pair: `throttle:login:${account}:${address}`, address: `throttle:login:${address}` };
}

// The lifetime begins with the first attempt (`EXPIRE … NX` would need Redis 7). Redis away, or unable to: count here.
export async function add(deps: ThrottleDeps, key: string, by: 1 | -1): Promise<{ n: number; secondsLeft: number }> {
  try {
    const replies = await deps.redis.multi().set(key, 0, "EX", WINDOW_SECONDS, "NX").incrby(key, by).ttl(key).exec();
    const failed = replies?.find(([error]) => error !== null)?.[0];
    if (!replies || failed) throw failed ?? new Error("the transaction was not run");
    return { n: Number(replies[1]?.[1]), secondsLeft: Number(replies[2]?.[1]) };
  } catch {
    return deps.localCounts.add(key, by, WINDOW_SECONDS);
  }
}
