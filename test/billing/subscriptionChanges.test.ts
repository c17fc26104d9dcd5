import { afterAll, beforeAll, expect, test } from "bun:test";
import { call, makeUser, type TestUser } from "../factories.ts";
import {
  checkout,
  customerOf,
  idIn,
  liveSubscriptions,
  lookLater,
  makeSubscriber,
  openShop,
  subscription,
  type Shop,
} from "./storefront.ts";

let shop: Shop;
beforeAll(async () => void (shop = await openShop()));
afterAll(() => shop.close());

const post = (user: TestUser, what: string) => user.call("POST", `/api/subscription/${what}`);
const truthOf = async (user: TestUser) => liveSubscriptions(shop, await customerOf(shop, user))[0]!;

test("cancelled: the answer and the row say so at once, again is the same, the plan stays until its end; then it is free", async () => {
  const user = await makeSubscriber(shop, "premium", "yearly");
  const before = await subscription(user);
  const first = await post(user, "cancel");
  expect(first.status).toBe(200);
  expect(first.body).toEqual({ ...before, cancel_at_period_end: true });
  expect((await post(user, "cancel")).body).toEqual(first.body);
  expect(await subscription(user)).toEqual(first.body);
  expect((await truthOf(user)).endsAt).toBe(Date.parse(before.current_period_end) / 1000);
  shop.stripe.advance({ years: 1, hours: 2 });
  expect(await lookLater(shop, user)).toMatchObject({
    plan: "free",
    source: "free",
    status: "canceled",
    billing_cycle: null,
    current_period_end: null,
    cancel_at_period_end: false,
  });
  for (const what of ["cancel", "resume"])
    expect([(await post(user, what)).status, (await post(user, what)).body.code]).toEqual([409, "no_subscription"]);
  // It was theirs: the invoices are still to be seen, and a plan can be bought again.
  expect((await post(user, "portal")).status).toBe(200);
  shop.stripe.completeCheckout(idIn((await checkout(user, "pro")).body.checkout_url));
  expect(await lookLater(shop, user)).toMatchObject({ plan: "pro", status: "active" });
});

test("resumed: it goes on, again is the same, also where nothing was to end", async () => {
  const user = await makeSubscriber(shop);
  const before = await subscription(user);
  expect((await post(user, "resume")).body).toEqual(before);
  await post(user, "cancel");
  for (let n = 0; n < 2; n++) expect((await post(user, "resume")).body).toEqual(before);
  expect((await truthOf(user)).endsAt).toBeNull();
});

test("cancelled on the portal, which sets a date: shown, not cancelled twice, and resumed here", async () => {
  const user = await makeSubscriber(shop);
  shop.stripe.portal.cancel((await truthOf(user)).id);
  expect(await lookLater(shop, user)).toMatchObject({ plan: "pro", cancel_at_period_end: true });
  expect((await post(user, "cancel")).body.cancel_at_period_end).toBe(true);
  expect((await post(user, "resume")).body.cancel_at_period_end).toBe(false);
  expect((await truthOf(user)).endsAt).toBeNull();
});

test("a cheaper plan waits for the period's end: cancelling ends it all, resuming keeps what one has", async () => {
  for (const what of ["cancel", "resume"]) {
    const user = await makeSubscriber(shop, "premium");
    const { id } = await truthOf(user);
    const cheaper = Object.values(shop.stripe.account().objects.prices).find(
      (one) => one.lookup_key === "reef_pro_monthly",
    );
    expect(shop.stripe.portal.changePlan(id, cheaper!.id)).toBe("scheduled");
    expect((await truthOf(user)).nextPrice).toBe(cheaper!.id);
    const { status, body } = await post(user, what);
    expect([status, body.plan, body.cancel_at_period_end]).toEqual([200, "premium", what === "cancel"]);
    const truth = await truthOf(user);
    expect([truth.nextPrice, truth.endsAt !== null]).toEqual([null, what === "cancel"]);
  }
});

