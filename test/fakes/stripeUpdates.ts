import type Stripe from "stripe";
import { change, emit, find, mergeMetadata, need, timeOf, type Account } from "./stripeAccount.ts";
import { needRecurringPrice } from "./stripeCatalog.ts";
import { billNow, changeSubscription, endSubscription, NO_DETAILS, voidInvoice } from "./stripeCollection.ts";
import { chargeableMethod } from "./stripeCustomers.ts";
import { actionRequired, cardDeclined, invalidRequest } from "./stripeErrors.ts";
import { makeInvoice, periodLines } from "./stripeInvoices.ts";
import { keepInvoiceItems, linesOfItems, pendingItems, prorate } from "./stripeProrations.ts";
import type { Params } from "./stripeParams.ts";
import { periodEnd } from "./stripePeriods.ts";
import { newStripeId, type InvoiceItem, type Price, type Subscription, type SubscriptionItem } from "./stripeState.ts";
import { applyEnd, ENDED, expireIncomplete, INCOMPLETE_SECONDS, setItemPrice } from "./stripeSubscriptions.ts";

/** How a subscription would stand after a change of its items, and what that change costs. */
interface Draft {
  next: Subscription;
  prorations: InvoiceItem[];
  /** A new cycle begins now: another interval, or asked for. */
  resets: boolean;
}

/** Items with an id are changed or deleted, one without is added: a plan is changed only by naming the item. */
export function draftChange(account: Account, subscription: Subscription, params: Params): Draft {
  const now = timeOf(account, subscription.customer);
  const at: number = params.proration_date ?? now;
  const next = structuredClone(subscription);
  const prorations: InvoiceItem[] = [];
  let resets = params.billing_cycle_anchor?.type === "now";
  for (const [index, wanted] of ((params.items ?? []) as Params[]).entries()) {
    const item = itemFor(account, next, wanted, index);
    const from = wanted.id ? { price: item.price as Price, quantity: item.quantity ?? 1 } : null;
    const price = wanted.price
      ? needRecurringPrice(account, wanted.price, `items[${index}][price]`)
      : (item.price as Price);
    const to = wanted.deleted ? null : { price, quantity: wanted.quantity ?? item.quantity ?? 1 };
    if (from && to && from.price.id === to.price.id && from.quantity === to.quantity) continue;
    if (from && to && !sameInterval(from.price, to.price)) resets = true;
    if (params.proration_behavior !== "none")
      prorations.push(...prorate(account, { subscription, item, from, to: resets ? null : to, at }));
    setItemPrice(item, price);
    item.quantity = to?.quantity ?? item.quantity ?? 1;
    if (wanted.deleted) next.items.data = next.items.data.filter((kept) => kept.id !== item.id);
  }
  if (resets) startCycle(next, now);
  return { next, prorations, resets };
}

function sameInterval(a: Price, b: Price): boolean {
  return a.recurring!.interval === b.recurring!.interval && a.recurring!.interval_count === b.recurring!.interval_count;
}

function itemFor(account: Account, next: Subscription, wanted: Params, index: number): SubscriptionItem {
  const found = next.items.data.find((item) => item.id === wanted.id);
  if (found) return found;
  if (wanted.id)
    throw invalidRequest(`No such subscription item: '${wanted.id}'`, {
      code: "resource_missing",
      param: `items[${index}][id]`,
    });
  const price = needRecurringPrice(account, wanted.price ?? "", `items[${index}][price]`);
  if (next.items.data.some((item) => item.price.id === price.id))
    throw invalidRequest(
      `Cannot add multiple subscription items with the same price: ${price.id}. Use quantity instead.`,
      { param: `items[${index}][price]` },
    );
  const item = { ...structuredClone(next.items.data[0]!), id: newStripeId("si"), quantity: wanted.quantity ?? 1 };
  next.items.data.push(item);
  return item;
}

/** A new cycle: from `at`, with all items' periods. */
export function startCycle(subscription: Subscription, at: number): void {
  subscription.billing_cycle_anchor = at;
  for (const item of subscription.items.data) {
    item.current_period_start = at;
    item.current_period_end = periodEnd(at, item.price as Price, at);
  }
}

function linesOf(account: Account, draft: Draft, items: InvoiceItem[]): Stripe.InvoiceLineItem[] {
  return [...linesOfItems(account, draft.next, items), ...(draft.resets ? periodLines(account, draft.next) : [])];
}

