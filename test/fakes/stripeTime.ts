import { find, timeOf, type Account } from "./stripeAccount.ts";
import { expireCheckout } from "./stripeCheckout.ts";
import { changeSubscription, collect, endSubscription, markUncollectible, voidInvoice } from "./stripeCollection.ts";
import { finalizeInvoice, keepInvoice, makeInvoice, periodLines, subscriptionOf } from "./stripeInvoices.ts";
import { linesOfItems, pendingItems } from "./stripeProrations.ts";
import { periodEnd } from "./stripePeriods.ts";
import { nextPhase } from "./stripeSchedules.ts";
import type { Invoice, Price, Subscription } from "./stripeState.ts";
import { ENDED, expireIncomplete, INCOMPLETE_SECONDS } from "./stripeSubscriptions.ts";
import { expirePendingUpdate } from "./stripeUpdates.ts";

/** Something that Stripe does by itself at a time (seconds). Of two at one time, the lower order comes first. */
interface Task {
  at: number;
  order: number;
  run(): void;
}

/**
 * Does everything that is due until `to`, in its order. `clock` moves the time there step by step; `timeline` is the
 * test clock whose customers are meant, null for those without one.
 */
export function runUntil(account: Account, to: number, timeline: string | null, clock: (at: number) => void): void {
  for (;;) {
    const next = nextTask(account, timeline);
    if (!next || next.at > to) break;
    clock(next.at);
    next.run();
  }
  clock(to);
}

function nextTask(account: Account, timeline: string | null): Task | null {
  let first: Task | null = null;
  const consider = (task: Task) => {
    if (!first || task.at < first.at || (task.at === first.at && task.order < first.order)) first = task;
  };
  for (const subscription of Object.values(account.objects.subscriptions))
    if (subscription.test_clock === timeline) subscriptionTasks(account, subscription, consider);
  for (const invoice of Object.values(account.objects.invoices))
    if (invoice.test_clock === timeline) invoiceTasks(account, invoice, consider);
  for (const session of Object.values(account.objects.checkoutSessions)) {
    const clock = find(account, "customers", session.customer)?.test_clock ?? null;
    if (session.status === "open" && clock === timeline)
      consider({ at: session.expires_at, order: 0, run: () => void expireCheckout(account, session.id) });
  }
  return first;
}

function subscriptionTasks(account: Account, subscription: Subscription, consider: (task: Task) => void): void {
  const { status } = subscription;
  if (ENDED.includes(status) || status === "paused") return;
  if (status === "incomplete") {
    const at = subscription.created + INCOMPLETE_SECONDS;
    consider({ at, order: 1, run: () => expireIncomplete(account, subscription) });
    return;
  }
  const resumes = subscription.pause_collection?.resumes_at;
  if (resumes)
    consider({
      at: resumes,
      order: 2,
      run: () => changeSubscription(account, subscription, () => void (subscription.pause_collection = null)),
    });
  if (subscription.pending_update) {
    const at = subscription.pending_update.expires_at;
    consider({ at, order: 3, run: () => expirePendingUpdate(account, subscription) });
  }
  const schedule = find(account, "schedules", subscription.schedule);
  if (schedule?.current_phase)
    consider({ at: schedule.current_phase.end_date, order: 4, run: () => nextPhase(account, schedule) });
  if (subscription.cancel_at !== null)
    consider({
      at: subscription.cancel_at,
      order: 5,
      run: () => endSubscription(account, subscription, "cancellation_requested"),
    });
  const ends = Math.min(...subscription.items.data.map((item) => item.current_period_end));
  consider({ at: ends, order: 6, run: () => renew(account, subscription) });
}

function invoiceTasks(account: Account, invoice: Invoice, consider: (task: Task) => void): void {
  if (invoice.status === "draft" && invoice.automatically_finalizes_at !== null)
    consider({ at: invoice.automatically_finalizes_at, order: 7, run: () => finalizeAndCollect(account, invoice) });
  if (invoice.status === "open" && invoice.next_payment_attempt !== null)
    consider({ at: invoice.next_payment_attempt, order: 8, run: () => retry(account, invoice) });
}

function retry(account: Account, invoice: Invoice): void {
  invoice.next_payment_attempt = null;
  collect(account, invoice, { automatic: true });
}

/** The next period begins, whether or not it will be paid; its invoice is a draft for an hour. */
function renew(account: Account, subscription: Subscription): void {
  const at = timeOf(account, subscription.customer);
  const before = subscription.items.data[0]!;
  const period = { start: before.current_period_start, end: before.current_period_end };
  const draft = structuredClone(subscription);
  for (const item of draft.items.data) {
    if (item.current_period_end > at) continue;
    item.current_period_start = item.current_period_end;
    item.current_period_end = periodEnd(draft.billing_cycle_anchor, item.price as Price, item.current_period_start);
  }
  const pending = pendingItems(account, subscription.id);
  const lines = [...linesOfItems(account, draft, pending), ...periodLines(account, draft)];
  const invoice = makeInvoice(account, { subscription, reason: "subscription_cycle", lines, period, at });
  const unpaid = subscription.status === "unpaid";
  if (unpaid || subscription.pause_collection) Object.assign(invoice, { auto_advance: false });
  if (unpaid || subscription.pause_collection?.behavior === "keep_as_draft") invoice.automatically_finalizes_at = null;
  keepInvoice(account, invoice);
  changeSubscription(account, subscription, () => {
    subscription.items = draft.items;
    subscription.latest_invoice = invoice.id;
  });
}

function finalizeAndCollect(account: Account, invoice: Invoice): void {
  finalizeInvoice(account, invoice);
  const subscription = find(account, "subscriptions", subscriptionOf(invoice));
  const pause = subscription?.pause_collection?.behavior;
  if (pause === "void") voidInvoice(account, invoice);
  else if (pause === "mark_uncollectible") markUncollectible(account, invoice);
  else collect(account, invoice, { automatic: true });
}
