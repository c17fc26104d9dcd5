import { isCustomerGone } from "../clients/stripeTrouble.ts";
import { findStripeTraces } from "../db/deletions.ts";
import type { Deps } from "../deps.ts";
import { withStripeLease } from "./stripeWork.ts";

type EndDeps = Pick<Deps, "sql" | "stripe" | "sales">;

/**
 * Sees to it that nobody is billed who leaves: open checkouts are taken back first, so that nothing new begins, then every
 * living subscription is cancelled, then the customer is deleted at Stripe, with cards and address. Invoices and payments
 * stay there, as the law wants. A checkout that was under way ends before it, and none begins after. Safe to repeat;
 * rejects while Stripe can't be reached, or has no key here and something would go on costing.
 */
export async function endCustomer(
  deps: EndDeps,
  person: { userId: string; email: string | null; attempts: number },
): Promise<void> {
  const { userId, email, attempts } = person;
  const traces = await findStripeTraces(deps.sql, userId);
  if (!traces) return;
  const cancel = (id: string) =>
    deps.stripe.cancelSubscription({ id, key: `account-deletion:${userId}:${attempts}:${id}` });
  const { customerId, subscriptionId, costs } = traces;
  if (!deps.sales) return costs ? cancel(subscriptionId ?? "") : undefined;
  const { sales } = deps;
  await withStripeLease(deps, { userId, active: false }, async (lease) => {
    const calls = sales.within(lease.leftMs);
    if (customerId !== null && subscriptionId !== null) await lease.within(requireKnown(deps, customerId), "the look");
    const customers = new Set(customerId === null ? [] : [customerId]);
    // A process may have died, or lost Stripe's answer, before what it made was kept.
    if (email !== null && (customerId === null || traces.cutOff))
      for (const id of await calls.findCustomers({ email, userId })) customers.add(id);
    const living = new Set(subscriptionId === null ? [] : [subscriptionId]);
    for (const id of customers) {
      const open = await calls.listOpenCheckouts(id).catch(noneIfGone);
      for (const { id: checkout } of open) await calls.expireCheckout(checkout);
      for (const subscription of await calls.listLivingSubscriptions(id)) living.add(subscription);
    }
    for (const id of living) await lease.within(cancel(id), "cancelling");
    for (const id of customers) await calls.deleteCustomer(id);
  });
}

/** Somebody pays, but not in this account or mode of Stripe's: what is not found here would go on there. */
async function requireKnown({ stripe }: EndDeps, customerId: string): Promise<void> {
  if ((await stripe.findCustomer(customerId)) === null)
    throw new Error("Stripe never knew the customer of a living subscription; is the key right?");
}

function noneIfGone(error: unknown): never[] {
  if (isCustomerGone(error)) return [];
  throw error;
}
