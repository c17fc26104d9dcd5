import { find, type Account } from "./stripeAccount.ts";
import { subscriptionOf } from "./stripeInvoices.ts";
import { paymentsOf } from "./stripePayments.ts";
import type { Invoice, Subscription } from "./stripeState.ts";

/** How a subscription really stands. Times in seconds, amounts in minor units. */
export interface TrueSubscription {
  id: string;
  status: string;
  price: string;
  lookupKey: string | null;
  interval: string;
  periodStart: number;
  periodEnd: number;
  cancelAtPeriodEnd: boolean;
  /** When it will end, whoever set it and however; null: it goes on. */
  endsAt: number | null;
  endedAt: number | null;
  collectionPaused: boolean;
  /** The price that a schedule will put in its place. */
  nextPrice: string | null;
  due: { invoice: string; amount: number; nextAttempt: number | null; actionRequired: boolean } | null;
  metadata: Record<string, string>;
}

export interface Truth {
  customer: "deleted" | "exists" | "unknown";
  email: string | null;
  /** Newest first. */
  subscriptions: TrueSubscription[];
  charges: { id: string; amount: number; paid: boolean; refunded: number; disputed: boolean }[];
}

/** What really is, apart from what was told about it. */
export function truthOf(account: Account, customerId: string): Truth {
  const customer = find(account, "customers", customerId);
  const deleted = find(account, "deletedCustomers", customerId) !== null;
  const { subscriptions, charges } = account.objects;
  return {
    customer: customer ? "exists" : deleted ? "deleted" : "unknown",
    email: customer?.email ?? null,
    subscriptions: Object.values(subscriptions)
      .filter((subscription) => subscription.customer === customerId)
      .map((subscription) => trueSubscription(account, subscription))
      .toReversed(),
    charges: Object.values(charges)
      .filter((charge) => charge.customer === customerId)
      .map(({ id, amount, paid, amount_refunded: refunded, disputed }) => ({ id, amount, paid, refunded, disputed }))
      .toReversed(),
  };
}

function trueSubscription(account: Account, subscription: Subscription): TrueSubscription {
  const item = subscription.items.data[0]!;
  const schedule = find(account, "schedules", subscription.schedule);
  const next = schedule?.phases.find((phase) => phase.start_date === schedule.current_phase?.end_date);
  return {
    id: subscription.id,
    status: subscription.status,
    price: item.price.id,
    lookupKey: item.price.lookup_key,
    interval: item.price.recurring!.interval,
    periodStart: item.current_period_start,
    periodEnd: item.current_period_end,
    cancelAtPeriodEnd: subscription.cancel_at_period_end,
    endsAt: subscription.cancel_at,
    endedAt: subscription.ended_at,
    collectionPaused: subscription.pause_collection !== null,
    nextPrice: (next?.items[0]?.price as string | undefined) ?? null,
    due: dueOf(account, subscription),
    metadata: subscription.metadata,
  };
}

function dueOf(account: Account, subscription: Subscription): TrueSubscription["due"] {
  const open = Object.values(account.objects.invoices).findLast(
    (one: Invoice) => one.status === "open" && subscriptionOf(one) === subscription.id,
  );
  if (!open) return null;
  const intentId = paymentsOf(account, open.id).at(-1)?.payment.payment_intent;
  const intent = typeof intentId === "string" ? find(account, "paymentIntents", intentId) : null;
  return {
    invoice: open.id,
    amount: open.amount_remaining,
    nextAttempt: open.next_payment_attempt,
    actionRequired: intent?.status === "requires_action",
  };
}
