import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import Stripe from "stripe";
import { startFakeStripe, type FakeStripe } from "../fakes/stripe.ts";

const START = Date.UTC(2027, 0, 15, 12) / 1000;
const DAY = 86_400;
let fake: FakeStripe;
let stripe: Stripe;
let prices: { pro: Stripe.Price; proYear: Stripe.Price; premium: Stripe.Price };

function clientOf(key: string): Stripe {
  const { hostname, port } = new URL(fake.apiBase);
  return new Stripe(key, { host: hostname, port, protocol: "http", maxNetworkRetries: 0, telemetry: false });
}

async function makePrice(name: string, amount: number, interval: "month" | "year"): Promise<Stripe.Price> {
  return stripe.prices.create({
    product_data: { name },
    currency: "usd",
    unit_amount: amount,
    recurring: { interval },
    lookup_key: `${name}_${interval}`.toLowerCase(),
  });
}

beforeEach(async () => {
  fake = await startFakeStripe({ now: START });
  stripe = clientOf(fake.secretKey);
  prices = {
    pro: await makePrice("Pro", 699, "month"),
    proYear: await makePrice("ProYear", 6999, "year"),
    premium: await makePrice("Premium", 1299, "month"),
  };
});
afterEach(() => fake.close());

const typesSince = (from: number) =>
  Object.values(fake.account().objects.events)
    .slice(from)
    .map((event) => event.type);
const eventCount = () => Object.keys(fake.account().objects.events).length;

async function openCheckout(customer: string, price = prices.pro.id): Promise<string> {
  const session = await stripe.checkout.sessions.create({
    mode: "subscription",
    customer,
    line_items: [{ price, quantity: 1 }],
    success_url: "https://app.example.org/done?session={CHECKOUT_SESSION_ID}",
    cancel_url: "https://app.example.org/plans",
    client_reference_id: "user-1",
    metadata: { user: "user-1" },
    subscription_data: { metadata: { user: "user-1" } },
    allow_promotion_codes: true,
  });
  return session.id;
}

/** A customer who has just paid for the first period by checkout. */
async function subscribe(price = prices.pro.id): Promise<{ customer: string; id: string; item: string }> {
  const { id: customer } = await stripe.customers.create({ email: "ann@example.org" });
  expect(fake.completeCheckout(await openCheckout(customer, price))).toBe("paid");
  const { data } = await stripe.subscriptions.list({ customer });
  return { customer, id: data[0]!.id, item: data[0]!.items.data[0]!.id };
}

const now = (customer: string) => fake.truth(customer).subscriptions[0]!;

