import { createHash } from "node:crypto";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";

type ThrottleDeps = Pick<Deps, "redis" | "localCounts">;

const HOUR_SECONDS = 3600;
const ASKED_SECONDS = 900;
/** An account gets at most so many mails of a kind in an hour, whoever asks for them. */
const MAILS_AN_HOUR = 3;
const ATTEMPT_SECONDS = 24 * HOUR_SECONDS;
/** So many requests for mails may come from one address in a quarter of an hour. */
const ASKED_FROM_ADDRESS = 30;

type MailKind = "reset" | "verify" | "attempt";

/**
 * Runs `send` unless the account got its share of such mails; tells whether it ran. `account` is an id or an address,
 * of an account or of none. A `send` that fails does not count.
 */
export async function mailInLimits(
  deps: ThrottleDeps,
  kind: MailKind,
  account: string,
  send: () => Promise<void>,
): Promise<boolean> {
  // Addresses of people never stand in a key: a dump of Redis tells nobody's.
  const hash = createHash("sha256").update(account.toLowerCase()).digest("base64url").slice(0, 22);
  const key = `throttle:mail:${kind}:${hash}`;
  const [limit, seconds] = kind === "attempt" ? [1, ATTEMPT_SECONDS] : [MAILS_AN_HOUR, HOUR_SECONDS];
  if ((await add(deps, key, 1, seconds)).n > limit) return false;
  try {
    await send();
    return true;
  } catch (error) {
    await add(deps, key, -1, seconds);
    throw error;
  }
}

/** Counts a request for a mail where it comes from. Throws `too_many_attempts`, whether there is such an account or not. */
export async function countMailRequest(deps: ThrottleDeps, ip: string | null): Promise<void> {
  const { n, secondsLeft } = await add(deps, `throttle:mail:from:${ip ?? "unknown"}`, 1, ASKED_SECONDS);
  if (n > ASKED_FROM_ADDRESS) throw new AppError("too_many_attempts", { retry_after: secondsLeft });
}

// As in throttle.ts: the lifetime begins with the first one; Redis away, or unable to: count here.
async function add(
  deps: ThrottleDeps,
  key: string,
  by: 1 | -1,
  seconds: number,
): Promise<{ n: number; secondsLeft: number }> {
  try {
    const replies = await deps.redis.multi().set(key, 0, "EX", seconds, "NX").incrby(key, by).ttl(key).exec();
    const failed = replies?.find(([error]) => error !== null)?.[0];
    if (!replies || failed) throw failed ?? new Error("the transaction was not run");
    return { n: Number(replies[1]?.[1]), secondsLeft: Number(replies[2]?.[1]) };
  } catch {
    return deps.localCounts.add(key, by, seconds);
  }
}
