import { afterAll, beforeAll, expect, test } from "bun:test";
import { call, makeUser } from "../factories.ts";
import { startProcess, startTestReef } from "../harness.ts";
import {
  checkout,
  customerOf,
  idIn,
  keysOf,
  liveSubscriptions,
  lookLater,
  makeSubscriber,
  openSessions,
  openShop,
  subscription,
  type Shop,
} from "./storefront.ts";

let shop: Shop;
beforeAll(async () => void (shop = await openShop()));
afterAll(() => shop.close());

const sessionOf = (url: string) => shop.stripe.account().objects.checkoutSessions[idIn(url)]!;
const portalOf = (url: string) => shop.stripe.account().objects.portalSessions[idIn(url)]!;
const priceOf = (key: string) =>
  Object.values(shop.stripe.account().objects.prices).find((price) => price.lookup_key === key)!.id;

test("somebody buys a plan: it is in force when the app comes back, though no webhook came", async () => {
  const user = await makeUser(shop.reef);
  expect(await subscription(user)).toEqual({
    plan: "free",
    source: "free",
    status: "none",
    billing_cycle: null,
    current_period_end: null,
    cancel_at_period_end: false,
    payment_due: null,
    checkout_open: false,
  });
  const { status, body } = await checkout(user, "pro");
  expect([status, Object.keys(body)]).toEqual([200, ["checkout_url"]]);
  const customer = await customerOf(shop, user);
  expect(sessionOf(body.checkout_url)).toMatchObject({
    customer,
    client_reference_id: user.id,
    metadata: { user_id: user.id, price_id: priceOf("reef_pro_monthly") },
    success_url: "https://app.example.org/subscription?checkout=done",
    cancel_url: "https://app.example.org/subscription?checkout=cancelled",
  });
  expect(shop.stripe.account().objects.customers[customer]).toMatchObject({
    email: user.email,
    metadata: { user_id: user.id },
  });
  expect(await subscription(user)).toMatchObject({ plan: "free", status: "none", checkout_open: true });
  shop.stripe.completeCheckout(idIn(body.checkout_url));
  const bought = await lookLater(shop, user);
  expect(bought).toMatchObject({
    plan: "pro",
    source: "stripe",
    status: "active",
    billing_cycle: "monthly",
    cancel_at_period_end: false,
    payment_due: null,
    checkout_open: false,
  });
  const [truth] = liveSubscriptions(shop, customer);
  expect(Date.parse(bought.current_period_end)).toBe(truth!.periodEnd * 1000);
  expect(truth!.metadata).toEqual({ user_id: user.id });
  expect((await user.call("GET", "/api/user/profile")).body.plan).toBe("pro");
});

test("asked again it is the same checkout; for another plan or cycle the first one is taken back", async () => {
  const user = await makeUser(shop.reef);
  const first = (await checkout(user, "pro")).body.checkout_url;
  expect((await checkout(user, "pro")).body.checkout_url).toBe(first);
  const customer = await customerOf(shop, user);
  for (const [plan, cycle] of [
    ["premium", "monthly"],
    ["premium", "yearly"],
    ["pro", "monthly"],
  ] as const) {
    const url = (await checkout(user, plan, cycle)).body.checkout_url;
    expect(openSessions(shop, customer).map(({ id }) => id)).toEqual([idIn(url)]);
    expect(sessionOf(url).metadata).toMatchObject({ price_id: priceOf(`reef_${plan}_${cycle}`) });
  }
  expect(sessionOf(first).status).toBe("expired");
});

test("one that has expired, or is about to, is not given again", async () => {
  const user = await makeUser(shop.reef);
  const first = (await checkout(user, "pro")).body.checkout_url;
  shop.stripe.account().objects.checkoutSessions[idIn(first)]!.status = "expired";
  const second = (await checkout(user, "pro")).body.checkout_url;
  expect(second).not.toBe(first);
  sessionOf(second).expires_at = Math.floor(Date.now() / 1000) + 300;
  const third = (await checkout(user, "pro")).body.checkout_url;
  const customer = await customerOf(shop, user);
  expect(openSessions(shop, customer).map(({ id }) => id)).toEqual([idIn(third)]);
  await shop.reef.sql`update stripe_customers set checkout_expires_at = now() where user_id = ${user.id}`;
  expect((await subscription(user)).checkout_open).toBe(false);
});

