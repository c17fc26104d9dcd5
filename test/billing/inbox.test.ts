import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { syncCustomer, syncIfStale } from "../../src/services/billing.ts";
import { renderMetrics } from "../../src/services/metrics.ts";
import { makeUser } from "../factories.ts";
import { createPrice, createProduct } from "../fakes/stripeCatalog.ts";
import { createSubscription } from "../fakes/stripeSubscriptions.ts";
import { outOfOrder, shuffled } from "../fakes/stripeWebhooks.ts";
import { until } from "../harness.ts";
import {
  buy,
  isEmpty,
  makeBuyer,
  makeDue,
  makeSubscriber,
  mailsOf,
  openShop,
  planOf,
  rowOf,
  type Shop,
} from "./shop.ts";

let shop: Shop;
beforeAll(async () => void (shop = await openShop()));
afterAll(() => shop.stop());
afterEach(() => {
  shop.stripe.fault = null;
  shop.stripe.webhooks.policy = () => "send";
});

interface Waiting {
  id: string;
  attempts: number;
  lastError: string | null;
}
const waiting = (customer: string) => shop.sql<Waiting[]>`
  select id, attempts, last_error from stripe_events where customer_id = ${customer} and processed_at is null`;
/** All is done with, however long what has failed would wait. */
const drained = () =>
  until("the inbox is empty", async () => {
    await makeDue(shop.sql);
    return isEmpty(shop.sql);
  });
const metric = async (line: string) => {
  const { text } = await renderMetrics(shop.reef.deps, { peers: () => [] });
  return Number(
    text
      .split("\n")
      .find((one) => one.startsWith(line))
      ?.split(" ")
      .at(-1),
  );
};

for (const [name, fault, code] of [
  ["429", { status: 429, retryAfter: 1 }, "StripeRateLimitError rate_limit 429"],
  ["500", { status: 500 }, "StripeAPIError 500"],
  ["a cut connection", { cut: "beforeWork" }, "StripeConnectionError"],
  ["a connection cut after the work", { cut: "afterWork" }, "StripeConnectionError"],
  ["a wrong key", { status: 401 }, "StripeAuthenticationError 401"],
] as const) {
  test(`Stripe answers with ${name}: tried again, visible, alarmed, never given up`, async () => {
    const { stripe } = shop;
    const { user, customer } = await makeBuyer(shop);
    stripe.fault = () => fault;
    buy(shop, customer, "pro monthly");
    await stripe.webhooks.settled();
    await until("it has failed often", async () => {
      await makeDue(shop.sql);
      const rows = await waiting(customer);
      return rows.length > 0 && rows.every(({ attempts, lastError }) => attempts > 4 && lastError !== null);
    });
    for (const { lastError } of await waiting(customer)) expect(lastError).toBe(code);
    expect(await metric('reef_stripe_events{state="failed"}')).toBeGreaterThan(0);
    expect(await metric('reef_stripe_events{state="waiting"}')).toBeGreaterThan(0);
    expect(await metric("reef_stripe_events_oldest_seconds")).toBeGreaterThan(0);
    const alarmed = (line: string) => line.includes('"level":"error"') && line.includes(customer);
    expect(shop.reef.logs.some(alarmed)).toBe(true);
    expect(await planOf(user)).toBe("free");
    stripe.fault = null;
    await drained();
    expect(await planOf(user)).toBe("pro");
    expect(await metric('reef_stripe_events{state="waiting"}')).toBe(0);
  });
}

test("one customer for whom Stripe hangs holds up nobody else", async () => {
  const { stripe } = shop;
  const [slow, quick] = [await makeBuyer(shop), await makeBuyer(shop)];
  stripe.fault = ({ params }) => (params["customer"] === slow.customer ? { hang: "beforeWork" } : null);
  buy(shop, slow.customer, "pro monthly");
  buy(shop, quick.customer, "pro monthly");
  await until("the other has the plan", async () => (await planOf(quick.user)) === "pro");
  expect(await planOf(slow.user)).toBe("free");
  await until("the call was given up", async () => (await waiting(slow.customer)).some((row) => row.lastError), 15_000);
  stripe.fault = null;
  await drained();
  expect(await planOf(slow.user)).toBe("pro");
});

