import { afterAll, beforeAll, expect, test } from "bun:test";
import { withAdvisoryLock } from "../../src/db/locks.ts";
import { runProgram, startDuty, type Duty } from "../jobs/program.ts";
import { buy, makeBuyer, makeSubscriber, openShop, planOf, type Shop } from "./shop.ts";

let shop: Shop;
let duty: Duty;
beforeAll(async () => {
  duty = startDuty();
  shop = await openShop();
  // What differs is looked at again after half of this, at most ten seconds.
  shop.reef.env["BILLING_RECONCILE_MS"] = "4000";
  shop.stripe.webhooks.policy = () => "drop";
});
afterAll(async () => {
  await shop.stop();
  await duty.stop();
});

const job = (env: Record<string, string> = {}) =>
  runProgram({ ...shop.reef.env, ALARM_WEBHOOK_URL: duty.url, ...env }, "src/jobs/reconcileBilling.ts");

test("the timer's job puts right what differs, and the processes then have nothing to do for a while", async () => {
  const buyer = await makeBuyer(shop);
  buy(shop, buyer.customer, "premium monthly");
  expect(await job()).toMatchObject({
    code: 0,
    out: "reconcile-billing: ok: 1 customers compared with Stripe, 1 put right, 0 left",
  });
  expect(await planOf(buyer.user)).toBe("premium");
  const [row] = await shop.sql`select outcome, details from job_runs where job = 'reconcile-billing'`;
  expect(row).toEqual({ outcome: "ok", details: { compared: 1, repaired: 1, left: 0 } });
  expect(duty.posts).toEqual([]);
  const { redis } = shop.reef.deps;
  expect(await redis.get("billing:slot")).not.toBe("test");
  expect(await redis.pttl("billing:slot")).toBeWithin(1, 6_001);
});

test("what a person has to look at is an alarm, told once, and over when it is right", async () => {
  const { sql } = shop;
  const { user, customer } = await makeSubscriber(shop, "pro monthly");
  await sql`update stripe_customers set customer_id = 'cus_other' where user_id = ${user.id}`;
  const { code, out } = await job();
  expect(code).toBe(0);
  expect(out).toMatch(/ [12] left; `reef admin billing repair` names/);
  expect(out).not.toContain(customer);
  await sql`update stripe_customers set customer_id = ${customer} where user_id = ${user.id}`;
  expect((await job()).code).toBe(0);
  expect(duty.posts.map(({ status, key }) => [status, key])).toEqual([
    ["firing", "stripe-drift"],
    ["resolved", "stripe-drift"],
  ]);
});

test("a process that is at it is not disturbed; a Stripe that is away is a failure; without Stripe there is nothing to do", async () => {
  const held = await withAdvisoryLock(shop.sql, "billing", () => job());
  expect(held).toMatchObject({ code: 0, out: "reconcile-billing: ok: a process of the API is at it" });
  shop.stripe.fault = () => ({ status: 401 });
  expect((await job()).code).toBe(1);
  shop.stripe.fault = null;
  expect(await job({ STRIPE_SECRET_KEY: "" })).toMatchObject({
    code: 0,
    out: "reconcile-billing: ok: nothing is sold here (no STRIPE_SECRET_KEY)",
  });
});