test("a checkout that was completed meanwhile: no second one, but what a subscriber gets", async () => {
  const user = await makeUser(shop.reef);
  shop.stripe.completeCheckout(idIn((await checkout(user, "pro")).body.checkout_url));
  const same = await checkout(user, "pro");
  expect([same.status, same.body.code]).toEqual([409, "already_subscribed"]);
  const other = await checkout(user, "premium");
  expect(portalOf(other.body.checkout_url).flow!.type).toBe("subscription_update_confirm");
  const customer = await customerOf(shop, user);
  expect([openSessions(shop, customer).length, liveSubscriptions(shop, customer).length]).toEqual([0, 1]);
});

test("a subscriber changes the plan on a page that confirms it; the same plan is refused", async () => {
  const user = await makeSubscriber(shop);
  const customer = await customerOf(shop, user);
  const [before] = liveSubscriptions(shop, customer);
  const { body } = await checkout(user, "premium");
  const session = portalOf(body.checkout_url);
  expect(session).toMatchObject({ customer, return_url: "https://app.example.org/subscription?portal=done" });
  const { subscription: id, items } = session.flow!.subscription_update_confirm!;
  expect([id, items[0]!.price]).toEqual([before!.id, priceOf("reef_premium_monthly")]);
  shop.stripe.portal.changePlan(id, items[0]!.price!);
  expect(await lookLater(shop, user)).toMatchObject({ plan: "premium", status: "active" });
  // Paid at once, the unused part of the old plan taken off.
  const charges = shop.stripe.truth(customer).charges.map(({ amount }) => amount);
  expect([charges.length, charges[0]! > 0, charges[0]! <= 1299]).toEqual([2, true, true]);
  expect((await checkout(user, "premium")).body.code).toBe("already_subscribed");
  expect(liveSubscriptions(shop, customer).map((one) => one.id)).toEqual([before!.id]);
});

test("a cheaper plan begins when what is paid for ends; while it waits the portal's first page is shown", async () => {
  const user = await makeSubscriber(shop, "premium");
  const customer = await customerOf(shop, user);
  const { items, subscription: id } = portalOf((await checkout(user, "pro")).body.checkout_url).flow!
    .subscription_update_confirm!;
  expect(shop.stripe.portal.changePlan(id, items[0]!.price!)).toBe("scheduled");
  expect(await lookLater(shop, user)).toMatchObject({ plan: "premium", status: "active" });
  const next = portalOf((await checkout(user, "pro", "yearly")).body.checkout_url);
  expect([next.customer, next.flow]).toEqual([customer, null]);
});

test("the same plan, set to end: refused, and told that it can be resumed", async () => {
  const user = await makeSubscriber(shop);
  await user.call("POST", "/api/subscription/cancel");
  const again = await checkout(user, "pro");
  expect([again.status, again.body.code, again.body.error]).toEqual([
    409,
    "already_subscribed",
    expect.stringContaining("resumed"),
  ]);
});

test("a page for the change that Stripe refuses: the portal's first page instead", async () => {
  const user = await makeSubscriber(shop);
  shop.stripe.failNext({ status: 400 }, ({ path }) => path === "/v1/billing_portal/sessions");
  const { status, body } = await checkout(user, "premium");
  expect([status, portalOf(body.checkout_url).flow]).toEqual([200, null]);
});

test("a card that is declined: nothing is given; the same plan is tried again there, another one begins anew", async () => {
  const user = await makeUser(shop.reef);
  const { checkout_url: url } = (await checkout(user, "pro")).body;
  expect(shop.stripe.completeCheckout(idIn(url), { card: "declined" })).toBe("declined");
  expect(await lookLater(shop, user)).toMatchObject({ plan: "free", status: "incomplete", checkout_open: true });
  expect((await checkout(user, "pro")).body.checkout_url).toBe(url);
  const other = (await checkout(user, "premium")).body.checkout_url;
  const customer = await customerOf(shop, user);
  expect(liveSubscriptions(shop, customer)).toEqual([]);
  expect(openSessions(shop, customer).map(({ id }) => id)).toEqual([idIn(other)]);
  shop.stripe.completeCheckout(idIn(other));
  expect(await lookLater(shop, user)).toMatchObject({ plan: "premium", status: "active", payment_due: null });
  expect(
    shop.stripe
      .truth(customer)
      .charges.filter(({ paid }) => paid)
      .map(({ amount }) => amount),
  ).toEqual([1299]);
});

