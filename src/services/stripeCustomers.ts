import { adoptCustomer } from "../db/stripeCustomers.ts";
import { id } from "../protocol/fields.ts";
import { syncCustomer, type BillingDeps, type Synced } from "./billing.ts";
import { isLive } from "./billingChoice.ts";

/*
 * Whose a customer is. `stripe_customers` says it: a user has one row, for ever, and its `customer_id` is another one only
 * when Stripe has deleted the first (`gone_at`). Whoever makes a customer for a user does so where there is no row or
 * `gone_at` is set, under an idempotency key that names the customer before (so that Stripe does not answer with the one
 * it deleted), with `metadata.user_id`, and then writes the new id and `gone_at = null` into the row.
 */

/** `syncCustomer`, also for a customer that no row knows and that says at Stripe whose it is. */
export async function syncOrAdopt(deps: BillingDeps, customerId: string): Promise<Synced> {
  const synced = await syncCustomer(deps, customerId);
  if (synced.outcome !== "unknown_customer" || !(await adopt(deps, customerId))) return synced;
  return syncCustomer(deps, customerId);
}

/**
 * Takes in a customer whose row was lost, or is only about to be written. False when it is nobody's here: other things
 * may be sold from the same account, and deleted accounts leave late events. Logs as an alarm when such a one pays.
 */
async function adopt({ sql, stripe, log }: BillingDeps, customerId: string): Promise<boolean> {
  const found = await stripe.findCustomer(customerId);
  const { data: userId } = id.safeParse(found?.userId);
  if (!userId) return false;
  const about = { user_id: userId, customer_id: customerId };
  if (await sql.begin((tx) => adoptCustomer(tx, { userId, customerId }))) {
    log.warn(about, "a customer of Stripe's was taken in");
    return true;
  }
  if ((await stripe.listSubscriptions(customerId))?.some(isLive))
    log.error(about, "somebody pays who is nobody here, or a second time");
  return false;
}
