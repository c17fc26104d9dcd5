import { expect, test } from "bun:test";
import { startFakeStripe, type FakeStripe } from "../fakes/stripe.ts";
import { createPrice } from "../fakes/stripeCatalog.ts";
import { createCheckout } from "../fakes/stripeCheckout.ts";
import { createCustomer } from "../fakes/stripeCustomers.ts";
import { StripeFault } from "../fakes/stripeErrors.ts";
import { pauseSubscription, resumeSubscription } from "../fakes/stripePauses.ts";
import type { Card, Subscription } from "../fakes/stripeState.ts";
import { cancelSubscription, updateSubscription } from "../fakes/stripeUpdates.ts";

type Random = () => number;

/** The same numbers for the same seed. */
function seeded(seed: number): Random {
  let state = seed;
  return () => (state = (state * 48_271) % 2_147_483_647) / 2_147_483_647;
}

const pick = <T>(random: Random, choices: readonly T[]): T => choices[Math.floor(random() * choices.length)]!;
const CARDS: Card[] = ["ok", "ok", "ok", "declined", "requires_action"];

/** One thing that a person, the shop, the bank or the time does. What Stripe refuses is refused. */
function step(fake: FakeStripe, random: Random, customer: string, prices: string[]): void {
  const account = fake.account();
  const newest = Object.values(account.objects.subscriptions).findLast((one) => one.customer === customer);
  const due = fake.truth(customer).subscriptions[0]?.due;
  const id = newest?.id ?? "sub_none";
  const item = newest?.items.data[0]?.id;
  const change = { items: [{ id: item, price: pick(random, prices) }] };
  const acts: (() => unknown)[] = [
    () => fake.advance({ days: Math.ceil(random() * 20) }),
    () => fake.advance({ hours: Math.ceil(random() * 30) }),
    () => fake.advance({ months: 1 }),
    () => {
      const session = createCheckout(account, {
        mode: "subscription",
        customer,
        line_items: [{ price: pick(random, prices) }],
        success_url: "https://a.example",
      });
      fake.completeCheckout(session.id, { card: pick(random, CARDS) });
      if (random() < 0.5 && session.status === "open") fake.confirmCheckout(session.id);
    },
    () => fake.setCard(customer, pick(random, CARDS)),
    () => fake.portal.changeCard(customer, pick(random, CARDS)),
    () => due && fake.portal.pay(due.invoice, { confirmed: random() < 0.5 }),
    () => newest && fake.portal.cancel(id),
    () => newest && fake.portal.resume(id),
    () => newest && fake.portal.changePlan(id, pick(random, prices)),
    () => updateSubscription(account, id, { cancel_at_period_end: random() < 0.5 }),
    () => updateSubscription(account, id, { ...change, proration_behavior: "always_invoice" }),
    () => updateSubscription(account, id, { ...change, payment_behavior: "pending_if_incomplete" }),
    () => updateSubscription(account, id, { pause_collection: random() < 0.5 ? "" : { behavior: "void" } }),
    () => pauseSubscription(account, id, {}),
    () => resumeSubscription(account, id, {}),
    () => random() < 0.3 && cancelSubscription(account, id, { prorate: random() < 0.5 }),
  ];
  try {
    pick(random, acts)();
  } catch (error) {
    // A test's own mistakes are plain errors with words of the double; anything else is a fault of it.
    const refused =
      error instanceof StripeFault ||
      /^(nothing to confirm|invoice in_|checkout session)/.test(String((error as Error).message));
    if (!refused) throw error;
  }
}

/** What is wrong with the books, in words. */
function faultsOf(fake: FakeStripe): string[] {
  const { subscriptions, invoices, events, charges, invoicePayments } = fake.account().objects;
  const faults: string[] = [];
  const told = new Map<string, Subscription>();
  for (const event of Object.values(events))
    if (event.data.object.object === "subscription") told.set(event.data.object.id, event.data.object);
  for (const one of Object.values(subscriptions)) {
    if (!Bun.deepEquals(told.get(one.id), one)) faults.push(`${one.id}: changed and did not say so`);
    const [item] = one.items.data;
    if (item!.current_period_start >= item!.current_period_end) faults.push(`${one.id}: an empty period`);
    const runs = ["active", "past_due"].includes(one.status);
    if (runs && item!.current_period_end <= fake.now()) faults.push(`${one.id}: was not renewed`);
    if (runs && one.cancel_at !== null && one.cancel_at <= fake.now()) faults.push(`${one.id}: did not end`);
    if ((one.ended_at !== null) !== ["canceled", "incomplete_expired"].includes(one.status))
      faults.push(`${one.id}: ${one.status}, ended at ${one.ended_at}`);
  }
  for (const invoice of Object.values(invoices)) {
    const own = Object.values(invoicePayments).filter((payment) => payment.invoice === invoice.id);
    const paid = own.filter((payment) => payment.status === "paid").length;
    if (invoice.status === "paid" && invoice.amount_due > 0 && paid !== 1)
      faults.push(`${invoice.id}: paid ${paid} times`);
    if (invoice.status !== "paid" && paid > 0) faults.push(`${invoice.id}: ${invoice.status} but paid`);
    if (invoice.next_payment_attempt !== null && invoice.next_payment_attempt <= fake.now())
      faults.push(`${invoice.id}: was not tried again`);
  }
  const taken = Object.values(charges).reduce((sum, charge) => sum + (charge.paid ? charge.amount : 0), 0);
  const billed = Object.values(invoices).reduce((sum, invoice) => sum + invoice.amount_paid, 0);
  if (taken !== billed) faults.push(`taken ${taken}, billed ${billed}`);
  return faults;
}

test("200 random histories: the books are right and every change was told", async () => {
  for (let seed = 1; seed <= 200; seed++) {
    const random = seeded(seed);
    const fake = await startFakeStripe({ now: 1_800_000_000 + seed * 40_000 });
    try {
      const account = fake.account();
      const price = (name: string, unit_amount: number, interval: string) =>
        createPrice(account, { product_data: { name }, currency: "usd", unit_amount, recurring: { interval } }).id;
      const prices = [price("Pro", 699, "month"), price("Pro", 6999, "year"), price("Premium", 1299, "month")];
      const customer = createCustomer(account, { email: "a@example.org" }).id;
      for (let n = 0; n < 40; n++) step(fake, random, customer, prices);
      expect({ seed, faults: faultsOf(fake) }).toEqual({ seed, faults: [] });
    } finally {
      await fake.close();
    }
  }
});