test("a first payment that failed where the checkout is gone: the link of its invoice", async () => {
  const user = await makeUser(shop.reef);
  const { checkout_url: url } = (await checkout(user, "pro")).body;
  shop.stripe.completeCheckout(idIn(url), { card: "declined" });
  sessionOf(url).status = "expired";
  const again = (await checkout(user, "pro")).body.checkout_url;
  expect(again).toBe((await subscription(user)).payment_due.pay_url);
  const customer = await customerOf(shop, user);
  shop.stripe.setCard(customer, "ok");
  shop.stripe.portal.pay(idIn(again));
  expect(await lookLater(shop, user)).toMatchObject({ plan: "pro", status: "active", payment_due: null });
  expect(liveSubscriptions(shop, customer).length).toBe(1);
});

test("a payment is due: whatever plan is asked for, the link where it is paid", async () => {
  const user = await makeSubscriber(shop);
  const customer = await customerOf(shop, user);
  shop.stripe.setCard(customer, "declined");
  shop.stripe.advance({ months: 1, hours: 2 });
  const due = (await lookLater(shop, user)).payment_due;
  expect(due).toMatchObject({ amount: "6.99", grace_until: null });
  expect(await subscription(user)).toMatchObject({ plan: "pro", status: "past_due" });
  for (const plan of ["pro", "premium"]) expect((await checkout(user, plan)).body.checkout_url).toBe(due.pay_url);
  expect([openSessions(shop, customer).length, liveSubscriptions(shop, customer).length]).toEqual([0, 1]);
});

test("who was given a plan may buy one; the gift stays beside it", async () => {
  const user = await makeUser(shop.reef);
  await shop.reef.sql`insert into subscriptions (user_id, source, plan, status, current_period_end)
    values (${user.id}, 'grant', 'premium', 'active', now() + interval '1 day')`;
  expect(await subscription(user)).toMatchObject({ plan: "premium", source: "grant", cancel_at_period_end: true });
  shop.stripe.completeCheckout(idIn((await checkout(user, "pro")).body.checkout_url));
  expect(await lookLater(shop, user)).toMatchObject({
    plan: "premium",
    source: "grant",
    status: "active",
    billing_cycle: "monthly",
    cancel_at_period_end: false,
  });
});

test("a customer that was deleted at Stripe is replaced, whether we heard of it or not", async () => {
  for (const heard of [false, true]) {
    const user = await makeSubscriber(shop);
    const old = await customerOf(shop, user);
    shop.stripe.deleteCustomer(old);
    if (heard) {
      expect(await lookLater(shop, user)).toMatchObject({ plan: "free", status: "canceled" });
    }
    const { status, body } = await checkout(user, "premium");
    expect(status).toBe(200);
    const fresh = await customerOf(shop, user);
    expect([fresh === old, sessionOf(body.checkout_url).customer]).toEqual([false, fresh]);
    shop.stripe.completeCheckout(idIn(body.checkout_url));
    expect(await lookLater(shop, user)).toMatchObject({ plan: "premium", status: "active" });
  }
});

test("what can't be bought: unknown, free, no cycle, more than asked for", async () => {
  const user = await makeUser(shop.reef);
  for (const [body, path] of [
    [{ plan: "gold", billing_cycle: "monthly" }, "plan"],
    [{ plan: "free", billing_cycle: "monthly" }, "plan"],
    [{ plan: "__proto__", billing_cycle: "monthly" }, "plan"],
    [{ plan: "", billing_cycle: "monthly" }, "plan"],
    [{ plan: 7, billing_cycle: "monthly" }, "plan"],
    [{ plan: "pro", billing_cycle: "weekly" }, "billing_cycle"],
    [{ plan: "pro" }, "billing_cycle"],
    [{ plan: "pro", billing_cycle: "monthly", customer: "cus_other" }, "customer"],
    [{ plan: "pro", billing_cycle: "monthly", price: "price_x" }, "price"],
  ] as const) {
    const answer = await user.call("POST", "/api/subscription/checkout", body);
    expect([body, answer.status, answer.body.code]).toEqual([body, 400, "validation_failed"]);
    expect(answer.body.details.map((fault: { path: string }) => fault.path)).toEqual([path]);
  }
  expect(await shop.reef.sql`select 1 from stripe_customers where user_id = ${user.id}`).toHaveLength(0);
});

