import type Stripe from "stripe";
import { emit, find, mergeMetadata, need, timeOf, type Account } from "./stripeAccount.ts";
import { needRecurringPrice } from "./stripeCatalog.ts";
import { billNow, changeSubscription, endSubscription, voidInvoice } from "./stripeCollection.ts";
import { chargeableMethod, forgetCustomer } from "./stripeCustomers.ts";
import { actionRequired, cardDeclined, invalidRequest } from "./stripeErrors.ts";
import { periodLines } from "./stripeInvoices.ts";
import type { Params } from "./stripeParams.ts";
import { periodEnd } from "./stripePeriods.ts";
import { newStripeId, wholeList, type Price, type Subscription, type SubscriptionItem } from "./stripeState.ts";

/** Seconds that a first payment may take. */
export const INCOMPLETE_SECONDS = 23 * 3600;
/** Nothing happens to these any more. */
export const ENDED = ["canceled", "incomplete_expired"];

/** The old name of a price; still on every item. */
function planOf(price: Price): Stripe.Plan {
  return {
    id: price.id,
    object: "plan",
    active: price.active,
    amount: price.unit_amount,
    amount_decimal: price.unit_amount_decimal,
    billing_scheme: price.billing_scheme,
    created: price.created,
    currency: price.currency,
    interval: price.recurring!.interval,
    interval_count: price.recurring!.interval_count,
    livemode: price.livemode,
    metadata: price.metadata,
    meter: null,
    nickname: price.nickname,
    product: price.product,
    tiers_mode: null,
    transform_usage: null,
    trial_period_days: null,
    usage_type: price.recurring!.usage_type,
  };
}

/** Puts a price on an item. The period is the caller's business. */
export function setItemPrice(item: SubscriptionItem, price: Price): void {
  item.price = structuredClone(price) as Stripe.Price;
  item.plan = planOf(price);
}

interface NewSubscription {
  customer: string;
  prices: { price: Price; quantity: number }[];
  metadata: Record<string, string>;
  description: string | null;
  method: string | null;
  billingMode: "classic" | "flexible";
}

/** In its first period from now on, not yet paid, not yet kept. */
export function makeSubscription(account: Account, input: NewSubscription): Subscription {
  const id = newStripeId("sub");
  const at = timeOf(account, input.customer);
  const items = input.prices.map(({ price, quantity }) => {
    const item = {
      id: newStripeId("si"),
      object: "subscription_item",
      billing_thresholds: null,
      created: at,
      current_period_end: periodEnd(at, price, at),
      current_period_start: at,
      current_trial: null,
      discounts: [],
      metadata: {},
      quantity,
      subscription: id,
      tax_rates: [],
    } as unknown as SubscriptionItem;
    setItemPrice(item, price);
    return item;
  });
  return {
    ...SUBSCRIPTION_DEFAULTS,
    id,
    billing_cycle_anchor: at,
    billing_mode:
      input.billingMode === "flexible"
        ? { flexible: { proration_discounts: "included" }, type: "flexible" }
        : { flexible: null, type: "classic" },
    created: at,
    currency: input.prices[0]!.price.currency,
    customer: input.customer,
    default_payment_method: input.method,
    description: input.description,
    items: wholeList(items, `/v1/subscription_items?subscription=${id}`),
    livemode: account.live,
    metadata: input.metadata,
    start_date: at,
    test_clock: (need(account, "customers", input.customer).test_clock as string | null | undefined) ?? null,
  };
}

const SUBSCRIPTION_DEFAULTS = {
  object: "subscription" as const,
  application: null,
  application_fee_percent: null,
  automatic_tax: { disabled_reason: null, enabled: false, liability: null },
  billing_cycle_anchor_config: null,
  billing_schedules: [],
  billing_thresholds: null,
  cancel_at: null,
  cancel_at_period_end: false,
  canceled_at: null,
  cancellation_details: { comment: null, feedback: null, feedback_option: null, reason: null },
  collection_method: "charge_automatically" as const,
  customer_account: null,
  days_until_due: null,
  default_source: null,
  default_tax_rates: [],
  discounts: [],
  ended_at: null,
  invoice_settings: {
    account_tax_ids: null,
    custom_fields: null,
    description: null,
    footer: null,
    issuer: { type: "self" as const },
  },
  latest_invoice: null,
  managed_payments: null,
  next_pending_invoice_item_invoice: null,
  on_behalf_of: null,
  pause_collection: null,
  payment_settings: {
    payment_method_options: null,
    payment_method_types: null,
    save_default_payment_method: "off" as const,
  },
  pending_invoice_item_interval: null,
  pending_setup_intent: null,
  pending_update: null,
  schedule: null,
  status: "incomplete" as const,
  transfer_data: null,
  trial_end: null,
  trial_settings: {
    end_behavior: { billing_cycle_anchor: null, missing_payment_method: "create_invoice" as const },
  },
  trial_start: null,
};

function refuseTrials(params: Params): void {
  for (const name of ["trial_end", "trial_period_days", "trial_from_plan"])
    if (params[name] !== undefined) throw invalidRequest("This double of Stripe knows no trials.", { param: name });
}

