import { afterAll, beforeAll, expect, test } from "bun:test";
import { until } from "../harness.ts";
import { buy, mailsOf, makeBuyer, openShop, planOf, rowOf, type Shop } from "./shop.ts";

const DAY = 86_400;
let shop: Shop;
/** Stripe's clock and ours agree when the payment fails: a month, an hour and a minute from its start. */
beforeAll(async () => {
  const now = Math.floor(Date.now() / 1000);
  shop = await openShop({ BILLING_GRACE_DAYS: "3" }, { now: now - 40 * DAY });
});
afterAll(() => shop.stop());

/** Past due since just now, by Stripe's clock; that goes on together with ours. */
async function failToPay() {
  const { stripe } = shop;
  const buyer = await makeBuyer(shop);
  const subscription = buy(shop, buyer.customer, "pro monthly");
  stripe.setCard(buyer.customer, "declined");
  stripe.advance({ months: 1 });
  stripe.advance({ hours: 2 });
  await shop.settled();
  return { ...buyer, subscription };
}
/** As if the payment had failed so many days ago. */
const age = (userId: string, days: number) => shop.sql`
  update subscriptions set past_due_since = now() - make_interval(days => ${days}),
    grace_until = now() - make_interval(days => ${days}) + interval '3 days' where user_id = ${userId}`;

test("the plan is kept for the days of grace, counted from the failure; the mail and the row say until when", async () => {
  const { user } = await failToPay();
  const row = (await rowOf(shop.sql, user.id))!;
  expect(row.graceUntil!.getTime() - row.pastDueSince!.getTime()).toBe(3 * DAY * 1000);
  const mail = (await mailsOf(shop.sql, user.id)).find(({ template }) => template === "payment-failed")!;
  expect(mail.params).toEqual({
    plan: "pro",
    at: row.pastDueSince!.toISOString(),
    grace_until: row.graceUntil!.toISOString(),
  });
});

test("when the grace is over Stripe is asked once more: who has paid keeps the plan, though the webhook is lost", async () => {
  const { stripe, sql } = shop;
  const { user, customer } = await failToPay();
  stripe.webhooks.policy = () => "drop";
  stripe.setCard(customer, "ok");
  stripe.portal.pay(stripe.truth(customer).subscriptions[0]!.due!.invoice);
  await age(user.id, 3);
  await until("it is active again", async () => (await rowOf(sql, user.id))!.status === "active");
  expect(await planOf(user)).toBe("pro");
  expect((await mailsOf(sql, user.id)).filter(({ params }) => params["to_plan"] === "free")).toEqual([]);
  stripe.webhooks.policy = () => "send";
});

test("a Stripe that hangs while many a grace ends holds up nobody whose plan is another's", async () => {
  const { stripe, sql } = shop;
  const late = [await makeBuyer(shop), await makeBuyer(shop), await makeBuyer(shop)];
  for (const { customer } of late) {
    buy(shop, customer, "pro monthly");
    stripe.setCard(customer, "declined");
  }
  stripe.advance({ months: 1 });
  stripe.advance({ hours: 2 });
  await shop.settled();
  const other = await makeBuyer(shop);
  const asked = new Set<unknown>();
  stripe.fault = ({ params }) => {
    asked.add(params["customer"]);
    return { hang: "beforeWork" };
  };
  // Nobody is told of it; the keeper finds them by the clock.
  await sql`alter table subscriptions disable trigger subscriptions_tell`;
  await sql`update subscriptions set grace_until = now() where user_id = any(${late.map(({ user }) => user.id)}::uuid[])`;
  await sql`alter table subscriptions enable trigger subscriptions_tell`;
  await until("Stripe is asked", () => asked.size > 0, 10_000);
  await sql`insert into subscriptions (user_id, source, plan, status) values (${other.user.id}, 'apple', 'pro', 'active')`;
  await until("it is applied", async () => (await mailsOf(sql, other.user.id)).length === 1, 30_000);
  expect(asked.size).toBeLessThanOrEqual(2);
  stripe.fault = null;
});

test("who has not paid when the grace is over is free, though Stripe still tries; and has it back when it succeeds", async () => {
  const { stripe, sql } = shop;
  const { user, customer } = await failToPay();
  // Stripe is away: by the rows alone.
  stripe.fault = () => ({ status: 500 });
  await age(user.id, 4);
  expect(await planOf(user)).toBe("free");
  await until("it is applied", async () =>
    (await mailsOf(sql, user.id)).some(({ params }) => params["to_plan"] === "free"),
  );
  stripe.fault = null;
  expect((await rowOf(sql, user.id))!.status).toBe("past_due");
  stripe.setCard(customer, "ok");
  stripe.portal.pay(stripe.truth(customer).subscriptions[0]!.due!.invoice);
  await shop.settled();
  expect(await planOf(user)).toBe("pro");
  expect(await rowOf(sql, user.id)).toMatchObject({ status: "active", graceUntil: null, pastDueSince: null });
});
