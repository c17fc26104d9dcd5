import type { FakeStripe } from "../fakes/stripe.ts";
import { createCheckout } from "../fakes/stripeCheckout.ts";
import { subscriptionOf } from "../fakes/stripeInvoices.ts";
import { StripeFault } from "../fakes/stripeErrors.ts";
import { pauseSubscription, resumeSubscription } from "../fakes/stripePauses.ts";
import type { Card } from "../fakes/stripeState.ts";
import type { TrueSubscription } from "../fakes/stripeTruth.ts";
import { cancelSubscription, updateSubscription } from "../fakes/stripeUpdates.ts";
import type { Shop } from "./shop.ts";

export type Random = () => number;

/** The same numbers for the same seed. */
export function seeded(seed: number): Random {
  let state = (seed * 7_919) % 2_147_483_647 || 1;
  return () => (state = (state * 48_271) % 2_147_483_647) / 2_147_483_647;
}

export function pick<T>(random: Random, choices: readonly T[]): T {
  return choices[Math.floor(random() * choices.length)]!;
}

const CARDS: Card[] = ["ok", "ok", "ok", "declined", "requires_action"];

/** One thing that a person, an operator or the bank does at Stripe. What Stripe refuses is refused. */
export function act(shop: Shop, random: Random, customer: string): void {
  const { stripe } = shop;
  if (stripe.truth(customer).customer !== "exists") return;
  const truth = stripe.truth(customer);
  const newest = truth.subscriptions[0];
  const isLive = newest !== undefined && !OVER.includes(newest.status);
  const acts = isLive ? actsOn(shop, random, customer, newest) : [() => checkout(shop, random, customer)];
  if (random() < 0.02) acts.push(() => stripe.deleteCustomer(customer));
  const charge = truth.charges.find((one) => one.paid && one.refunded === 0 && !one.disputed);
  if (charge && random() < 0.1)
    acts.push(
      () => stripe.refund(charge.id),
      () => stripe.openDispute(charge.id),
    );
  try {
    pick(random, acts)();
  } catch (error) {
    // A test's own mistakes are plain errors with words of the double; anything else is a fault of it.
    const words = String((error as Error).message);
    if (!(error instanceof StripeFault) && !/^(nothing to confirm|invoice in_|checkout session)/.test(words))
      throw error;
  }
}

function checkout(shop: Shop, random: Random, customer: string): void {
  const { stripe, prices } = shop;
  const session = createCheckout(stripe.account(), {
    mode: "subscription",
    customer,
    line_items: [{ price: pick(random, Object.values(prices)) }],
    success_url: "https://app.example.org/thanks",
  });
  const outcome = stripe.completeCheckout(session.id, { card: pick(random, CARDS) });
  if (outcome === "requires_action" && random() < 0.5) stripe.confirmCheckout(session.id);
}

function actsOn(shop: Shop, random: Random, customer: string, newest: TrueSubscription): (() => unknown)[] {
  const { stripe, prices } = shop;
  const account = stripe.account();
  const { id, due } = newest;
  const price = pick(random, Object.values(prices));
  const item = account.objects.subscriptions[id]!.items.data[0]!.id;
  const change = { items: [{ id: item, price }] };
  return [
    () => stripe.setCard(customer, pick(random, CARDS)),
    () => stripe.portal.changeCard(customer, pick(random, CARDS)),
    () => due && stripe.portal.pay(due.invoice, { confirmed: random() < 0.5 }),
    () => stripe.portal.cancel(id),
    () => stripe.portal.resume(id),
    () => stripe.portal.changePlan(id, price),
    () => updateSubscription(account, id, { cancel_at_period_end: random() < 0.5 }),
    () => updateSubscription(account, id, { ...change, proration_behavior: "always_invoice" }),
    () => updateSubscription(account, id, { ...change, payment_behavior: "pending_if_incomplete" }),
    () => updateSubscription(account, id, { pause_collection: random() < 0.5 ? "" : { behavior: "void" } }),
    () => pauseSubscription(account, id, {}),
    () => resumeSubscription(account, id, {}),
    () => random() < 0.4 && cancelSubscription(account, id, { prorate: random() < 0.5 }),
    // By hand, and wrong: a second one beside the first.
    () => random() < 0.2 && checkout(shop, random, customer),
  ];
}

const OVER = ["canceled", "incomplete_expired"];
const ENTITLING = ["active", "trialing", "past_due"];
const TELLING = ["unpaid", "paused", "incomplete", "canceled", "incomplete_expired"];
const RANKS: Record<string, number> = { pro: 1, premium: 2 };

/** What the row has to say, and which plan has to be in force, by the double's own truth. */
export function expectedRow(shop: Shop, customer: string): { row: object | null; plan: string } {
  const { stripe } = shop;
  const { subscriptions, customer: how } = stripe.truth(customer);
  const planOf = (one: TrueSubscription) =>
    Object.entries(shop.prices)
      .find(([, id]) => id === one.price)![0]
      .split(" ");
  const rankOf = (one: TrueSubscription) => RANKS[planOf(one)[0]!]!;
  // Newest first, and sorting is stable.
  const entitling = subscriptions
    .filter(({ status }) => ENTITLING.includes(status))
    .toSorted((a, b) => rankOf(b) - rankOf(a));
  const others = subscriptions.toSorted((a, b) => TELLING.indexOf(a.status) - TELLING.indexOf(b.status));
  const one = entitling[0] ?? others[0];
  if (!one) return { row: null, plan: "free" };
  const [plan, cycle] = planOf(one);
  const isOver = how !== "exists" && one.status !== "incomplete_expired";
  const row = {
    stripeSubscriptionId: one.id,
    plan,
    billingCycle: cycle,
    priceId: one.price,
    status: isOver ? "canceled" : one.status,
    currentPeriodStart: new Date(one.periodStart * 1000),
    currentPeriodEnd: new Date(one.periodEnd * 1000),
    cancelAtPeriodEnd: one.cancelAtPeriodEnd,
    cancelAt: one.endsAt === null ? null : new Date(one.endsAt * 1000),
    dueMicroUsd: dueOf(stripe, one),
    graceUntil: null,
  };
  return { row, plan: entitling[0] ? plan! : "free" };
}

function dueOf(stripe: FakeStripe, { id, status }: TrueSubscription): number | null {
  if (!["past_due", "unpaid", "incomplete"].includes(status)) return null;
  const open = Object.values(stripe.account().objects.invoices).filter(
    (invoice) => invoice.status === "open" && subscriptionOf(invoice) === id,
  );
  return open.length === 0 ? null : open.reduce((sum, invoice) => sum + invoice.amount_remaining, 0) * 10_000;
}