/** By the API: the first invoice is charged within the request, and the one event has the outcome. */
export function createSubscription(account: Account, params: Params): Subscription {
  if (!params.customer) throw invalidRequest("Missing required param: customer.", { param: "customer" });
  const customer = need(account, "customers", params.customer, "customer");
  refuseTrials(params);
  if (!params.items?.length)
    throw invalidRequest("Missing required param: items.", { code: "parameter_missing", param: "items" });
  const prices = params.items.map((item: Params, index: number) => ({
    price: needRecurringPrice(account, item.price ?? "", `items[${index}][price]`),
    quantity: item.quantity ?? 1,
  }));
  const behavior = params.payment_behavior ?? "allow_incomplete";
  const method = params.default_payment_method ?? null;
  if (method) need(account, "paymentMethods", method, "default_payment_method");
  const payWith = chargeableMethod(account, customer.id, { default_payment_method: method });
  if (!payWith && behavior !== "default_incomplete")
    throw invalidRequest(
      "This customer has no attached payment source or default payment method. Please consider adding a default payment method. For more information, visit https://stripe.com/docs/billing/subscriptions/payment-methods-setting#payment-method-priority.",
      { code: "resource_missing" },
    );
  const card = payWith ? account.objects.cards[payWith] : undefined;
  if (behavior === "error_if_incomplete" && card === "declined") throw cardDeclined(null, null);
  if (behavior === "error_if_incomplete" && card === "requires_action")
    throw actionRequired("subscription_payment_intent_requires_action", null);
  const subscription = makeSubscription(account, {
    customer: customer.id,
    prices,
    metadata: mergeMetadata({}, params.metadata),
    description: params.description || null,
    method,
    billingMode: params.billing_mode?.type ?? account.settings.billingMode,
  });
  applyEnd(subscription, params);
  startBilling(account, subscription, behavior !== "default_incomplete");
  account.objects.subscriptions[subscription.id] = subscription;
  emit(account, "customer.subscription.created", subscription);
  return subscription;
}

/** The first invoice. The subscription is active when it is paid, else incomplete. */
export function startBilling(account: Account, subscription: Subscription, collectNow: boolean) {
  const item = subscription.items.data[0]!;
  const period = { start: item.current_period_start, end: item.current_period_start };
  const lines = periodLines(account, subscription);
  const billed = billNow(account, subscription, { lines, period, reason: "subscription_create" }, collectNow);
  if (billed.outcome === "paid") subscription.status = "active";
  return billed;
}

/** `cancel_at_period_end` and `cancel_at`, on a new one or a changed one. */
export function applyEnd(subscription: Subscription, params: Params, at = subscription.created): void {
  const end = Math.min(...subscription.items.data.map((item) => item.current_period_end));
  if (params.cancel_at_period_end !== undefined) {
    subscription.cancel_at_period_end = params.cancel_at_period_end;
    subscription.cancel_at = params.cancel_at_period_end ? end : null;
  } else if (params.cancel_at !== undefined) {
    const named = typeof params.cancel_at === "string" && params.cancel_at !== "";
    subscription.cancel_at = named ? end : params.cancel_at || null;
    subscription.cancel_at_period_end = false;
  } else return;
  const ends = subscription.cancel_at !== null;
  subscription.canceled_at = ends ? at : null;
  subscription.cancellation_details = {
    comment: null,
    feedback: null,
    feedback_option: null,
    reason: ends ? "cancellation_requested" : null,
  };
}

/** Stops a first payment that never came. Stripe says `updated`, not `deleted`, and voids the invoice. */
export function expireIncomplete(account: Account, subscription: Subscription): void {
  const at = timeOf(account, subscription.customer);
  changeSubscription(account, subscription, () => {
    subscription.status = "incomplete_expired";
    subscription.ended_at = at;
    subscription.canceled_at = at;
  });
  const invoice = find(account, "invoices", subscription.latest_invoice);
  if (invoice?.status === "open") voidInvoice(account, invoice);
}

export function listSubscriptions(account: Account, params: Params): Subscription[] {
  if (params.customer && !find(account, "deletedCustomers", params.customer))
    need(account, "customers", params.customer, "customer");
  return Object.values(account.objects.subscriptions).filter(
    (subscription) =>
      (!params.customer || subscription.customer === params.customer) &&
      hasStatus(subscription.status, params.status) &&
      (!params.price || subscription.items.data.some((item) => item.price.id === params.price)) &&
      (!params.collection_method || subscription.collection_method === params.collection_method) &&
      (params.customer || (params.test_clock ?? null) === subscription.test_clock),
  );
}

function hasStatus(status: string, wanted: string | undefined): boolean {
  if (wanted === undefined) return status !== "canceled";
  if (wanted === "all") return true;
  return wanted === "ended" ? ENDED.includes(status) : status === wanted;
}

/** A customer goes: what it paid for ends at once, then the record. */
export function deleteCustomer(account: Account, id: string) {
  need(account, "customers", id);
  for (const subscription of Object.values(account.objects.subscriptions)) {
    if (subscription.customer !== id || ENDED.includes(subscription.status)) continue;
    if (subscription.status === "incomplete") expireIncomplete(account, subscription);
    else endSubscription(account, subscription, "cancellation_requested");
  }
  return forgetCustomer(account, id);
}
