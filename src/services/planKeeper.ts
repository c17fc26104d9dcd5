import { findPlanState, listEndedPlans, listUnapplied, lockPlan, type EndedPlan } from "../db/appliedPlans.ts";
import { endGrant } from "../db/subscriptions.ts";
import { describeError } from "../lib/errors.ts";
import { startLoop, type Loop } from "../lib/loop.ts";
import { syncCustomer, type BillingDeps } from "./billing.ts";
import { applyPlan } from "./billingPlan.ts";

const RESYNC_MS = 5_000;
const AT_ONCE = 100;
const JOB = { actor: "job:billing", ip: null, requestId: null };

export interface PlanKeeper extends Loop {
  /** What a person's plan rests on has changed, by whomever. */
  heard(userId: string): void;
  /** Something may have been missed: every entitlement is looked at. */
  lookAtAll(): void;
}

/**
 * Sees to it that the plan in force is the one applied, whoever has changed what it rests on: an entitlement of any
 * source, written by anybody, is told by the table's trigger; gifts and unpaid plans end by the clock. The limits are
 * right at any moment (plan_of()); this pauses assistants and lets them come back, mails and tells. Every process does it.
 */
export function startPlanKeeper(deps: BillingDeps): PlanKeeper {
  const told = new Set<string>();
  let all = true;
  const loop = startLoop({
    name: "plan keeper",
    debounceMs: 20,
    maxWaitMs: 200,
    resyncMs: RESYNC_MS,
    backoffMs: 1_000,
    log: deps.log,
    run: async (signal) => {
      if (all) {
        // Before it is looked: what changes meanwhile asks for another look.
        all = false;
        const found = await listUnapplied(deps.sql).catch((error: unknown) => {
          all = true;
          throw error;
        });
        for (const userId of found) told.add(userId);
      }
      const failures: unknown[] = [];
      const failed: string[] = [];
      // One who can't be served holds up nobody else.
      const serveHeard = async () => {
        for (const userId of told) {
          if (signal.aborted) return;
          told.delete(userId);
          await keepApplied(deps, userId).catch((error: unknown) => {
            failures.push(error);
            failed.push(userId);
          });
        }
      };
      await serveHeard();
      for (const ended of await listEndedPlans(deps.sql, { limit: AT_ONCE })) {
        if (signal.aborted) return;
        await endPlan(deps, ended).catch((error: unknown) => void failures.push(error));
        // Stripe may have kept it waiting.
        await serveHeard();
      }
      for (const userId of failed) told.add(userId);
      if (failures.length > 0) throw failures[0];
    },
  });
  return {
    ...loop,
    heard(userId) {
      told.add(userId);
      loop.wake();
    },
    lookAtAll() {
      all = true;
      loop.wake();
    },
  };
}

async function keepApplied(deps: BillingDeps, userId: string): Promise<void> {
  const state = await findPlanState(deps.sql, userId);
  if (!state || (state.applied === state.plan && state.fitted)) return;
  await endPlan(deps, { userId, customerId: state.overdueCustomerId });
}

async function endPlan(deps: BillingDeps, { userId, customerId }: EndedPlan): Promise<void> {
  // The payment may have come, and the webhook that says so be lost.
  if (customerId !== null && deps.stripe.isConfigured)
    await syncCustomer(deps, customerId).catch((error: unknown) =>
      deps.log.warn({ user_id: userId, reason: describeError(error) }, "a grace ends, and Stripe can't be asked"),
    );
  await deps.sql.begin(async (sql) => {
    await lockPlan(sql, userId);
    await endGrant(sql, { userId, over: true });
    await applyPlan(sql, userId, JOB);
  });
}
