import { change, emit, find, timeOf, type Account } from "./stripeAccount.ts";
import { chargeableMethod } from "./stripeCustomers.ts";
import { finalizeInvoice, keepInvoice, makeInvoice, subscriptionOf } from "./stripeInvoices.ts";
import { chargeIntent, closePayment, intentOf } from "./stripePayments.ts";
import type { Card, Invoice, Subscription } from "./stripeState.ts";
import { finishResume } from "./stripePauses.ts";
import { applyPendingUpdate } from "./stripeUpdates.ts";

/** What came of trying to get an invoice paid. */
export type Outcome = "declined" | "no_method" | "paid" | "requires_action";

interface Attempt {
  /** Stripe's own, by its schedule; another one does not move the schedule. */
  automatic?: boolean;
  /** The person has just confirmed it with the bank. */
  confirmed?: boolean;
  method?: string;
}

/** Writes `customer.subscription.updated`, except for one that is only being created: it has its own event. */
export function changeSubscription(account: Account, subscription: Subscription, mutate: () => void): void {
  if (find(account, "subscriptions", subscription.id))
    change(account, "customer.subscription.updated", subscription, mutate);
  else mutate();
}

/** Makes an invoice, finalizes it at once and, unless told otherwise, tries to get it paid. */
export function billNow(
  account: Account,
  subscription: Subscription,
  input: Pick<Parameters<typeof makeInvoice>[1], "lines" | "period" | "reason">,
  collectNow = true,
): { invoice: Invoice; outcome: Outcome } {
  const at = timeOf(account, subscription.customer);
  const invoice = keepInvoice(account, makeInvoice(account, { ...input, subscription, at }));
  changeSubscription(account, subscription, () => void (subscription.latest_invoice = invoice.id));
  finalizeInvoice(account, invoice);
  // One that is only being created can't be found by its id yet: its own card is named here.
  const method = chargeableMethod(account, subscription.customer, subscription);
  if (collectNow || invoice.amount_due === 0)
    return { invoice, outcome: collect(account, invoice, method === null ? {} : { method }) };
  intentOf(account, invoice);
  return { invoice, outcome: "no_method" };
}

export function collect(account: Account, invoice: Invoice, attempt: Attempt = {}): Outcome {
  if (invoice.amount_due === 0) {
    markPaid(account, invoice);
    return "paid";
  }
  const subscription = find(account, "subscriptions", subscriptionOf(invoice));
  const method = attempt.method ?? chargeableMethod(account, invoice.customer, subscription);
  const intent = intentOf(account, invoice);
  // As Stripe counts: any first attempt, then only its own.
  const counts = attempt.automatic === true || !invoice.attempted;
  if (counts) invoice.attempt_count += 1;
  invoice.attempted = true;
  if (method === null) {
    markFailed(account, invoice, subscription, { outcome: "no_method", counts });
    return "no_method";
  }
  let card: Card = account.objects.cards[method] ?? "declined";
  if (attempt.confirmed && card === "requires_action") card = "ok";
  const result = chargeIntent(account, intent, method, card);
  if (result === "ok") markPaid(account, invoice);
  else markFailed(account, invoice, subscription, { outcome: result, counts });
  return result === "ok" ? "paid" : result;
}

export function markPaid(account: Account, invoice: Invoice): void {
  closePayment(account, invoice, "paid");
  invoice.status = "paid";
  invoice.amount_paid = invoice.amount_due;
  invoice.amount_remaining = 0;
  invoice.attempted = true;
  invoice.next_payment_attempt = null;
  invoice.status_transitions.paid_at = timeOf(account, invoice.customer);
  setDelinquent(account, invoice.customer, false);
  emit(account, "invoice.paid", invoice);
  emit(account, "invoice.payment_succeeded", invoice);
  const subscription = find(account, "subscriptions", subscriptionOf(invoice));
  if (!subscription || subscription.latest_invoice !== invoice.id) return;
  if (subscription.pending_update) applyPendingUpdate(account, subscription);
  if (subscription.status === "paused") finishResume(account, subscription);
  if (["incomplete", "past_due", "unpaid"].includes(subscription.status))
    changeSubscription(account, subscription, () => void (subscription.status = "active"));
}