test("every event twice, in any order, months later: nothing but the truth comes of it", async () => {
  const { stripe, prices, sql } = shop;
  const { user, customer } = await makeBuyer(shop);
  stripe.webhooks.policy = () => "hold";
  const subscription = buy(shop, customer, "pro monthly");
  stripe.portal.changePlan(subscription, prices["premium monthly"]);
  stripe.portal.cancel(subscription);
  stripe.portal.resume(subscription);
  const events = [...stripe.webhooks.held];
  await stripe.webhooks.release((held) => shuffled([...held, ...held]));
  await shop.settled();
  expect(await planOf(user)).toBe("premium");
  const row = await rowOf(sql, user.id);
  stripe.webhooks.policy = outOfOrder(20);
  for (const event of events) await stripe.webhooks.replay(event);
  await shop.settled();
  expect(await rowOf(sql, user.id)).toEqual(row);
  expect((await mailsOf(sql, user.id)).length).toBe(1);
  // Months later what was done with is forgotten here, and told once more.
  await sql`update stripe_events set received_at = received_at - interval '91 days'`;
  const other = await shop.reef.deps.sql`select count(*)::int as n from stripe_events where customer_id = ${customer}`;
  expect(other[0]!["n"]).toBeGreaterThan(3);
  await sql`delete from stripe_events where processed_at is not null and received_at < now() - interval '90 days'`;
  for (const event of shuffled(events)) await stripe.webhooks.replay(event);
  await shop.settled();
  expect(await rowOf(sql, user.id)).toEqual(row);
  expect((await mailsOf(sql, user.id)).length).toBe(1);
});

test("all events of a burst are one fetch, or two", async () => {
  const { stripe } = shop;
  const { customer } = await makeSubscriber(shop, "pro monthly");
  stripe.webhooks.policy = () => "hold";
  for (let n = 0; n < 20; n++)
    stripe.portal[n % 2 === 0 ? "cancel" : "resume"](stripe.truth(customer).subscriptions[0]!.id);
  const { held } = stripe.webhooks;
  expect(held.length).toBeGreaterThanOrEqual(20);
  const deps = shop.reef.deps;
  await deps.sql.begin(async (tx) => {
    // Until all are there none is worked at.
    await tx`select 1 from stripe_customers where customer_id = ${customer} for update`;
    await stripe.webhooks.release();
  });
  const before = stripe.requests.length;
  await shop.settled();
  const fetches = stripe.requests.slice(before).filter(({ params }) => params["customer"] === customer).length;
  expect(fetches).toBeLessThanOrEqual(3);
});

/** Of a fetch that has its answer and has not come home with it. */
function slowly(deps: Shop["reef"]["deps"]): { deps: Shop["reef"]["deps"]; asked: Promise<void>; goOn: () => void } {
  const asked = Promise.withResolvers<void>();
  const gate = Promise.withResolvers<void>();
  const listSubscriptions = async (id: string) => {
    const answer = await deps.stripe.listSubscriptions(id);
    asked.resolve();
    await gate.promise;
    return answer;
  };
  return { deps: { ...deps, stripe: { ...deps.stripe, listSubscriptions } }, asked: asked.promise, goOn: gate.resolve };
}

test("of two fetches at once the older answer does not win", async () => {
  const { stripe, prices, sql, reef } = shop;
  const { user, customer, subscription } = await makeSubscriber(shop, "pro monthly");
  stripe.webhooks.policy = () => "drop";
  const older = slowly(reef.deps);
  const first = syncCustomer(older.deps, customer);
  await older.asked;
  stripe.portal.changePlan(subscription, prices["premium monthly"]);
  expect(await syncCustomer(reef.deps, customer)).toEqual({ outcome: "stored", changed: true });
  const row = await rowOf(sql, user.id);
  expect(row?.plan).toBe("premium");
  older.goOn();
  expect(await first).toEqual({ outcome: "superseded", changed: false });
  expect(await rowOf(sql, user.id)).toEqual(row);
});

test("of two fetches at once the first may come first, too", async () => {
  const { stripe, prices, sql, reef } = shop;
  const { user, customer, subscription } = await makeSubscriber(shop, "pro monthly");
  stripe.webhooks.policy = () => "drop";
  const [first, second] = [slowly(reef.deps), slowly(reef.deps)];
  const one = syncCustomer(first.deps, customer);
  await first.asked;
  stripe.portal.changePlan(subscription, prices["premium monthly"]);
  const two = syncCustomer(second.deps, customer);
  await second.asked;
  first.goOn();
  expect(await one).toEqual({ outcome: "stored", changed: false });
  expect((await rowOf(sql, user.id))?.plan).toBe("pro");
  second.goOn();
  expect(await two).toEqual({ outcome: "stored", changed: true });
  expect((await rowOf(sql, user.id))?.plan).toBe("premium");
});