/** The invoice that a change would lead to, or the next renewal's; nothing is kept. */
export function previewInvoice(account: Account, params: Params) {
  if (!params.subscription) throw invalidRequest("This double previews invoices of a subscription only.");
  const subscription = need(account, "subscriptions", params.subscription, "subscription");
  const details: Params = params.subscription_details ?? {};
  const draft = draftChange(account, subscription, details);
  const items = [...pendingItems(account, subscription.id), ...draft.prorations];
  const lines = linesOf(account, draft, items);
  const now = timeOf(account, subscription.customer);
  const [first] = draft.next.items.data;
  if (!draft.resets && details.proration_behavior !== "always_invoice") {
    const coming = structuredClone(draft.next);
    for (const item of coming.items.data) {
      item.current_period_start = item.current_period_end;
      item.current_period_end = periodEnd(coming.billing_cycle_anchor, item.price as Price, item.current_period_end);
    }
    lines.push(...periodLines(account, coming));
  }
  const period = { start: first!.current_period_start, end: first!.current_period_end };
  const invoice = makeInvoice(account, { subscription, reason: "upcoming", lines, period, at: now });
  return { ...invoice, id: newStripeId("upcoming_in") };
}

export function updateSubscription(account: Account, id: string, params: Params): Subscription {
  const subscription = need(account, "subscriptions", id);
  refuse(subscription, params);
  if (params.default_payment_method)
    need(account, "paymentMethods", params.default_payment_method, "default_payment_method");
  const draft = draftChange(account, subscription, params);
  const behavior = params.payment_behavior ?? "allow_incomplete";
  const bills = draft.resets || (params.proration_behavior === "always_invoice" && draft.prorations.length > 0);
  const card = bills ? cardFor(account, subscription, draft) : "ok";
  if (behavior === "error_if_incomplete" && card === "requires_action")
    throw actionRequired("subscription_payment_intent_requires_action", null);
  if (behavior === "error_if_incomplete" && card !== "ok") throw cardDeclined(null, null);
  if (behavior === "pending_if_incomplete" && card !== "ok") return suspendUpdate(account, subscription, draft);
  changeSubscription(account, subscription, () => {
    subscription.items = draft.next.items;
    subscription.billing_cycle_anchor = draft.next.billing_cycle_anchor;
    setPlainFields(subscription, params);
    applyEnd(subscription, endParams(subscription, params), timeOf(account, subscription.customer));
  });
  keepInvoiceItems(account, draft.prorations);
  if (bills) billChange(account, subscription, draft, behavior !== "default_incomplete");
  return subscription;
}

/** Taking back an end that was set as a date (as the portal does) needs `cancel_at`, not the old flag. */
function endParams(subscription: Subscription, params: Params): Params {
  const useless = params.cancel_at_period_end === false && !subscription.cancel_at_period_end;
  return useless ? { ...params, cancel_at_period_end: undefined } : params;
}

function refuse(subscription: Subscription, params: Params): void {
  const allowed = new Set(["metadata", "cancellation_details", "expand"]);
  if (subscription.status === "incomplete") allowed.add("default_payment_method").add("default_source");
  const other = Object.keys(params).find((name) => !allowed.has(name));
  if (other && ENDED.includes(subscription.status))
    throw invalidRequest("A canceled subscription can only update its cancellation_details and metadata.");
  if (other && subscription.status === "incomplete")
    throw invalidRequest(
      `This subscription is incomplete: only its metadata and payment method can be updated until its first invoice is paid.`,
      { param: other },
    );
  if (params.cancel_at !== undefined && params.cancel_at_period_end !== undefined)
    throw invalidRequest("You may only specify one of these parameters: cancel_at, cancel_at_period_end.");
  const ends = params.cancel_at !== undefined || params.cancel_at_period_end !== undefined;
  if (subscription.schedule && ends)
    throw invalidRequest(
      `The subscription is managed by the subscription schedule \`${subscription.schedule}\`, and updating any cancelation behavior directly is not allowed. Please update the schedule instead.`,
    );
  for (const name of ["trial_end", "trial_from_plan"])
    if (params[name] !== undefined) throw invalidRequest("This double of Stripe knows no trials.", { param: name });
}

