import { afterAll, beforeAll, expect, test } from "bun:test";
import { call, makeUser } from "../factories.ts";
import {
  checkout,
  customerOf,
  idIn,
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

test("the same Idempotency-Key later: never the address of a page that is over", async () => {
  const user = await makeUser(shop.reef);
  const ask = (what: string, body?: object) =>
    call(shop.reef.url, "POST", `/api/subscription/${what}`, body, user.token, { "idempotency-key": `tap-${what}` });
  const pro = { plan: "pro", billing_cycle: "monthly" };
  const first = (await ask("checkout", pro)).body.checkout_url;
  shop.stripe.advance({ days: 2 });
  const second = await ask("checkout", pro);
  expect(openSessions(shop, await customerOf(shop, user)).map(({ id }) => id)).toEqual([
    idIn(second.body.checkout_url),
  ]);
  expect(second.body.checkout_url).not.toBe(first);
  shop.stripe.completeCheckout(idIn(second.body.checkout_url));
  const third = await ask("checkout", pro);
  expect([third.status, third.body.code]).toEqual([409, "already_subscribed"]);
  const pages = [await ask("portal"), await ask("portal")].map(({ body }) => body.portal_url);
  expect(new Set(pages).size).toBe(2);
});

test("who changes their address after a customer was made for the old one, and not kept, can buy at once", async () => {
  const user = await makeUser(shop.reef);
  shop.stripe.failNext(
    { status: 500, afterWork: true },
    ({ path, method }) => method === "POST" && path === "/v1/customers",
  );
  expect((await checkout(user, "pro")).status).toBe(503);
  await shop.reef.sql`update users set email = ${`new-${user.email}`} where id = ${user.id}`;
  const { status, body } = await checkout(user, "pro");
  expect(status).toBe(200);
  expect(openSessions(shop, await customerOf(shop, user)).map(({ id }) => id)).toEqual([idIn(body.checkout_url)]);
});

test("bought, and over before the app has looked: no checkout is open any more", async () => {
  const user = await makeUser(shop.reef);
  shop.stripe.completeCheckout(idIn((await checkout(user, "pro")).body.checkout_url));
  const customer = await customerOf(shop, user);
  const [bought] = shop.stripe.truth(customer).subscriptions;
  shop.stripe.cancelNow(bought!.id);
  expect(await lookLater(shop, user)).toMatchObject({ status: "canceled", plan: "free", checkout_open: false });
});

test("whoever looks without a pause is shown what is known: Stripe is not asked each second for ever", async () => {
  const user = await makeSubscriber(shop);
  const since = shop.stripe.requests.length;
  for (let n = 0; n < 200; n++) {
    await shop.reef
      .sql`update stripe_customers set asked_at = asked_at - interval '2 seconds' where user_id = ${user.id}`;
    expect((await subscription(user)).plan).toBe("pro");
  }
  expect(shop.stripe.requests.length - since).toBeLessThan(160);
});
