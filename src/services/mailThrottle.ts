import type { Deps } from "../deps.ts";
import { add, countRequest, digestOf } from "./throttle.ts";

type ThrottleDeps = Pick<Deps, "redis" | "localCounts">;

/** An account gets at most so many mails of a kind, whoever asks for them. */
const MAILS = { limit: 3, windowSeconds: 3600 };
const ATTEMPTS = { limit: 1, windowSeconds: 24 * 3600 };
/** So many requests for mails may come from one address. */
const ASKED = { limit: 30, windowSeconds: 900 };

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
  const key = `throttle:mail:${kind}:${digestOf(account.toLowerCase())}`;
  const counter = { key, ...(kind === "attempt" ? ATTEMPTS : MAILS) };
  if ((await add(deps, counter, 1)).n > counter.limit) return false;
  try {
    await send();
    return true;
  } catch (error) {
    await add(deps, counter, -1);
    throw error;
  }
}

/** Counts a request for a mail where it comes from. Throws `too_many_attempts`, whether there is such an account or not. */
export async function countMailRequest(deps: ThrottleDeps, ip: string | null): Promise<void> {
  await countRequest(deps, { kind: "mail", who: ip, ...ASKED });
}
