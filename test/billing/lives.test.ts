import { afterAll, beforeAll, expect, test } from "bun:test";
import { checkInvariants } from "../../src/services/invariants.ts";
import { until } from "../harness.ts";
import { auditOf, buy, mailsOf, makeBuyer, makeSubscriber, openShop, planOf, rowOf, type Shop } from "./shop.ts";

let shop: Shop;
beforeAll(async () => void (shop = await openShop()));
afterAll(() => shop.stop());

const DAY = 86_400;

/** What Stripe says of a customer's newest subscription is what the row says. */
async function expectTruth(userId: string, customer: string): Promise<void> {
  const truth = shop.stripe.truth(customer).subscriptions[0]!;
  expect(await rowOf(shop.sql, userId)).toMatchObject({
    stripeSubscriptionId: truth.id,
    status: truth.status,
    currentPeriodEnd: new Date(truth.periodEnd * 1000),
    cancelAtPeriodEnd: truth.cancelAtPeriodEnd,
    cancelAt: truth.endsAt === null ? null : new Date(truth.endsAt * 1000),
  });
}

test("free → pro → declined card → kept while Stripe tries → paid", async () => {
  const { stripe, sql } = shop;
  const { user, customer } = await makeBuyer(shop);
  expect(await planOf(user)).toBe("free");
  buy(shop, customer, "pro monthly");
  await shop.settled();
  expect(await planOf(user)).toBe("pro");
  await expectTruth(user.id, customer);
  expect(await rowOf(sql, user.id)).toMatchObject({ plan: "pro", billingCycle: "monthly", dueMicroUsd: null });
  expect(await mailsOf(sql, user.id)).toMatchObject([
    { template: "plan-changed", params: { from_plan: "free", to_plan: "pro" } },
  ]);
  expect(await auditOf(sql, user.id, "subscription.changed")).toMatchObject([{ from: "free", to: "pro" }]);

  stripe.setCard(customer, "declined");
  stripe.advance({ months: 1 });
  stripe.advance({ hours: 2 });
  await shop.settled();
  await expectTruth(user.id, customer);
  const row = (await rowOf(sql, user.id))!;
  const due = stripe.truth(customer).subscriptions[0]!.due!;
  expect(row).toMatchObject({ plan: "pro", status: "past_due", dueMicroUsd: 6_990_000, graceUntil: null });
  expect(row.payUrl).toContain(due.invoice);
  expect(row.pastDueSince!.getTime()).toBeLessThanOrEqual(stripe.now() * 1000);
  expect(await planOf(user)).toBe("pro");
  // Its retries are no new episodes.
  stripe.advance({ days: 3 });
  await shop.settled();
  expect((await mailsOf(sql, user.id)).map(({ template }) => template)).toEqual(["plan-changed", "payment-failed"]);
  expect((await rowOf(sql, user.id))!.pastDueSince).toEqual(row.pastDueSince);

  stripe.portal.changeCard(customer, "ok");
  stripe.portal.pay(due.invoice);
  await shop.settled();
  await expectTruth(user.id, customer);
  expect(await rowOf(sql, user.id)).toMatchObject({
    status: "active",
    pastDueSince: null,
    dueMicroUsd: null,
    payUrl: null,
  });
  // A month later it fails once more: that is told once more.
  stripe.setCard(customer, "declined");
  stripe.advance({ months: 1 });
  stripe.advance({ hours: 2 });
  await shop.settled();
  expect((await mailsOf(sql, user.id)).filter(({ template }) => template === "payment-failed").length).toBe(2);
});

test("nobody pays, and Stripe gives up: free", async () => {
  const { stripe, sql } = shop;
  const { user, customer } = await makeSubscriber(shop, "premium monthly");
  stripe.setCard(customer, "declined");
  stripe.advance({ months: 1 });
  stripe.advance({ hours: 2 });
  await shop.settled();
  stripe.advance({ days: 20 });
  await shop.settled();
  expect(await rowOf(sql, user.id)).toMatchObject({ status: "canceled", plan: "premium", dueMicroUsd: null });
  expect(await planOf(user)).toBe("free");
  expect((await mailsOf(sql, user.id)).map(({ template }) => template)).toEqual([
    "plan-changed",
    "payment-failed",
    "plan-changed",
  ]);
});

