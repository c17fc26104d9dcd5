import { emit, need, timeOf, type Account } from "./stripeAccount.ts";
import { billNow, changeSubscription } from "./stripeCollection.ts";
import { invalidRequest } from "./stripeErrors.ts";
import { periodLines } from "./stripeInvoices.ts";
import { keepInvoiceItems, linesOfItems, pendingItems, prorate } from "./stripeProrations.ts";
import type { Params } from "./stripeParams.ts";
import { periodEnd } from "./stripePeriods.ts";
import type { Price, Subscription } from "./stripeState.ts";
import { startCycle } from "./stripeUpdates.ts";

/** Stops a subscription: no invoices, no new periods, until it is resumed. Not the same as `pause_collection`. */
export function pauseSubscription(account: Account, id: string, params: Params): Subscription {
  const subscription = need(account, "subscriptions", id);
  if (subscription.schedule) throw invalidRequest("You cannot pause a subscription that has a schedule attached.");
  if (!["active", "past_due"].includes(subscription.status))
    throw invalidRequest(`You cannot pause a subscription with status \`${subscription.status}\`.`);
  const at = timeOf(account, subscription.customer);
  if ((params.bill_for?.unused_time_from?.type ?? "now") !== "none")
    for (const item of subscription.items.data) {
      const from = { price: item.price as Price, quantity: item.quantity ?? 1 };
      keepInvoiceItems(account, prorate(account, { subscription, item, from, to: null, at }));
    }
  changeSubscription(account, subscription, () => {
    subscription.status = "paused";
    subscription.status_details = {
      paused: { subscription: { type: "pause_requested" }, transitioned_at: at, type: "subscription" },
    };
  });
  emit(account, "customer.subscription.paused", subscription);
  return subscription;
}

export function resumeSubscription(account: Account, id: string, params: Params): Subscription {
  const subscription = need(account, "subscriptions", id);
  if (subscription.status !== "paused")
    throw invalidRequest("Only subscriptions with the status `paused` can be resumed.");
  const at = timeOf(account, subscription.customer);
  const onSuccess = params.payment_behavior === "resume_on_payment_success";
  if (params.billing_cycle_anchor?.type === "unchanged") catchUp(subscription, at);
  else startCycle(subscription, at);
  const item = subscription.items.data[0]!;
  const lines = linesOfItems(account, subscription, pendingItems(account, subscription.id));
  if (item.current_period_start === at) lines.push(...periodLines(account, subscription));
  if (!onSuccess || lines.length === 0) finishResume(account, subscription);
  const period = { start: item.current_period_start, end: item.current_period_end };
  if (lines.length > 0) billNow(account, subscription, { lines, period, reason: "subscription_update" });
  return subscription;
}

/** The period in which we are now, counted from the old anchor. */
function catchUp(subscription: Subscription, at: number): void {
  for (const item of subscription.items.data)
    while (item.current_period_end <= at) {
      item.current_period_start = item.current_period_end;
      item.current_period_end = periodEnd(
        subscription.billing_cycle_anchor,
        item.price as Price,
        item.current_period_start,
      );
    }
}

/** Paused no more: at once, or when the resumption's invoice is paid. */
export function finishResume(account: Account, subscription: Subscription): void {
  changeSubscription(account, subscription, () => {
    subscription.status = "active";
    delete subscription.status_details;
  });
  emit(account, "customer.subscription.resumed", subscription);
}