interface Failure {
  outcome: Exclude<Outcome, "paid">;
  counts: boolean;
}

function markFailed(account: Account, invoice: Invoice, subscription: Subscription | null, failure: Failure): void {
  const first = invoice.billing_reason === "subscription_create";
  const days = account.settings.retryDays[invoice.attempt_count - 1];
  const over = !first && days === undefined;
  if (failure.counts) {
    const retries = !first && days !== undefined && invoice.auto_advance;
    invoice.next_payment_attempt = retries ? timeOf(account, invoice.customer) + days * 86_400 : null;
  }
  setDelinquent(account, invoice.customer, true);
  if (failure.outcome === "requires_action") emit(account, "invoice.payment_action_required", invoice);
  emit(account, "invoice.payment_failed", invoice);
  if (!subscription || subscription.pending_update) return;
  if (subscription.status === "active" && subscription.latest_invoice === invoice.id)
    changeSubscription(account, subscription, () => void (subscription.status = "past_due"));
  if (failure.counts && over && subscription.status === "past_due") giveUp(account, subscription);
}

function setDelinquent(account: Account, customerId: string, delinquent: boolean): void {
  const customer = find(account, "customers", customerId);
  if (customer && customer.delinquent !== delinquent)
    change(account, "customer.updated", customer, () => void (customer.delinquent = delinquent));
}

function giveUp(account: Account, subscription: Subscription): void {
  const { giveUp: how } = account.settings;
  if (how === "cancel") endSubscription(account, subscription, "payment_failed");
  if (how === "unpaid") changeSubscription(account, subscription, () => void (subscription.status = "unpaid"));
}

/** Ends it now: canceled, no more tries to get its open invoices paid. */
export function endSubscription(
  account: Account,
  subscription: Subscription,
  reason: "cancellation_requested" | "payment_disputed" | "payment_failed",
): void {
  const at = timeOf(account, subscription.customer);
  subscription.status = "canceled";
  subscription.ended_at = at;
  subscription.canceled_at ??= at;
  subscription.pause_collection = null;
  subscription.pending_update = null;
  subscription.cancellation_details = { ...NO_DETAILS, ...subscription.cancellation_details, reason };
  for (const invoice of openInvoices(account, subscription.id)) {
    invoice.auto_advance = false;
    invoice.next_payment_attempt = null;
    invoice.automatically_finalizes_at = null;
  }
  releaseSchedule(account, subscription, at);
  emit(account, "customer.subscription.deleted", subscription);
}

export const NO_DETAILS = { comment: null, feedback: null, feedback_option: null, reason: null };

function releaseSchedule(account: Account, subscription: Subscription, at: number): void {
  const schedule = find(account, "schedules", subscription.schedule);
  if (!schedule) return;
  change(account, "subscription_schedule.canceled", schedule, () => {
    Object.assign(schedule, { status: "canceled", canceled_at: at, current_phase: null });
  });
}

export function openInvoices(account: Account, subscriptionId: string): Invoice[] {
  return Object.values(account.objects.invoices).filter(
    (invoice) =>
      (invoice.status === "open" || invoice.status === "draft") && subscriptionOf(invoice) === subscriptionId,
  );
}

export function voidInvoice(account: Account, invoice: Invoice): void {
  const at = timeOf(account, invoice.customer);
  closePayment(account, invoice, "canceled");
  invoice.status = "void";
  invoice.next_payment_attempt = null;
  invoice.auto_advance = false;
  invoice.automatically_finalizes_at = null;
  invoice.status_transitions.voided_at = at;
  emit(account, "invoice.voided", invoice);
}

export function markUncollectible(account: Account, invoice: Invoice): void {
  invoice.status = "uncollectible";
  invoice.next_payment_attempt = null;
  invoice.status_transitions.marked_uncollectible_at = timeOf(account, invoice.customer);
  emit(account, "invoice.marked_uncollectible", invoice);
}