test("an upgrade counts at once; a down-grade and an end count at the period's end", async () => {
  const { stripe, prices, sql } = shop;
  const { user, customer, subscription } = await makeSubscriber(shop, "pro monthly");
  stripe.advance({ days: 10 });
  expect(stripe.portal.changePlan(subscription, prices["premium monthly"])).toBe("changed");
  await shop.settled();
  expect(await planOf(user)).toBe("premium");
  await expectTruth(user.id, customer);
  expect(stripe.portal.changePlan(subscription, prices["pro monthly"])).toBe("scheduled");
  await shop.settled();
  expect(await planOf(user)).toBe("premium");
  stripe.advance({ months: 1 });
  await shop.settled();
  expect(await planOf(user)).toBe("pro");
  stripe.portal.cancel(subscription);
  await shop.settled();
  await expectTruth(user.id, customer);
  expect(await planOf(user)).toBe("pro");
  const end = stripe.truth(customer).subscriptions[0]!.periodEnd;
  stripe.advance(end - DAY);
  await shop.settled();
  expect(await planOf(user)).toBe("pro");
  stripe.advance(end + 1);
  await shop.settled();
  expect(await planOf(user)).toBe("free");
  expect(await rowOf(sql, user.id)).toMatchObject({ status: "canceled" });
  expect((await auditOf(sql, user.id, "subscription.changed")).map(({ to }) => to)).toEqual([
    "pro",
    "premium",
    "pro",
    "free",
  ]);
});

test("an end that was set is taken back", async () => {
  const { user, customer, subscription } = await makeSubscriber(shop, "pro yearly");
  shop.stripe.portal.cancel(subscription);
  await shop.settled();
  await expectTruth(user.id, customer);
  shop.stripe.portal.resume(subscription);
  await shop.settled();
  await expectTruth(user.id, customer);
  expect((await rowOf(shop.sql, user.id))!.cancelAt).toBeNull();
  expect(await planOf(user)).toBe("pro");
});

test("a first payment that does not go through gives nothing", async () => {
  const { user, customer } = await makeBuyer(shop);
  buy(shop, customer, "pro monthly", "requires_action");
  await shop.settled();
  expect(await planOf(user)).toBe("free");
  shop.stripe.advance({ days: 2 });
  await shop.settled();
  expect(await planOf(user)).toBe("free");
  expect(await mailsOf(shop.sql, user.id)).toEqual([]);
});

test("a refund changes no plan; a dispute is audited, alarmed, and changes none", async () => {
  const { stripe, sql, reef } = shop;
  const { user, customer } = await makeSubscriber(shop, "pro monthly");
  const { id } = stripe.truth(customer).charges[0]!;
  stripe.refund(id);
  await shop.settled();
  expect(await planOf(user)).toBe("pro");
  const other = await makeSubscriber(shop, "pro monthly");
  const charge = stripe.truth(other.customer).charges[0]!.id;
  stripe.openDispute(charge);
  await shop.settled();
  expect(await auditOf(sql, other.user.id, "subscription.disputed")).toMatchObject([{ charge }]);
  const alarms = () => reef.logs.filter((line) => line.includes("is disputed") && line.includes('"level":"error"'));
  await until("it is alarmed", () => alarms().length === 1);
  expect(await planOf(other.user)).toBe("pro");
  // The event once more is no second dispute.
  const event = Object.values(stripe.account().objects.events).findLast(
    (one) => one.type === "charge.dispute.created",
  )!;
  await stripe.webhooks.replay(event);
  await shop.settled();
  expect((await auditOf(sql, other.user.id, "subscription.disputed")).length).toBe(1);
  expect(alarms().length).toBe(1);
});

test("a customer that is deleted at Stripe has nothing left, and the row says so", async () => {
  const { stripe, sql } = shop;
  const { user, customer } = await makeSubscriber(shop, "premium yearly");
  stripe.deleteCustomer(customer);
  await shop.settled();
  expect(await planOf(user)).toBe("free");
  expect(await rowOf(sql, user.id)).toMatchObject({ status: "canceled" });
  const gone = async () =>
    (
      await sql<{ gone: boolean }[]>`
      select gone_at is not null as gone from stripe_customers where user_id = ${user.id}`
    )[0]!.gone;
  expect(await gone()).toBe(true);
});

test("two subscriptions, made by hand: the larger counts, and it is alarmed", async () => {
  const { stripe, sql, reef } = shop;
  const { user, customer, subscription } = await makeSubscriber(shop, "premium monthly");
  const second = buy(shop, customer, "pro monthly");
  await shop.settled();
  expect(await planOf(user)).toBe("premium");
  expect((await rowOf(sql, user.id))!.stripeSubscriptionId).toBe(subscription);
  expect(reef.logs.some((line) => line.includes("pays for two subscriptions") && line.includes(second))).toBe(true);
  stripe.cancelNow(subscription);
  await shop.settled();
  expect(await planOf(user)).toBe("pro");
  expect((await rowOf(sql, user.id))!.stripeSubscriptionId).toBe(second);
});

test("all that holds, holds", async () => {
  const findings = await checkInvariants(shop.reef.deps, { patienceMs: 5_000, timeoutMs: 10_000 });
  expect(findings.filter(({ rule }) => rule === 8).map(({ id, violations }) => [id, violations])).toEqual([
    ["billing_inbox", 0],
    ["billing_applied", 0],
    ["billing_fitted", 0],
    ["billing_prices", 0],
  ]);
});
