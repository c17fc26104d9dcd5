import { change, emit, find, need, timeOf, type Account } from "./stripeAccount.ts";
import { refuseBadUrl } from "./stripeCheckout.ts";
import { changeSubscription, collect, endSubscription, NO_DETAILS, type Outcome } from "./stripeCollection.ts";
import { addCard, chargeableMethod } from "./stripeCustomers.ts";
import { invalidRequest, StripeFault } from "./stripeErrors.ts";
import type { Params } from "./stripeParams.ts";
import { defaultConfiguration, type Features } from "./stripePortalConfig.ts";
import { createSchedule, releaseSchedule, updateSchedule } from "./stripeSchedules.ts";
import { newStripeId, type Card, type PortalSession, type Price, type Subscription } from "./stripeState.ts";
import { expireIncomplete } from "./stripeSubscriptions.ts";
import { updateSubscription } from "./stripeUpdates.ts";

export function createPortalSession(account: Account, params: Params): PortalSession {
  if (!params.customer) throw invalidRequest("Missing required param: customer.", { param: "customer" });
  need(account, "customers", params.customer, "customer");
  refuseBadUrl(params, "return_url");
  const configuration = params.configuration
    ? need(account, "portalConfigurations", params.configuration, "configuration")
    : defaultConfiguration(account);
  if (!configuration.active) throw invalidRequest("The configuration is inactive.", { param: "configuration" });
  const id = newStripeId("bps");
  const session: PortalSession = {
    id,
    object: "billing_portal.session",
    configuration: configuration.id,
    created: timeOf(account, params.customer),
    customer: params.customer,
    customer_account: null,
    flow: params.flow_data ? flowOf(account, params.customer, params.flow_data) : null,
    livemode: account.live,
    locale: params.locale ?? null,
    on_behalf_of: null,
    return_url: params.return_url ?? configuration.default_return_url,
    url: `${account.url}/p/session/${id}`,
  };
  account.objects.portalSessions[id] = session;
  emit(account, "billing_portal.session.created", session);
  return session;
}

function flowOf(account: Account, customer: string, given: Params): PortalSession["flow"] {
  const details = given[given.type];
  if (details?.subscription) {
    const param = `flow_data[${given.type}][subscription]`;
    const subscription = need(account, "subscriptions", details.subscription, param);
    if (subscription.customer !== customer)
      throw invalidRequest(`No such subscription: '${subscription.id}'`, { code: "resource_missing", param });
    if (given.type === "subscription_cancel" && subscription.cancel_at !== null)
      throw invalidRequest("Subscription is already set to be canceled.", { param });
  } else if (given.type.startsWith("subscription_"))
    throw invalidRequest(`Missing required param: flow_data[${given.type}].`, {
      code: "parameter_missing",
      param: `flow_data[${given.type}]`,
    });
  return {
    after_completion: { hosted_confirmation: null, redirect: null, type: "portal_homepage", ...given.after_completion },
    customer_update: null,
    subscription_cancel: given.subscription_cancel ? { retention: null, ...given.subscription_cancel } : null,
    subscription_pause: given.subscription_pause ?? null,
    subscription_update: given.subscription_update ?? null,
    subscription_update_confirm: given.subscription_update_confirm
      ? { discounts: null, ...given.subscription_update_confirm }
      : null,
    type: given.type,
  };
}

/** What the person may do there: by their newest session. */
export function portalFeatures(account: Account, customerId: string): Features {
  const session = Object.values(account.objects.portalSessions).findLast((one) => one.customer === customerId);
  const configuration = find(account, "portalConfigurations", session?.configuration ?? null);
  return (configuration ?? defaultConfiguration(account)).features;
}

/** The person cancels. In flexible billing the portal sets a date and leaves the old flag false. */
export function portalCancel(account: Account, id: string): void {
  const subscription = need(account, "subscriptions", id);
  const { mode } = portalFeatures(account, subscription.customer).subscription_cancel;
  if (subscription.schedule) releaseSchedule(account, subscription.schedule);
  if (subscription.status === "incomplete") return expireIncomplete(account, subscription);
  if (mode === "immediately") return endSubscription(account, subscription, "cancellation_requested");
  changeSubscription(account, subscription, () => {
    const end = Math.min(...subscription.items.data.map((item) => item.current_period_end));
    subscription.cancel_at = end;
    subscription.cancel_at_period_end = subscription.billing_mode.type === "classic";
    subscription.canceled_at = timeOf(account, subscription.customer);
    subscription.cancellation_details = { ...NO_DETAILS, reason: "cancellation_requested" };
  });
}