test("a suspended account is refused, and nothing reaches Stripe", async () => {
  const user = await makeUser(shop.reef);
  await shop.reef.sql`update users set status = 'suspended' where id = ${user.id}`;
  const before = shop.stripe.requests.length;
  const answer = await checkout(user, "pro");
  expect([answer.status, answer.body.code, shop.stripe.requests.length]).toEqual([403, "account_suspended", before]);
});

test("nobody's checkout, plan or subscription touches another's", async () => {
  const [rich, other] = [await makeSubscriber(shop), await makeUser(shop.reef)];
  const mine = await subscription(rich);
  const { checkout_url: url } = (await checkout(other, "premium")).body;
  expect(sessionOf(url).customer).not.toBe(await customerOf(shop, rich));
  for (const path of ["cancel", "resume", "portal"]) {
    const { status, body } = await other.call("POST", `/api/subscription/${path}`);
    // Who has begun a checkout has a page at Stripe, of their own.
    if (path === "portal") expect(portalOf(body.portal_url).customer).toBe(await customerOf(shop, other));
    else expect([status, body.code]).toEqual([409, "no_subscription"]);
  }
  expect(await subscription(rich)).toEqual(mine);
  const [row] = await shop.reef.sql`select count(*)::int as n from stripe_leases`;
  expect(row!["n"]).toBe(0);
});

test("too many requests of one person are refused; others are served", async () => {
  const [user, other] = [await makeUser(shop.reef), await makeUser(shop.reef)];
  await checkout(user, "pro");
  let refused;
  for (let n = 0; n < 80 && !refused; n++) {
    const answer = await checkout(user, "pro");
    if (answer.status !== 200) refused = answer;
  }
  expect([refused!.status, refused!.body.code]).toEqual([429, "too_many_attempts"]);
  expect(Number(refused!.headers.get("retry-after"))).toBeGreaterThan(0);
  expect((await checkout(other, "pro")).status).toBe(200);
});

test("the plans are shown to everybody; without a key nothing is sold, without prices neither", async () => {
  const plans = (url: string) => call(url, "GET", "/api/subscription/plans");
  const { body } = await plans(shop.reef.url);
  expect(body.map((plan: { plan: string }) => plan.plan)).toEqual(["free", "pro", "premium"]);
  expect(body[1]).toEqual({
    plan: "pro",
    assistants: 5,
    text_messages: 500,
    voice_input_seconds: 1800,
    voice_output_seconds: 1800,
    tts_characters: 50_000,
    tts_model: "tts-1",
    voices: ["nova", "alloy", "echo", "fable", "onyx", "shimmer"],
    price_monthly: "6.99",
    price_yearly: "69.99",
    available: true,
  });
  const { STRIPE_SECRET_KEY: _, ...keyless } = shop.env;
  const closed = await startProcess(keyless);
  const unstocked = await startTestReef(keysOf(shop.stripe));
  try {
    for (const reef of [closed, unstocked]) {
      expect((await plans(reef.url)).body.map((plan: { available: boolean }) => plan.available)).toEqual([
        true,
        false,
        false,
      ]);
      const user = await makeUser(reef);
      const answer = await checkout(user, "pro");
      expect([answer.status, answer.body.code]).toEqual([503, "billing_not_configured"]);
      expect((await subscription(user)).plan).toBe("free");
    }
    expect(unstocked.logs.some((line) => line.includes("npm run admin -- stripe sync-prices"))).toBe(true);
    const user = await makeUser(closed);
    for (const path of ["portal", "cancel", "resume"]) {
      const answer = await user.call("POST", `/api/subscription/${path}`);
      expect([answer.status, answer.body.code]).toEqual([503, "billing_not_configured"]);
    }
  } finally {
    await closed.stop();
    await unstocked.stop();
  }
});
