import { change, emit, find, mergeMetadata, need, timeOf, type Account } from "./stripeAccount.ts";
import { needRecurringPrice } from "./stripeCatalog.ts";
import { changeSubscription, endSubscription } from "./stripeCollection.ts";
import { invalidRequest } from "./stripeErrors.ts";
import type { Params } from "./stripeParams.ts";
import { addOne } from "./stripePeriods.ts";
import { newStripeId, type Schedule, type Subscription } from "./stripeState.ts";
import { ENDED, setItemPrice } from "./stripeSubscriptions.ts";

type Phase = Schedule["phases"][number];

/** Only over a subscription that is there: what is to happen to it, phase after phase. */
export function createSchedule(account: Account, params: Params): Schedule {
  if (!params.from_subscription)
    throw invalidRequest("This double makes schedules only with `from_subscription`.", { param: "from_subscription" });
  const subscription = need(account, "subscriptions", params.from_subscription, "from_subscription");
  if (subscription.schedule || ENDED.includes(subscription.status))
    throw invalidRequest(
      "You cannot migrate a subscription that is already attached to a schedule or is over: " + subscription.id,
    );
  const [item] = subscription.items.data;
  const current = makePhase(account, {
    items: subscription.items.data.map(({ price, quantity }) => ({ price: price.id, quantity })),
    start_date: item!.current_period_start,
    end_date: item!.current_period_end,
  });
  const schedule: Schedule = {
    id: newStripeId("sub_sched"),
    object: "subscription_schedule",
    application: null,
    billing_mode: subscription.billing_mode,
    canceled_at: null,
    completed_at: null,
    created: timeOf(account, subscription.customer),
    current_phase: { start_date: current.start_date, end_date: current.end_date },
    customer: subscription.customer,
    customer_account: null,
    default_settings: DEFAULT_SETTINGS,
    end_behavior: "release",
    livemode: account.live,
    metadata: params.metadata ?? {},
    pause_schedules: [],
    phases: [current],
    released_at: null,
    released_subscription: null,
    status: "active",
    subscription: subscription.id,
    test_clock: subscription.test_clock,
  };
  account.objects.schedules[schedule.id] = schedule;
  emit(account, "subscription_schedule.created", schedule);
  changeSubscription(account, subscription, () => void (subscription.schedule = schedule.id));
  return schedule;
}

const DEFAULT_SETTINGS: Schedule["default_settings"] = {
  application_fee_percent: null,
  billing_cycle_anchor: "automatic",
  billing_thresholds: null,
  collection_method: "charge_automatically",
  default_payment_method: null,
  description: null,
  invoice_settings: {
    account_tax_ids: null,
    custom_fields: null,
    days_until_due: null,
    description: null,
    footer: null,
    issuer: { type: "self" },
  },
  on_behalf_of: null,
  transfer_data: null,
};

function makePhase(account: Account, given: Params, index = 0): Phase {
  const items = (given.items as Params[]).map((item, at) => ({
    price: needRecurringPrice(account, item.price ?? "", `phases[${index}][items][${at}][price]`),
    quantity: item.quantity ?? 1,
  }));
  const start: number = given.start_date;
  const duration = given.duration ?? { interval: items[0]!.price.recurring!.interval };
  return {
    add_invoice_items: [],
    application_fee_percent: null,
    billing_cycle_anchor: null,
    billing_thresholds: null,
    collection_method: null,
    currency: items[0]!.price.currency,
    default_payment_method: null,
    description: null,
    discounts: [],
    end_date: given.end_date ?? addOne(start, duration.interval, duration.interval_count ?? 1),
    invoice_settings: null,
    items: items.map(({ price, quantity }) => ({
      billing_thresholds: null,
      discounts: [],
      metadata: {},
      plan: price.id,
      price: price.id,
      quantity,
      tax_rates: [],
    })),
    metadata: given.metadata ?? {},
    on_behalf_of: null,
    proration_behavior: given.proration_behavior ?? "create_prorations",
    start_date: start,
    transfer_data: null,
    trial_end: null,
  };
}

