import { listUnapplied } from "../db/appliedPlans.ts";
import { withAdvisoryLock } from "../db/locks.ts";
import type { Deps } from "../deps.ts";
import { startLoop, type Loop } from "../lib/loop.ts";
import type { BillingDeps } from "./billing.ts";
import { compareBilling, type CompareOptions, type Difference } from "./billingDrift.ts";
import { applyPlan } from "./billingPlan.ts";
import type { JobResult } from "./jobs.ts";
import { syncOrAdopt } from "./stripeCustomers.ts";
import { watchBillingDrift } from "./watchAlarms.ts";

type ReconcileDeps = BillingDeps & Pick<Deps, "metrics" | "processId" | "alarmSender">;

const LOCK = "billing";
const SLOT = "billing:slot";
/** Longer than a comparison may take (db/locks.ts). */
const SLOT_MS = 900_000;
const LOOK_MS = 60_000;
const SETTLE_MS = 10_000;
const JOB = { actor: "job:billing", ip: null, requestId: null };

/** What a reconciliation found, and what of it is right now. */
export interface Reconciled {
  compared: number;
  repaired: Difference[];
  left: Difference[];
}

/**
 * Compares everything with Stripe and puts right what differs, by the same fetch as a webhook would. What can't be put
 * right is left and logged as an alarm. Rejects when Stripe does not answer, or when one could not be worked at; that one
 * holds up nobody else.
 */
export async function reconcileBilling(deps: ReconcileDeps, options: CompareOptions): Promise<Reconciled> {
  const { compared, differences } = await compareBilling(deps, options);
  const [repaired, left]: [Difference[], Difference[]] = [[], []];
  const failures: unknown[] = [];
  for (const difference of differences) {
    if (options.signal?.aborted) break;
    const { customerId, userId, what } = difference;
    deps.metrics.billingDrift.inc();
    const synced = await syncOrAdopt(deps, customerId).catch((error: unknown) => void failures.push(error));
    if (!synced) continue;
    const { outcome } = synced;
    const isRight = outcome === "stored" || outcome === "superseded";
    (isRight ? repaired : left).push(difference);
    const about = { customer_id: customerId, user_id: userId, what, outcome };
    deps.log[isRight ? "warn" : "error"](about, "a subscription was not what Stripe says");
  }
  for (const userId of await listUnapplied(deps.sql)) {
    if (await deps.sql.begin((sql) => applyPlan(sql, userId, JOB))) deps.metrics.billingDrift.inc();
  }
  if (!options.signal?.aborted && (failures.length === 0 || left.length > 0)) await watchBillingDrift(deps, left);
  if (failures.length > 0) throw failures[0];
  return { compared, repaired, left };
}

/**
 * One reconciliation, as a timer's job (src/jobs/reconcileBilling.ts). Under the same lock as the processes' own, which
 * then have nothing to do for the next one and a half BILLING_RECONCILE_MS: they step in where no timer does it.
 */
export async function reconcileBillingNow(deps: ReconcileDeps, signal: AbortSignal): Promise<JobResult> {
  const { config, redis, processId, stripe } = deps;
  if (!stripe.isConfigured) return { ok: true, summary: "nothing is sold here (no STRIPE_SECRET_KEY)" };
  const done = await withAdvisoryLock(deps.sql, LOCK, (lock) =>
    reconcileBilling(deps, { settleMs: settleMs(config), signal: AbortSignal.any([signal, lock.signal]) }),
  );
  if (!done) return { ok: true, summary: "a process of the API is at it" };
  await redis.set(SLOT, processId, "PX", Math.round(config.BILLING_RECONCILE_MS * 1.5)).catch(() => null);
  const [compared, repaired, left] = [done.compared, done.repaired.length, done.left.length];
  const advice = left > 0 ? "; `reef admin billing repair` names what a person has to look at" : "";
  return {
    // What is left has an alarm of its own, `stripe-drift`: the comparison itself has not failed.
    ok: true,
    summary: `${compared} customers compared with Stripe, ${repaired} put right, ${left} left${advice}`,
    details: { compared, repaired, left },
  };
}

/**
 * Reconciles every BILLING_RECONCILE_MS, one process at a time: a place in Redis says when it is time again, a lock that
 * nobody else is at it. Without Redis each process does it for itself, one after the other.
 */
export function startBillingReconciler(deps: ReconcileDeps): Loop {
  const everyMs = deps.config.BILLING_RECONCILE_MS;
  let notBefore = Date.now() + Math.min(everyMs, LOOK_MS) / 2;
  return startLoop({
    name: "billing reconciler",
    debounceMs: 20,
    maxWaitMs: 200,
    resyncMs: Math.min(everyMs, LOOK_MS),
    backoffMs: 1_000,
    log: deps.log,
    run: async (signal) => {
      if (!deps.stripe.isConfigured || Date.now() < notBefore || !(await takeSlot(deps))) return;
      try {
        const done = await withAdvisoryLock(deps.sql, LOCK, (lock) =>
          reconcileBilling(deps, { settleMs: settleMs(deps.config), signal: AbortSignal.any([signal, lock.signal]) }),
        );
        if (done)
          deps.log.info(
            { compared: done.compared, drift: done.repaired.length + done.left.length },
            "billing compared",
          );
        notBefore = Date.now() + everyMs * 0.9;
        await deps.redis.pexpire(SLOT, everyMs).catch(() => 0);
      } catch (error) {
        await deps.redis.pexpire(SLOT, Math.min(everyMs, LOOK_MS)).catch(() => 0);
        throw error;
      }
    },
  });
}

function settleMs({ BILLING_RECONCILE_MS }: ReconcileDeps["config"]): number {
  return Math.min(SETTLE_MS, BILLING_RECONCILE_MS / 2);
}

async function takeSlot({ redis, processId }: ReconcileDeps): Promise<boolean> {
  return redis.set(SLOT, processId, "PX", SLOT_MS, "NX").then(
    (answer) => answer === "OK",
    () => true,
  );
}