test("nothing to cancel or resume: never bought, only begun, only given; what was given stays", async () => {
  const [never, begun, given] = [await makeUser(shop.reef), await makeUser(shop.reef), await makeUser(shop.reef)];
  const { checkout_url: url } = (await checkout(begun, "pro")).body;
  shop.stripe.completeCheckout(idIn(url), { card: "declined" });
  await shop.reef.sql`insert into subscriptions (user_id, source, plan, status)
    values (${given.id}, 'grant', 'premium', 'active')`;
  for (const user of [never, begun, given]) {
    for (const what of ["cancel", "resume"]) {
      const { status, body } = await post(user, what);
      expect([status, body.code]).toEqual([409, "no_subscription"]);
    }
  }
  for (const user of [never, given]) {
    const { status, body } = await post(user, "portal");
    expect([status, body.code]).toEqual([409, "no_subscription"]);
  }
  expect(await subscription(given)).toMatchObject({ plan: "premium", source: "grant", current_period_end: null });
});

test("somebody who pays and was given more: cancelling ends what is paid for only", async () => {
  const user = await makeSubscriber(shop);
  await shop.reef.sql`insert into subscriptions (user_id, source, plan, status)
    values (${user.id}, 'grant', 'premium', 'active')`;
  expect((await post(user, "cancel")).body).toMatchObject({
    plan: "premium",
    source: "grant",
    status: "active",
    cancel_at_period_end: true,
  });
  const [row] = await shop.reef.sql`select status from subscriptions where user_id = ${user.id} and source = 'grant'`;
  expect(row!["status"]).toBe("active");
});

test("a payment is due: it can be cancelled and resumed all the same", async () => {
  const user = await makeSubscriber(shop);
  shop.stripe.setCard(await customerOf(shop, user), "declined");
  shop.stripe.advance({ months: 1, hours: 2 });
  expect(await lookLater(shop, user)).toMatchObject({ status: "past_due", plan: "pro" });
  expect((await post(user, "cancel")).body).toMatchObject({ status: "past_due", cancel_at_period_end: true });
  expect((await post(user, "resume")).body).toMatchObject({ status: "past_due", cancel_at_period_end: false });
});

test("the portal's page is the person's own, and what they do there is seen when the app comes back", async () => {
  const user = await makeSubscriber(shop);
  const { portal_url: url } = (await post(user, "portal")).body;
  const session = shop.stripe.account().objects.portalSessions[idIn(url)]!;
  expect(session).toMatchObject({
    customer: await customerOf(shop, user),
    return_url: "https://app.example.org/subscription?portal=done",
    flow: null,
  });
  const html = await (await fetch(url)).text();
  for (const words of ["Reef Pro", "$6.99 per month", "Cancel the subscription", "Reef Premium"])
    expect(html).toContain(words);
  shop.stripe.portal.cancel((await truthOf(user)).id);
  expect((await lookLater(shop, user)).cancel_at_period_end).toBe(true);
});

test("the customer is gone at Stripe: there is nothing to cancel, and no page", async () => {
  for (const what of ["cancel", "resume", "portal"]) {
    const user = await makeSubscriber(shop);
    shop.stripe.deleteCustomer(await customerOf(shop, user));
    const { status, body } = await post(user, what);
    expect([what, status, body.code]).toEqual([what, 409, "no_subscription"]);
  }
});

test("the return pages say what happened, need nothing from elsewhere, and are as closed as all else", async () => {
  for (const [query, words] of [
    ["checkout=done", "Thank you"],
    ["checkout=cancelled", "You were not charged"],
    ["portal=done", "as it stands now"],
    ["", "as it stands now"],
    ["checkout=<script>", "as it stands now"],
  ]) {
    const page = await fetch(`${shop.reef.url}/subscription?${query}`);
    const html = await page.text();
    expect([page.status, page.headers.get("content-type")]).toEqual([200, "text/html; charset=UTF-8"]);
    expect(html).toContain(words!);
    expect(html).not.toMatch(/<script|src=|href=|https?:/);
    const policy = page.headers.get("content-security-policy")!;
    expect(policy).toContain("default-src 'none'");
    expect(policy).not.toContain("unsafe");
    expect(page.headers.get("x-frame-options")).toBe("DENY");
    expect(page.headers.get("cache-control")).toBe("no-store");
    // The one style it has is the one that is allowed.
    const [, style] = /<style>([\s\S]*)<\/style>/.exec(html)!;
    expect(policy).toContain(new Bun.CryptoHasher("sha256").update(style!).digest("base64"));
  }
  expect((await call(shop.reef.url, "POST", "/subscription")).status).toBe(405);
});