/** The phases that are given replace all. The first must be the running one: Stripe changes nothing behind one's back. */
export function updateSchedule(account: Account, id: string, params: Params): Schedule {
  const schedule = need(account, "schedules", id);
  if (schedule.status !== "active")
    throw invalidRequest(
      `You cannot update a subscription schedule that is currently in the \`${schedule.status}\` status.`,
    );
  change(account, "subscription_schedule.updated", schedule, () => {
    if (params.phases) schedule.phases = readPhases(account, schedule, params.phases);
    const running = schedule.phases.find((phase) => phase.start_date === schedule.current_phase?.start_date);
    if (running) schedule.current_phase = { start_date: running.start_date, end_date: running.end_date };
    if (params.end_behavior) schedule.end_behavior = params.end_behavior;
    schedule.metadata = mergeMetadata(schedule.metadata, params.metadata);
  });
  return schedule;
}

function readPhases(account: Account, schedule: Schedule, given: Params[]): Phase[] {
  const phases: Phase[] = [];
  for (const [index, phase] of given.entries()) {
    const start = phases.at(-1)?.end_date ?? phase.start_date;
    if (typeof start !== "number")
      throw invalidRequest("The first phase needs a `start_date`.", { param: "phases[0][start_date]" });
    phases.push(makePhase(account, { ...phase, start_date: start }, index));
  }
  if (phases[0]?.start_date !== schedule.current_phase?.start_date)
    throw invalidRequest("You can not modify the start date of the current phase.", { param: "phases[0][start_date]" });
  return phases;
}

/** Leaves the subscription as it is and lets go of it. */
export function releaseSchedule(account: Account, id: string): Schedule {
  const schedule = need(account, "schedules", id);
  if (schedule.status !== "active")
    throw invalidRequest(
      `You cannot release a subscription schedule that is currently in the \`${schedule.status}\` status. Only \`not_started\` and \`active\` schedules can be released.`,
    );
  endSchedule(account, schedule, "released");
  return schedule;
}

export function cancelSchedule(account: Account, id: string): Schedule {
  const schedule = need(account, "schedules", id);
  const subscription = find(account, "subscriptions", schedule.subscription);
  if (subscription && !ENDED.includes(subscription.status))
    endSubscription(account, subscription, "cancellation_requested");
  return schedule;
}

function endSchedule(account: Account, schedule: Schedule, status: "completed" | "released"): void {
  const at = timeOf(account, schedule.customer);
  const subscription = find(account, "subscriptions", schedule.subscription);
  change(account, `subscription_schedule.${status}`, schedule, () => {
    schedule.status = status;
    schedule.current_phase = null;
    if (status === "completed") schedule.completed_at = at;
    else Object.assign(schedule, { released_at: at, released_subscription: schedule.subscription, subscription: null });
  });
  if (subscription) changeSubscription(account, subscription, () => void (subscription.schedule = null));
}

/** The running phase is over: the next one begins, or the schedule ends. */
export function nextPhase(account: Account, schedule: Schedule): void {
  const subscription = need(account, "subscriptions", schedule.subscription!);
  const at = schedule.current_phase!.end_date;
  const next = schedule.phases.find((phase) => phase.start_date === at);
  if (!next) {
    if (schedule.end_behavior === "cancel") endSubscription(account, subscription, "cancellation_requested");
    else endSchedule(account, schedule, "released");
    return;
  }
  change(account, "subscription_schedule.updated", schedule, () => {
    schedule.current_phase = { start_date: next.start_date, end_date: next.end_date };
  });
  changeSubscription(account, subscription, () => applyPhase(account, subscription, next, at));
}

/** The invoice of the renewal that comes at the same time has the new prices. */
function applyPhase(account: Account, subscription: Subscription, phase: Phase, at: number): void {
  for (const [index, item] of subscription.items.data.entries()) {
    const wanted = phase.items[index];
    if (!wanted) continue;
    const price = need(account, "prices", wanted.price as string);
    if (price.recurring!.interval !== item.price.recurring!.interval) subscription.billing_cycle_anchor = at;
    setItemPrice(item, price);
    item.quantity = wanted.quantity ?? 1;
  }
}