function setPlainFields(subscription: Subscription, params: Params): void {
  subscription.metadata = mergeMetadata(subscription.metadata, params.metadata);
  if (params.description !== undefined) subscription.description = params.description || null;
  if (params.default_payment_method !== undefined)
    subscription.default_payment_method = params.default_payment_method || null;
  if (params.pause_collection !== undefined)
    subscription.pause_collection =
      params.pause_collection === ""
        ? null
        : {
            behavior: params.pause_collection.behavior,
            resumes_at: params.pause_collection.resumes_at || null,
          };
  if (params.cancellation_details)
    subscription.cancellation_details = {
      ...NO_DETAILS,
      ...subscription.cancellation_details,
      ...params.cancellation_details,
    };
}

/** What the bank will say to the change's invoice; "ok" when there is nothing to pay. */
function cardFor(account: Account, subscription: Subscription, draft: Draft): string {
  const items = [...pendingItems(account, subscription.id), ...draft.prorations];
  const lines = linesOf(account, draft, items);
  const period = { start: 0, end: 0 };
  const preview = makeInvoice(account, { subscription, reason: "subscription_update", lines, period, at: 0 });
  if (preview.amount_due === 0) return "ok";
  const method = chargeableMethod(account, subscription.customer, subscription);
  return (method !== null && account.objects.cards[method]) || "declined";
}

function billChange(account: Account, subscription: Subscription, draft: Draft, collectNow: boolean) {
  const lines = linesOf(account, draft, pendingItems(account, subscription.id));
  const item = draft.next.items.data[0]!;
  const period = { start: item.current_period_start, end: item.current_period_end };
  return billNow(account, subscription, { lines, period, reason: "subscription_update" }, collectNow);
}

/** `pending_if_incomplete`: the change waits until its invoice is paid, for 23 hours. */
function suspendUpdate(account: Account, subscription: Subscription, draft: Draft): Subscription {
  keepInvoiceItems(account, draft.prorations);
  const at = timeOf(account, subscription.customer);
  changeSubscription(account, subscription, () => {
    subscription.pending_update = {
      billing_cycle_anchor: draft.resets ? draft.next.billing_cycle_anchor : null,
      cancel_at_period_end: null,
      discount: null,
      discounts: null,
      expires_at: at + INCOMPLETE_SECONDS,
      metadata: null,
      subscription_items: draft.next.items.data,
      trial_end: null,
      trial_from_plan: null,
    };
  });
  billChange(account, subscription, draft, true);
  return subscription;
}

export function applyPendingUpdate(account: Account, subscription: Subscription): void {
  const update = subscription.pending_update!;
  change(account, "customer.subscription.pending_update_applied", subscription, () => {
    subscription.items.data = update.subscription_items ?? subscription.items.data;
    subscription.billing_cycle_anchor = update.billing_cycle_anchor ?? subscription.billing_cycle_anchor;
    subscription.pending_update = null;
  });
  emit(account, "customer.subscription.updated", subscription, { pending_update: update });
}

/** The change was never paid: it is forgotten, its invoice void. */
export function expirePendingUpdate(account: Account, subscription: Subscription): void {
  const invoice = find(account, "invoices", subscription.latest_invoice);
  change(account, "customer.subscription.pending_update_expired", subscription, () => {
    subscription.pending_update = null;
  });
  if (invoice?.status === "open") voidInvoice(account, invoice);
}

/** At once. One that is over is unknown, as if it had never been. */
export function cancelSubscription(account: Account, id: string, params: Params): Subscription {
  const subscription = need(account, "subscriptions", id);
  if (ENDED.includes(subscription.status))
    throw Object.assign(invalidRequest(`No such subscription: '${id}'`, { code: "resource_missing", param: "id" }), {
      status: 404,
    });
  if (params.cancellation_details)
    subscription.cancellation_details = { ...NO_DETAILS, ...params.cancellation_details };
  if (subscription.status === "incomplete") {
    expireIncomplete(account, subscription);
    return subscription;
  }
  if (params.prorate) {
    const at = timeOf(account, subscription.customer);
    for (const item of subscription.items.data) {
      const from = { price: item.price as Price, quantity: item.quantity ?? 1 };
      keepInvoiceItems(account, prorate(account, { subscription, item, from, to: null, at }));
    }
  }
  if (params.invoice_now)
    billChange(account, subscription, { next: subscription, prorations: [], resets: false }, true);
  endSubscription(account, subscription, "cancellation_requested");
  return subscription;
}