describe("a life", () => {
  test("subscribe: the checkout is complete, the first period is paid, everything is told", async () => {
    const { id: customer } = await stripe.customers.create({ email: "ann@example.org" });
    const session = await openCheckout(customer);
    const from = eventCount();
    expect(fake.completeCheckout(session)).toBe("paid");
    const done = await stripe.checkout.sessions.retrieve(session, { expand: ["line_items", "subscription"] });
    expect(done).toMatchObject({
      status: "complete",
      payment_status: "paid",
      url: null,
      client_reference_id: "user-1",
    });
    expect(done.line_items?.data[0]?.price?.id).toBe(prices.pro.id);
    const subscription = done.subscription as Stripe.Subscription;
    const [item] = subscription.items.data;
    expect(subscription).toMatchObject({ status: "active", customer, metadata: { user: "user-1" } });
    expect(subscription).not.toHaveProperty("current_period_end");
    expect([item!.current_period_start, item!.current_period_end]).toEqual([START, Date.UTC(2027, 1, 15, 12) / 1000]);
    expect(typesSince(from)).toEqual([
      "payment_method.attached",
      "customer.subscription.created",
      "invoice.created",
      "customer.subscription.updated",
      "invoice.finalized",
      "payment_intent.created",
      "charge.succeeded",
      "payment_intent.succeeded",
      "invoice_payment.paid",
      "invoice.paid",
      "invoice.payment_succeeded",
      "customer.subscription.updated",
      "checkout.session.completed",
    ]);
    expect(now(customer)).toMatchObject({ status: "active", lookupKey: "pro_month", endsAt: null, due: null });
  });

  test("renew: a draft for an hour, then paid; the anchor's day comes back after a short month", async () => {
    fake.advance(Date.UTC(2027, 0, 31, 12) / 1000);
    const { customer, id } = await subscribe();
    expect(now(customer).periodEnd).toBe(Date.UTC(2027, 1, 28, 12) / 1000);
    fake.advance(Date.UTC(2027, 1, 28, 12, 30) / 1000);
    const draft = await stripe.subscriptions.retrieve(id, { expand: ["latest_invoice"] });
    expect(draft.latest_invoice).toMatchObject({ status: "draft", billing_reason: "subscription_cycle" });
    expect(draft.status).toBe("active");
    fake.advance({ hours: 1 });
    const paid = await stripe.invoices.retrieve((draft.latest_invoice as Stripe.Invoice).id!, { expand: ["payments"] });
    expect(paid).toMatchObject({ status: "paid", amount_paid: 699 });
    expect(paid.parent?.subscription_details?.subscription).toBe(id);
    expect(paid.payments?.data[0]?.payment.type).toBe("payment_intent");
    expect(now(customer).periodEnd).toBe(Date.UTC(2027, 2, 31, 12) / 1000);
    expect(fake.truth(customer).charges.length).toBe(2);
  });

  test("a declined card: past due, tried again by the schedule, paid in the end", async () => {
    const { customer, id } = await subscribe();
    fake.setCard(customer, "declined");
    const from = eventCount();
    fake.advance({ months: 1, hours: 2 });
    expect(now(customer)).toMatchObject({ status: "past_due", due: { amount: 699, actionRequired: false } });
    expect(typesSince(from)).toContain("invoice.payment_failed");
    const { due } = now(customer);
    expect(due!.nextAttempt).toBe(Date.UTC(2027, 1, 18, 13) / 1000);
    const failed = stripe.invoices.pay(due!.invoice);
    const error = { type: "StripeCardError", code: "card_declined", statusCode: 402 };
    expect(await failed.catch((reason: unknown) => reason)).toMatchObject(error);
    expect(now(customer).due).toEqual(due);
    fake.setCard(customer, "ok");
    fake.advance({ days: 4 });
    expect(now(customer)).toMatchObject({ status: "active", due: null });
    expect((await stripe.subscriptions.retrieve(id)).status).toBe("active");
  });

  test("Stripe gives up: after the last try it is canceled, and the invoice is never tried again", async () => {
    const { customer } = await subscribe();
    fake.setCard(customer, "declined");
    const from = eventCount();
    fake.advance({ months: 1, days: 16 });
    expect(now(customer)).toMatchObject({ status: "canceled", due: { nextAttempt: null } });
    const types = typesSince(from);
    expect(types.filter((type) => type === "invoice.payment_failed").length).toBe(4);
    expect(types.at(-1)).toBe("customer.subscription.deleted");
    const [event] = (await stripe.events.list({ type: "customer.subscription.deleted" })).data;
    const ended = event!.data.object as Stripe.Subscription;
    expect(ended.cancellation_details?.reason).toBe("payment_failed");
    expect(ended.ended_at).toBe(now(customer).endedAt);
    fake.setCard(customer, "ok");
    fake.advance({ months: 3 });
    expect(fake.truth(customer).charges.filter((charge) => charge.paid).length).toBe(1);
  });

  test("a first payment that fails leaves it incomplete; the same checkout can still be paid", async () => {
    const { id: customer } = await stripe.customers.create({});
    const session = await openCheckout(customer);
    expect(fake.completeCheckout(session, { card: "declined" })).toBe("declined");
    expect((await stripe.checkout.sessions.retrieve(session)).status).toBe("open");
    expect(now(customer).status).toBe("incomplete");
    expect(fake.completeCheckout(session)).toBe("paid");
    expect(fake.truth(customer).subscriptions.map(({ status }) => status)).toEqual(["active"]);
  });

  test("incomplete expires after 23 hours; the invoice is void; the event is an update", async () => {
    const { id: customer } = await stripe.customers.create({});
    fake.completeCheckout(await openCheckout(customer), { card: "declined" });
    fake.advance({ hours: 22 });
    expect(now(customer).status).toBe("incomplete");
    const from = eventCount();
    fake.advance({ hours: 2 });
    expect(now(customer)).toMatchObject({ status: "incomplete_expired", due: null });
    expect(typesSince(from)).toContain("customer.subscription.updated");
    expect(typesSince(from)).not.toContain("customer.subscription.deleted");
    expect((await stripe.subscriptions.list({ customer, status: "ended" })).data.length).toBe(1);
  });

  test("the bank asks: action required, confirmed by the person", async () => {
    const { id: customer } = await stripe.customers.create({});
    const session = await openCheckout(customer);
    const from = eventCount();
    expect(fake.completeCheckout(session, { card: "requires_action" })).toBe("requires_action");
    expect(typesSince(from)).toContain("invoice.payment_action_required");
    expect(now(customer)).toMatchObject({ status: "incomplete", due: { actionRequired: true } });
    expect(fake.confirmCheckout(session)).toBe("paid");
    expect(now(customer).status).toBe("active");
    fake.advance({ months: 1, hours: 2 });
    expect(now(customer)).toMatchObject({ status: "past_due", due: { actionRequired: true } });
    expect(fake.portal.pay(now(customer).due!.invoice, { confirmed: true })).toBe("paid");
    expect(now(customer).status).toBe("active");
  });

  test("an upgrade in mid-period: credit and charge at once, the cycle stays; a preview says the same", async () => {
    const { customer, id, item } = await subscribe();
    const { periodStart, periodEnd } = now(customer);
    fake.advance((periodStart + periodEnd) / 2);
    const details = { items: [{ id: item, price: prices.premium.id }], proration_behavior: "always_invoice" as const };
    const preview = await stripe.invoices.createPreview({ subscription: id, subscription_details: details });
    const updated = await stripe.subscriptions.update(id, { ...details, expand: ["latest_invoice"] });
    const invoice = updated.latest_invoice as Stripe.Invoice;
    expect(invoice).toMatchObject({ billing_reason: "subscription_update", status: "paid", amount_due: 300 });
    expect(preview.amount_due).toBe(300);
    expect(invoice.lines.data.map((line) => line.amount)).toEqual([-350, 650]);
    expect(invoice.lines.data.every((line) => line.parent?.subscription_item_details?.proration)).toBe(true);
    expect(now(customer)).toMatchObject({ lookupKey: "premium_month", periodEnd });
    expect(updated.items.data.map((one) => one.id)).toEqual([item]);
  });

  test("prorations that are only created wait for the next invoice; a down-grade's credit lowers it", async () => {
    const { customer, id, item } = await subscribe(prices.premium.id);
    const { periodStart, periodEnd } = now(customer);
    fake.advance((periodStart + periodEnd) / 2);
    await stripe.subscriptions.update(id, { items: [{ id: item, price: prices.pro.id }] });
    expect(fake.truth(customer).charges.length).toBe(1);
    fake.advance(periodEnd + 2 * 3600);
    const [newest] = (await stripe.invoices.list({ customer, limit: 1 })).data;
    expect(newest).toMatchObject({ status: "paid", amount_paid: 699 - 300 });
  });

  test("another interval begins a new cycle now", async () => {
    const { customer, id, item } = await subscribe();
    fake.advance({ days: 10 });
    await stripe.subscriptions.update(id, { items: [{ id: item, price: prices.proYear.id }] });
    expect(now(customer)).toMatchObject({ interval: "year", periodStart: START + 10 * DAY });
    expect(fake.truth(customer).charges[0]!.amount).toBe(6999 - Math.round((699 * 21) / 31));
  });

  test("an item without its id is added, not changed: who forgets it sells two", async () => {
    const { id } = await subscribe();
    const both = await stripe.subscriptions.update(id, { items: [{ price: prices.premium.id }] });
    expect(both.items.data.length).toBe(2);
  });

  test("an upgrade whose payment fails: refused, or waiting, or past due, as asked", async () => {
    const { customer, id, item } = await subscribe();
    fake.advance({ days: 5 });
    fake.setCard(customer, "declined");
    const change = { items: [{ id: item, price: prices.premium.id }], proration_behavior: "always_invoice" as const };
    const refused = stripe.subscriptions.update(id, { ...change, payment_behavior: "error_if_incomplete" });
    expect(await refused.catch((reason: unknown) => reason)).toMatchObject({ code: "card_declined" });
    expect(now(customer)).toMatchObject({ lookupKey: "pro_month", status: "active" });
    const waiting = await stripe.subscriptions.update(id, { ...change, payment_behavior: "pending_if_incomplete" });
    expect(waiting.pending_update?.subscription_items?.[0]?.price.id).toBe(prices.premium.id);
    expect(now(customer)).toMatchObject({ lookupKey: "pro_month", status: "active" });
    expect(fake.portal.pay(now(customer).due!.invoice)).toBe("declined");
    fake.setCard(customer, "ok");
    expect(fake.portal.pay(now(customer).due!.invoice)).toBe("paid");
    expect(now(customer)).toMatchObject({ lookupKey: "premium_month", status: "active" });
    fake.setCard(customer, "declined");
    const back = { items: [{ id: item, price: prices.proYear.id }] };
    await stripe.subscriptions.update(id, back);
    expect(now(customer)).toMatchObject({ lookupKey: "proyear_year", status: "past_due" });
  });

  test("cancel at the period's end, take it back, cancel again, and it ends", async () => {
    const { customer, id } = await subscribe();
    const ending = await stripe.subscriptions.update(id, { cancel_at_period_end: true });
    const { periodEnd } = now(customer);
    expect(ending).toMatchObject({ status: "active", cancel_at_period_end: true, cancel_at: periodEnd });
    expect(ending.canceled_at).toBe(START);
    await stripe.subscriptions.update(id, { cancel_at_period_end: false });
    expect(now(customer)).toMatchObject({ cancelAtPeriodEnd: false, endsAt: null });
    fake.advance({ months: 1, hours: 2 });
    expect(now(customer).status).toBe("active");
    await stripe.subscriptions.update(id, { cancel_at_period_end: true });
    fake.advance({ months: 1 });
    expect(now(customer)).toMatchObject({ status: "canceled", endedAt: Date.UTC(2027, 2, 15, 12) / 1000 });
    expect(fake.truth(customer).charges.length).toBe(2);
  });

  test("the portal cancels with a date and leaves the old flag false; only the date takes it back", async () => {
    const { customer, id } = await subscribe();
    fake.portal.cancel(id);
    const { periodEnd } = now(customer);
    const ending = await stripe.subscriptions.retrieve(id);
    expect(ending).toMatchObject({ cancel_at: periodEnd, cancel_at_period_end: false, status: "active" });
    await stripe.subscriptions.update(id, { cancel_at_period_end: false });
    expect(now(customer).endsAt).toBe(periodEnd);
    await stripe.subscriptions.update(id, { cancel_at: "" });
    expect(now(customer).endsAt).toBe(null);
    fake.portal.cancel(id);
    fake.portal.resume(id);
    expect(now(customer).endsAt).toBe(null);
  });

  test("in classic billing the portal sets the flag", async () => {
    fake.settings.billingMode = "classic";
    const { id } = await subscribe();
    fake.portal.cancel(id);
    expect((await stripe.subscriptions.retrieve(id)).cancel_at_period_end).toBe(true);
  });

  test("the portal upgrades now and down-grades at the period's end", async () => {
    const { customer, id } = await subscribe();
    await stripe.billingPortal.sessions.create({ customer, return_url: "https://app.example.org" });
    expect(fake.portal.changePlan(id, prices.premium.id)).toBe("changed");
    expect(now(customer).lookupKey).toBe("premium_month");
    expect(fake.portal.changePlan(id, prices.pro.id)).toBe("scheduled");
    expect(now(customer)).toMatchObject({ lookupKey: "premium_month", nextPrice: prices.pro.id });
    const { schedule } = await stripe.subscriptions.retrieve(id, { expand: ["schedule"] });
    expect((schedule as Stripe.SubscriptionSchedule).phases.length).toBe(2);
    fake.advance({ months: 1, hours: 2 });
    expect(now(customer)).toMatchObject({ lookupKey: "pro_month", status: "active" });
    expect(fake.truth(customer).charges[0]!.amount).toBe(699);
    fake.advance({ months: 1, hours: 2 });
    expect((await stripe.subscriptions.retrieve(id)).schedule).toBe(null);
    fake.setCard(customer, "declined");
    expect(fake.portal.changePlan(id, prices.premium.id)).toBe("declined");
    expect(now(customer)).toMatchObject({ lookupKey: "pro_month", status: "active" });
  });

  test("collection paused: the status stays, invoices are void; a pause is another thing", async () => {
    const { customer, id } = await subscribe();
    await stripe.subscriptions.update(id, { pause_collection: { behavior: "void" } });
    fake.advance({ months: 1, hours: 2 });
    expect(now(customer)).toMatchObject({ status: "active", collectionPaused: true, due: null });
    expect((await stripe.invoices.list({ customer, limit: 1 })).data[0]!.status).toBe("void");
    await stripe.subscriptions.update(id, { pause_collection: "" });
    const from = eventCount();
    await stripe.subscriptions.pause(id, { bill_for: { unused_time_from: { type: "none" } } });
    expect(now(customer).status).toBe("paused");
    fake.advance({ months: 2 });
    expect(now(customer).status).toBe("paused");
    const resumed = await stripe.subscriptions.resume(id);
    expect(resumed.status).toBe("active");
    expect(now(customer).periodStart).toBe(fake.now());
    const types = typesSince(from);
    expect(types).toContain("customer.subscription.paused");
    expect(types).toContain("customer.subscription.resumed");
  });

  test("dispute and refund name the charge; from there one finds the customer", async () => {
    const { customer } = await subscribe();
    const [charge] = fake.truth(customer).charges;
    const from = eventCount();
    const dispute = fake.openDispute(charge!.id);
    expect((await stripe.charges.retrieve(dispute.charge)).customer).toBe(customer);
    fake.closeDispute(dispute.id, "lost");
    expect(typesSince(from)).toEqual([
      "charge.dispute.created",
      "charge.dispute.funds_withdrawn",
      "charge.dispute.closed",
    ]);
    fake.advance({ months: 1, hours: 2 });
    const [second] = fake.truth(customer).charges;
    fake.refund(second!.id, 200);
    await stripe.refunds.create({ charge: second!.id });
    expect(fake.truth(customer).charges[0]).toMatchObject({ refunded: 699 });
    const again = stripe.refunds.create({ charge: second!.id });
    expect(await again.catch((reason: unknown) => reason)).toMatchObject({ code: "charge_already_refunded" });
    expect(now(customer).status).toBe("active");
  });

  test("deleting a customer ends what it has; what is left of it is a word", async () => {
    const { customer, id } = await subscribe();
    const from = eventCount();
    expect(await stripe.customers.del(customer)).toMatchObject({ id: customer, deleted: true });
    expect(typesSince(from)).toEqual(["customer.subscription.deleted", "customer.deleted"]);
    expect(await stripe.customers.retrieve(customer)).toEqual(expect.objectContaining({ deleted: true }));
    expect((await stripe.subscriptions.retrieve(id)).status).toBe("canceled");
    expect(fake.truth(customer).customer).toBe("deleted");
    const again = stripe.customers.update(customer, { email: "x@example.org" });
    expect(await again.catch((reason: unknown) => reason)).toMatchObject({ statusCode: 404, code: "resource_missing" });
    expect(await openCheckout(customer).catch((reason: unknown) => reason)).toMatchObject({ param: "customer" });
  });

  test("cancelled at once: unknown to a second cancellation, never updated again", async () => {
    const { id } = await subscribe();
    const cancelled = await stripe.subscriptions.cancel(id, { cancellation_details: { comment: "bye" } });
    expect(cancelled).toMatchObject({ status: "canceled", cancellation_details: { comment: "bye" } });
    const again = stripe.subscriptions.cancel(id);
    expect(await again.catch((reason: unknown) => reason)).toMatchObject({ statusCode: 404, code: "resource_missing" });
    const update = stripe.subscriptions.update(id, { cancel_at_period_end: true });
    expect(await update.catch((reason: unknown) => reason)).toMatchObject({ statusCode: 400 });
  });

  test("a subscription by the API, with Stripe's test cards", async () => {
    const make = (method: string) =>
      stripe.customers.create({ payment_method: method, invoice_settings: { default_payment_method: method } });
    const items = [{ price: prices.pro.id }];
    const { id: good } = await make("pm_card_visa");
    expect((await stripe.subscriptions.create({ customer: good, items })).status).toBe("active");
    const { id: bad } = await make("pm_card_chargeCustomerFail");
    expect((await stripe.subscriptions.create({ customer: bad, items })).status).toBe("incomplete");
    const refused = stripe.subscriptions.create({ customer: bad, items, payment_behavior: "error_if_incomplete" });
    expect(await refused.catch((reason: unknown) => reason)).toMatchObject({ type: "StripeCardError" });
    expect(fake.truth(bad).subscriptions.length).toBe(1);
    const { id: poor } = await stripe.customers.create({});
    const without = stripe.subscriptions.create({ customer: poor, items });
    expect(await without.catch((reason: unknown) => reason)).toMatchObject({ code: "resource_missing" });
  });

  test("a test clock moves only its own customers", async () => {
    const clock = await stripe.testHelpers.testClocks.create({ frozen_time: START });
    const { id: clocked } = await stripe.customers.create({ test_clock: clock.id });
    fake.completeCheckout(await openCheckout(clocked));
    const { customer: other } = await subscribe();
    await stripe.testHelpers.testClocks.advance(clock.id, { frozen_time: START + 40 * DAY });
    expect(fake.truth(clocked).charges.length).toBe(2);
    expect(fake.truth(other).charges.length).toBe(1);
    expect(fake.now()).toBe(START);
  });
});