/** The person takes the cancellation back. */
export function portalResume(account: Account, id: string): void {
  const subscription = need(account, "subscriptions", id);
  changeSubscription(account, subscription, () => {
    subscription.cancel_at = null;
    subscription.cancel_at_period_end = false;
    subscription.canceled_at = null;
    subscription.cancellation_details = NO_DETAILS;
  });
}

/** The prices that the portal offers, the present one among them. */
export function portalPrices(account: Account, customerId: string): Price[] {
  const { enabled, products } = portalFeatures(account, customerId).subscription_update;
  if (!enabled) return [];
  const allowed = products && new Set(products.flatMap((product) => product.prices));
  return Object.values(account.objects.prices).filter(
    (price) => price.active && price.recurring && (!allowed || allowed.has(price.id)),
  );
}

/** The person takes another plan. Without money it does not happen; a bank's question is answered on the spot. */
export function portalChangePlan(account: Account, id: string, priceId: string): "changed" | "declined" | "scheduled" {
  const subscription = need(account, "subscriptions", id);
  const price = need(account, "prices", priceId);
  const item = subscription.items.data[0]!;
  if (subscription.schedule) releaseSchedule(account, subscription.schedule);
  if (item.price.id === priceId) return "changed";
  const features = portalFeatures(account, subscription.customer).subscription_update;
  if (waitsForPeriodEnd(account, subscription, price)) {
    scheduleChange(account, subscription, price);
    return "scheduled";
  }
  const method = chargeableMethod(account, subscription.customer, subscription);
  const card = method ? account.objects.cards[method] : undefined;
  if (method && card === "requires_action") account.objects.cards[method] = "ok";
  try {
    updateSubscription(account, id, {
      items: [{ id: item.id, price: priceId }],
      proration_behavior: features.proration_behavior,
      payment_behavior: "error_if_incomplete",
    });
    return "changed";
  } catch (error) {
    if (error instanceof StripeFault && error.status === 402) return "declined";
    throw error;
  } finally {
    if (method && card) account.objects.cards[method] = card;
  }
}

/** Whether the portal lets a change wait for what is paid for to end. */
export function waitsForPeriodEnd(account: Account, subscription: Subscription, price: Price): boolean {
  const { schedule_at_period_end } = portalFeatures(account, subscription.customer).subscription_update;
  const from = subscription.items.data[0]!.price as Price;
  return schedule_at_period_end.conditions.some(({ type }) => holds(type, from, price));
}

const MONTHS: Record<string, number> = { day: 1 / 30, week: 1 / 4, month: 1, year: 12 };

function holds(condition: string, from: Price, to: Price): boolean {
  const months = (price: Price) => MONTHS[price.recurring!.interval]! * price.recurring!.interval_count;
  if (condition === "shortening_interval") return months(to) < months(from);
  return condition === "decreasing_item_amount" && (to.unit_amount ?? 0) < (from.unit_amount ?? 0);
}

function scheduleChange(account: Account, subscription: Subscription, price: Price): void {
  const schedule = createSchedule(account, { from_subscription: subscription.id });
  const current = schedule.phases[0]!;
  const item = subscription.items.data[0]!;
  const quantity = item.quantity ?? 1;
  const { interval, interval_count } = price.recurring!;
  updateSchedule(account, schedule.id, {
    phases: [
      {
        items: [{ price: item.price.id, quantity }],
        start_date: current.start_date,
        end_date: current.end_date,
      },
      { items: [{ price: price.id, quantity }], duration: { interval, interval_count } },
    ],
  });
}

/** The person gives another card. It is charged from now on; what is due waits for the next try, or for portalPay. */
export function portalChangeCard(account: Account, customerId: string, card: Card): void {
  const customer = need(account, "customers", customerId);
  const method = addCard(account, customerId, card).id;
  change(account, "customer.updated", customer, () => void (customer.invoice_settings.default_payment_method = method));
  for (const subscription of Object.values(account.objects.subscriptions))
    if (subscription.customer === customerId && subscription.default_payment_method)
      changeSubscription(account, subscription, () => void (subscription.default_payment_method = method));
}

/** The person pays an open invoice; `confirmed` when they have also answered their bank. */
export function portalPay(account: Account, invoiceId: string, confirmed = false): Outcome {
  const invoice = need(account, "invoices", invoiceId);
  if (invoice.status !== "open") throw new Error(`invoice ${invoiceId} is ${invoice.status}`);
  return collect(account, invoice, { confirmed });
}
