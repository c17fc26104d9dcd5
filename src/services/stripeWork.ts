import { readStripeTrouble } from "../clients/stripeTrouble.ts";
import type { StripeSales } from "../clients/stripeSales.ts";
import { claimStripeLease, findStripeLease, releaseStripeLease } from "../db/stripeLeases.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import { backoffDelay, sleep, withDeadline } from "../lib/retry.ts";
import { syncCustomer, type BillingDeps } from "./billing.ts";

/*
 * How anything is done at Stripe for a person: by one process at a time, within a time, and with a clear end when Stripe
 * does not answer. Who dies in the midst of it is followed by another when the lease has run out; so each piece of work
 * looks at what is there first, and may be repeated from any point.
 */

/** One piece of work, all calls together. */
const WORK_MS = 15_000;
/** Beyond the work's time, so that who has lost its time has also stopped. */
const LEASE_MS = WORK_MS + 5_000;
const WAIT_MS = 8_000;
const LOOK_AGAIN_MS = 60;
const LOOK_AGAIN_CAP_MS = 400;
const RETRY_SECONDS = 5;

/** What selling touches. */
export type SaleDeps = BillingDeps & Pick<Deps, "sales" | "localCounts">;

/** The right to do something at Stripe for a person. */
export interface StripeLease {
  userId: string;
  /** Names this lease; no other work has the same. */
  token: string;
  /** Milliseconds; throws `billing_unavailable` when there are none. */
  leftMs: () => number;
  /** The rest of the time for something that does not know of it. Throws as above. */
  within<T>(work: Promise<T>, what: string): Promise<T>;
}

/** Throws `billing_not_configured` where there is no key. */
export function requireSales(deps: Pick<Deps, "sales">): StripeSales {
  if (!deps.sales) throw new AppError("billing_not_configured");
  return deps.sales;
}

/**
 * Does a piece of work at Stripe for an active user that nobody else does meanwhile. Throws `billing_unavailable` when
 * Stripe does not do its part or somebody else takes too long, `account_suspended`.
 */
export async function withStripe<T>(
  deps: Pick<Deps, "sql" | "log">,
  userId: string,
  work: (lease: StripeLease) => Promise<T>,
): Promise<T> {
  return withStripeLease(deps, { userId, active: true }, work).catch((error: unknown) => {
    throw renderFailure(deps, userId, error);
  });
}

/** The same with Stripe's own errors; `active` false: also for a user who is leaving. */
export async function withStripeLease<T>(
  deps: Pick<Deps, "sql">,
  input: { userId: string; active: boolean },
  work: (lease: StripeLease) => Promise<T>,
): Promise<T> {
  const lease = await waitForLease(deps, input);
  const release = (seen: boolean) =>
    releaseStripeLease(deps.sql, { userId: input.userId, token: lease.token, seen }).catch(() => undefined);
  try {
    const result = await work(lease);
    await release(true);
    return result;
  } catch (error) {
    await release(error instanceof AppError && error.code !== "billing_unavailable");
    throw error;
  }
}

/** What a person is told of a failed call; the log knows which. Anything else is passed on as it is. */
export function renderFailure(deps: Pick<Deps, "log">, userId: string, error: unknown): unknown {
  const trouble = readStripeTrouble(error);
  if (!trouble) return error;
  const { retryAfterSeconds, ...rest } = trouble;
  const level = trouble.kind === "refused" ? "error" : "warn";
  deps.log[level]({ user_id: userId, ...rest }, "Stripe did not do what it was asked");
  return new AppError("billing_unavailable", { retry_after: retryAfterSeconds ?? RETRY_SECONDS });
}

/**
 * Makes the user's row what Stripe says now, within the lease's time. Throws `billing_not_configured` when something is
 * paid for of which nobody knows what it is, or in another account: then nothing more may be sold.
 */
export async function syncNow(deps: BillingDeps, lease: StripeLease, customerId: string): Promise<void> {
  const { outcome } = await lease.within(syncCustomer(deps, customerId), "the sync");
  if (outcome === "unknown_price" || outcome === "missing_customer") throw new AppError("billing_not_configured");
  // Another customer has taken its place just now.
  if (outcome === "unknown_customer") throw new AppError("billing_unavailable", { retry_after: 1 });
}

async function waitForLease(
  { sql }: Pick<Deps, "sql">,
  { userId, active }: { userId: string; active: boolean },
): Promise<StripeLease> {
  const giveUpAt = performance.now() + WAIT_MS;
  for (let tries = 0; ; tries++) {
    const lease = startLease(userId);
    if (await claimStripeLease(sql, { userId, token: lease.token, leaseMs: LEASE_MS, active })) return lease;
    const held = await findStripeLease(sql, userId);
    if (!held) throw new AppError("unauthorized");
    if (active && !held.active) throw new AppError("account_suspended");
    if (performance.now() > giveUpAt)
      throw new AppError("billing_unavailable", { retry_after: Math.max(1, Math.ceil(held.secondsLeft)) });
    await sleep(backoffDelay(tries, LOOK_AGAIN_MS, LOOK_AGAIN_CAP_MS));
  }
}

function startLease(userId: string): StripeLease {
  const endsAt = performance.now() + WORK_MS;
  const tooLate = () => new AppError("billing_unavailable", { retry_after: RETRY_SECONDS });
  const leftMs = () => {
    const left = endsAt - performance.now();
    if (left <= 0) throw tooLate();
    return left;
  };
  return {
    userId,
    token: newId(),
    leftMs,
    within: (work, what) =>
      withDeadline(work, Math.max(0, endsAt - performance.now()), what).catch((error: unknown) => {
        throw performance.now() >= endsAt ? tooLate() : error;
      }),
  };
}