test("a shop that runs was not asleep while it was switched off", async () => {
  const { customer } = await subscribe();
  const snapshot = fake.snapshot();
  await fake.close();
  const longAgo = Math.floor(Date.now() / 1000) - 40 * DAY;
  const shift = (text: string) => text.replace(/\b18\d{8}\b/g, (number) => String(Number(number) - START + longAgo));
  const moved = JSON.parse(shift(JSON.stringify(snapshot))) as typeof snapshot;
  fake = await startFakeStripe({ snapshot: moved, running: true });
  stripe = clientOf(fake.secretKey);
  await stripe.customers.list();
  expect(fake.truth(customer).charges.length).toBe(2);
  expect(now(customer)).toMatchObject({ status: "active", periodStart: expect.any(Number) });
  expect(now(customer).periodEnd).toBeGreaterThan(Date.now() / 1000);
});

test("what it knows can be written down and read again", async () => {
  const { customer, id } = await subscribe();
  fake.setCard(customer, "declined");
  const snapshot = JSON.parse(JSON.stringify(fake.snapshot())) as ReturnType<FakeStripe["snapshot"]>;
  const before = fake.truth(customer);
  await fake.close();
  fake = await startFakeStripe({ snapshot });
  stripe = clientOf(fake.secretKey);
  expect(fake.now()).toBe(START);
  expect(fake.truth(customer)).toEqual(before);
  expect((await stripe.subscriptions.retrieve(id)).status).toBe("active");
  fake.advance({ months: 1, hours: 2 });
  expect(now(customer).status).toBe("past_due");
});