test("many fetches of many customers at once", async () => {
  const buyers = await Promise.all(Array.from({ length: 4 }, () => makeBuyer(shop)));
  shop.stripe.webhooks.policy = () => ({ copies: 3, delayMs: 5 });
  for (const { customer } of buyers) buy(shop, customer, "pro yearly");
  await Promise.all(
    buyers.flatMap(({ customer }) => Array.from({ length: 4 }, () => syncCustomer(shop.reef.deps, customer))),
  );
  await shop.settled();
  for (const { user } of buyers) {
    expect(await planOf(user)).toBe("pro");
    expect((await mailsOf(shop.sql, user.id)).length).toBe(1);
  }
});

test("a lost webhook is made good by a question, asked no more often than is useful", async () => {
  const { stripe, reef } = shop;
  const { user, customer } = await makeBuyer(shop);
  stripe.webhooks.policy = () => "drop";
  buy(shop, customer, "pro monthly");
  const before = stripe.requests.length;
  const asked = await Promise.all(Array.from({ length: 5 }, () => syncIfStale(reef.deps, user.id, 60_000)));
  expect(asked.filter(Boolean).length).toBe(1);
  expect(stripe.requests.slice(before).filter(({ path }) => path === "/v1/subscriptions").length).toBe(1);
  expect(await planOf(user)).toBe("pro");
  expect(await syncIfStale(reef.deps, user.id, 60_000)).toBe(false);
  expect(await syncIfStale(reef.deps, (await makeUser(reef)).id, 0)).toBe(false);
  stripe.fault = () => ({ status: 500 });
  expect(await syncIfStale(reef.deps, user.id, 0)).toBe(false);
  expect(await planOf(user)).toBe("pro");
});

test("a price of no plan takes nothing away, is alarmed, and is made good when the price is known", async () => {
  const { stripe, sql, reef } = shop;
  const { user, customer, subscription } = await makeSubscriber(shop, "pro monthly");
  const account = stripe.account();
  const product = createProduct(account, { name: "Something else" }).id;
  const recurring = { interval: "month" };
  const price = createPrice(account, { product, currency: "usd", unit_amount: 500, recurring }).id;
  stripe.portal.changeCard(customer, "ok");
  stripe.cancelNow(subscription);
  createSubscription(account, { customer, items: [{ price }] });
  await stripe.webhooks.settled();
  await until("it has failed", async () => (await waiting(customer)).some((row) => row.lastError === "unknown_price"));
  expect(await planOf(user)).toBe("pro");
  const alarmed = (line: string) => line.includes('"level":"error"') && line.includes("of no plan");
  expect(reef.logs.some(alarmed)).toBe(true);
  await sql`insert into stripe_prices (price_id, plan, cycle, livemode, product_id, amount_micro_usd, current)
    values (${price}, 'premium', 'monthly', false, ${product}, 5000000, false)`;
  await drained();
  expect(await planOf(user)).toBe("premium");
  // Another price of a product that is known needs none of that.
  const special = createPrice(account, { product, currency: "usd", unit_amount: 100, recurring }).id;
  const other = await makeBuyer(shop);
  stripe.setCard(other.customer, "ok");
  createSubscription(account, { customer: other.customer, items: [{ price: special }] });
  await shop.settled();
  expect(await planOf(other.user)).toBe("premium");
});

test("a Stripe that never knew the customer takes no plan away: it is another account", async () => {
  const { sql, reef } = shop;
  const { user } = await makeSubscriber(shop, "pro monthly");
  const wrong = { ...reef.deps, config: reef.deps.config };
  await sql`update stripe_customers set customer_id = ${`cus_${user.id}`} where user_id = ${user.id}`;
  expect(await syncCustomer(wrong, `cus_${user.id}`)).toEqual({ outcome: "missing_customer", changed: false });
  expect(await planOf(user)).toBe("pro");
  // Who has nothing to lose gets another customer at the next checkout.
  const { user: free } = await makeBuyer(shop);
  await sql`update stripe_customers set customer_id = ${`cus_${free.id}`} where user_id = ${free.id}`;
  expect((await syncCustomer(reef.deps, `cus_${free.id}`)).outcome).toBe("stored");
  const [row] = await sql`select gone_at is not null as gone from stripe_customers where user_id = ${free.id}`;
  expect(row!["gone"]).toBe(true);
});
