import { forgetCheckout } from "../db/checkouts.ts";
import { findPlanInForce, type PlanInForce } from "../db/planInForce.ts";
import { listPlans, type PlanForSale } from "../db/stripePrices.ts";
import { findPaid, type PaidSubscription } from "../db/subscriptions.ts";
import type { Deps } from "../deps.ts";
import { AppError, describeError } from "../lib/errors.ts";
import { withDeadline } from "../lib/retry.ts";
import type { Identity } from "./accessTokens.ts";
import { syncIfStale } from "./billing.ts";
import { isLiving } from "./checkout.ts";
import type { SaleDeps } from "./stripeWork.ts";
import { countRequest } from "./throttle.ts";

/** Who comes back from Stripe's pages sees what is so there, at most this old, also when the webhook is late. */
const FRESH_MS = 1_000;
/** Who looks without a pause is shown what is a little older. */
const LOOKS = { kind: "billing_look", limit: 120, windowSeconds: 15 * 60 };
const OLDER_MS = 30_000;
/** A look at the subscription does not wait longer for Stripe; the row is shown then. */
const PATIENCE_MS = 4_000;

/** How somebody's plan stands: what is in force, what they pay for (null: nothing ever), and whether a checkout waits. */
export interface SubscriptionView {
  inForce: PlanInForce;
  paid: PaidSubscription | null;
  checkoutOpen: boolean;
}

/** All plans, and whether each can be bought here now. */
export async function readPlans(deps: Pick<Deps, "sql" | "stripe">): Promise<(PlanForSale & { available: boolean })[]> {
  const { isConfigured, isLive } = deps.stripe;
  const plans = await listPlans(deps.sql, isConfigured ? isLive : null);
  return plans.map((plan) => ({ ...plan, available: plan.priceMonthMicroUsd === 0 || plan.priced }));
}

/** The actor's subscription; asks Stripe first when something may have happened there just now. Stripe away: as last known. */
export async function readSubscription(deps: SaleDeps, actor: Identity): Promise<SubscriptionView> {
  const { userId } = actor;
  const inForce = await getPlanInForce(deps, userId);
  if (deps.sales && (inForce.checkoutOpen || inForce.wasAtStripe)) {
    const maxAgeMs = await countRequest(deps, { ...LOOKS, who: userId }).then(
      () => FRESH_MS,
      () => OLDER_MS,
    );
    await withDeadline(syncIfStale(deps, userId, maxAgeMs), PATIENCE_MS, "the sync").catch((error: unknown) =>
      deps.log.info({ user_id: userId, reason: describeError(error) }, "the subscription is shown as last known"),
    );
  }
  return viewSubscription(deps, userId);
}

/** As the rows have it. */
export async function viewSubscription(deps: Pick<Deps, "sql">, userId: string): Promise<SubscriptionView> {
  const { sql } = deps;
  const inForce = await getPlanInForce(deps, userId);
  const paid = await findPaid(sql, userId);
  const bought = isLiving(paid) && paid.status !== "incomplete";
  // It was completed, or taken back: nothing says so but the subscription.
  if (bought && inForce.checkoutSessionId !== null)
    await forgetCheckout(sql, { userId, sessionId: inForce.checkoutSessionId });
  return { inForce, paid, checkoutOpen: inForce.checkoutOpen && !bought };
}

async function getPlanInForce({ sql }: Pick<Deps, "sql">, userId: string): Promise<PlanInForce> {
  const inForce = await findPlanInForce(sql, userId);
  if (!inForce) throw new AppError("unauthorized");
  return inForce;
}
