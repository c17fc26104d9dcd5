import { createHash } from "node:crypto";
import { isIP } from "node:net";
import type { Deps } from "../deps.ts";
import { addressBlock } from "../lib/clientAddress.ts";
import { AppError } from "../lib/errors.ts";

/*
 * Counters with a lifetime, in Redis for all processes and, beside it, in each process for its own share. While Redis is
 * away the process's own count decides: it has its own failures, not those of the others. When Redis is back its word
 * counts again, without what was counted meanwhile: an outage gives at most one more limit per process, and doubles none.
 */

const PAIR = { limit: 10, windowSeconds: 15 * 60 };
const ADDRESS = { limit: 30, windowSeconds: 15 * 60 };
/** From all addresses together (NIST SP 800-63B 5.2.2); the account's own devices' addresses are let through. */
const ACCOUNT = { limit: 100, windowSeconds: 60 * 60 };

type ThrottleDeps = Pick<Deps, "redis" | "localCounts">;
/** How many of something within a window that begins with the first. */
interface Counter {
  key: string;
  limit: number;
  windowSeconds: number;
}
interface Who {
  email: string;
  ip: string | null;
}
/** Whose password is tried, from where. `isKnownAddress` is asked only when the account is guessed at from everywhere. */
export interface Attempt extends Who {
  isKnownAddress: () => Promise<boolean>;
}

/** Requests of a kind (`signup`, `forgot` …) by `who`: an address (IPv6 by /64), or anything else, which is hashed. */
interface Requests {
  kind: string;
  who: string | null;
  limit: number;
  windowSeconds: number;
}

/** Counts a request. Throws `too_many_attempts` when there were more than `limit` within the window, which begins with the first. */
export async function countRequest(deps: ThrottleDeps, requests: Requests): Promise<void> {
  const { n, secondsLeft } = await add(deps, counterOf(requests), 1);
  if (n > requests.limit) throw new AppError("too_many_attempts", { retry_after: secondsLeft });
}

/**
 * Refuses who has made `limit` of them; counts nothing. For failures that are counted when they have happened, where
 * looking at a few more side by side helps nobody to guess: right ones side by side are never too many.
 */
export async function requireRequestLeft(deps: ThrottleDeps, requests: Requests): Promise<void> {
  const { n, secondsLeft } = await add(deps, counterOf(requests), 0);
  if (n >= requests.limit) throw new AppError("too_many_attempts", { retry_after: secondsLeft });
}

function counterOf({ kind, who, limit, windowSeconds }: Requests): Counter {
  const name = who === null || isIP(who) > 0 ? blockOf(who) : digestOf(who);
  return { key: `throttle:${kind}:${name}`, limit, windowSeconds };
}

/** Refuses who has no attempt left before anything is done for it; counts nothing. Throws `too_many_attempts`. */
export async function requireAttemptLeft(deps: ThrottleDeps, attempt: Attempt): Promise<void> {
  const { pair, address } = countersOf(attempt);
  const counts = await Promise.all(
    [pair, address].map(async (counter) => ({ counter, is: await add(deps, counter, 0) })),
  );
  const full = counts.find(({ counter, is }) => is.n >= counter.limit);
  if (full) throw new AppError("too_many_attempts", { retry_after: full.is.secondsLeft });
}

/**
 * Counts a sign-in before its password is looked at: attempts that run side by side must not all see the same old count.
 * Refuses after ten failures of this account from this address or thirty from this address in 15 minutes, so that nobody
 * else's failures block an account for its owner; after a hundred in an hour from everywhere only an address that the
 * account was used from gets through. What is refused counts nowhere. Throws `too_many_attempts`.
 */
export async function countAttempt(deps: ThrottleDeps, attempt: Attempt): Promise<void> {
  const { pair, address, account } = countersOf(attempt);
  // All at once: who is looked at holds one of few places, and Redis may be slow.
  const counts = await Promise.all(
    [pair, address, account].map(async (counter) => ({ counter, is: await add(deps, counter, 1) })),
  );
  const full = counts.find(({ counter, is }) => is.n > counter.limit);
  if (!full || (full.counter === account && (await attempt.isKnownAddress()))) return;
  await takeBackAttempt(deps, attempt);
  throw new AppError("too_many_attempts", { retry_after: full.is.secondsLeft });
}

/** Somebody has proven to own the account: forgets its failures from this address, or (`everywhere`) from all. */
export async function forgetFailures(deps: ThrottleDeps, who: Who, everywhere = false): Promise<void> {
  const { pair, account } = countersOf(who);
  const keys = everywhere ? [pair.key, account.key] : [pair.key];
  for (const key of keys) deps.localCounts.forget(key);
  await deps.redis.del(keys).catch(() => 0);
}

/** An attempt that was right, or could not be looked at, does not count. */
export async function takeBackAttempt(deps: ThrottleDeps, attempt: Who): Promise<void> {
  await Promise.all(Object.values(countersOf(attempt)).map((counter) => add(deps, counter, -1)));
}

function countersOf({ email, ip }: Who): Record<"pair" | "address" | "account", Counter> {
  const account = digestOf(email.toLowerCase());
  const address = blockOf(ip);
  return {
    pair: { key: `throttle:login:${account}:${address}`, ...PAIR },
    address: { key: `throttle:login:${address}`, ...ADDRESS },
    account: { key: `throttle:account:${account}`, ...ACCOUNT },
  };
}

// Mail addresses of people never stand in a key: a dump of Redis tells nobody's.
export function digestOf(text: string): string {
  return createHash("sha256").update(text).digest("base64url").slice(0, 22);
}

function blockOf(ip: string | null): string {
  return ip === null ? "unknown" : addressBlock(ip);
}

/** Adds to a counter and answers what it stands at; `by` 0 only looks, and makes none. */
// The lifetime begins with the first attempt (`EXPIRE … NX` would need Redis 7).
export async function add(
  deps: ThrottleDeps,
  counter: Counter,
  by: 1 | 0 | -1,
): Promise<{ n: number; secondsLeft: number }> {
  const { key, windowSeconds } = counter;
  const here = deps.localCounts.add(key, by, windowSeconds);
  try {
    const asked =
      by === 0
        ? deps.redis.multi().get(key)
        : deps.redis.multi().set(key, 0, "EX", windowSeconds, "NX").incrby(key, by);
    const replies = await asked.ttl(key).exec();
    const failed = replies?.find(([error]) => error !== null)?.[0];
    if (!replies || failed) throw failed ?? new Error("the transaction was not run");
    return { n: Number(replies.at(-2)?.[1]), secondsLeft: Number(replies.at(-1)?.[1]) };
  } catch {
    return here;
  }
}
