import { afterAll, beforeAll, expect, test } from "bun:test";
import { newId } from "../../src/lib/ids.ts";
import { openCheckout } from "../../src/services/checkout.ts";
import { makeUser, type TestUser } from "../factories.ts";
import { createSubscription } from "../fakes/stripeSubscriptions.ts";
import { startProcess, until } from "../harness.ts";
import {
  checkout,
  customerOf,
  idIn,
  liveSubscriptions,
  makeSubscriber,
  openSessions,
  openShop,
  type Shop,
} from "../billing/storefront.ts";

let shop: Shop;
beforeAll(async () => void (shop = await openShop()));
afterAll(() => shop.close());

const leave = (user: TestUser) => user.call("DELETE", "/api/user/account", { password: user.password });
const stepOf = async (user: TestUser) => {
  const [row] = await shop.reef.sql<{ step: string; lastError: string | null }[]>`
    select step, last_error from account_deletions where user_id = ${user.id}`;
  return row;
};
const isGone = (user: TestUser) =>
  until("the account is gone", async () => (await stepOf(user))?.step === "done", 30_000);
const customersOf = (user: TestUser) =>
  Object.values(shop.stripe.account().objects.customers).filter(({ metadata }) => metadata["user_id"] === user.id);

test("every living subscription ends, however many there are and however they stand; what was paid stays on record", async () => {
  const user = await makeSubscriber(shop);
  const customer = await customerOf(shop, user);
  const account = shop.stripe.account();
  const { objects } = account;
  const [price] = Object.values(objects.prices).filter((one) => one.lookup_key === "reef_premium_monthly");
  // Made in Stripe's dashboard, behind our back.
  const [first] = Object.values(objects.subscriptions).filter((one) => one.customer === customer);
  const { default_payment_method } = first!;
  const second = createSubscription(account, { customer, default_payment_method, items: [{ price: price!.id }] });
  shop.stripe.setCard(customer, "declined");
  shop.stripe.advance({ months: 1, hours: 2 });
  expect(liveSubscriptions(shop, customer).map(({ status }) => status)).toContain("past_due");
  const paid = shop.stripe.truth(customer).charges.filter((charge) => charge.paid);
  expect((await leave(user)).status).toBe(202);
  await isGone(user);
  const truth = shop.stripe.truth(customer);
  expect([truth.customer, truth.subscriptions.every(({ status }) => status === "canceled")]).toEqual(["deleted", true]);
  expect(truth.subscriptions.map(({ id }) => id)).toContain(second.id);
  expect(truth.charges.filter((charge) => charge.paid)).toEqual(paid);
  // Nothing is charged any more, whatever card and however long.
  const charges = truth.charges.length;
  shop.stripe.advance({ months: 3 });
  expect(shop.stripe.truth(customer).charges.length).toBe(charges);
});

test("a checkout that is open when the person leaves is taken back: nobody can pay it afterwards", async () => {
  const user = await makeUser(shop.reef);
  const { checkout_url: url } = (await checkout(user, "pro")).body;
  const customer = await customerOf(shop, user);
  await leave(user);
  await isGone(user);
  expect(openSessions(shop, customer)).toEqual([]);
  expect(() => shop.stripe.completeCheckout(idIn(url))).toThrow("expired");
  expect(shop.stripe.truth(customer).customer).toBe("deleted");
});

test("a checkout that is being made while the person leaves: the deletion waits for it, and takes it back", async () => {
  const user = await makeUser(shop.reef);
  const made = Promise.withResolvers<void>();
  const asked = Promise.withResolvers<void>();
  shop.stripe.failNext({ until: made.promise }, ({ method, path }) => {
    const creates = method === "POST" && path === "/v1/checkout/sessions";
    if (creates) asked.resolve();
    return creates;
  });
  const late = checkout(user, "pro");
  await asked.promise;
  expect((await leave(user)).status).toBe(202);
  await until("the deletion has waited in vain, or has not waited", async () => {
    const deletion = await stepOf(user);
    return deletion?.lastError ?? deletion?.step !== "subscription";
  });
  made.resolve();
  // It has waited as long as the deletion, and gives nothing out.
  expect((await late).status).toBe(503);
  await shop.reef.sql`update account_deletions set next_attempt_at = now() where user_id = ${user.id}`;
  await isGone(user);
  const sessions = Object.values(shop.stripe.account().objects.checkoutSessions);
  const mine = sessions.filter((session) => session.client_reference_id === user.id);
  // Stripe came to it when there was no customer any more, or the deletion has found it.
  expect(mine.filter(({ status }) => status !== "expired")).toEqual([]);
  expect(customersOf(user)).toEqual([]);
});

test("a request that was let in before the person left finds the door closed", async () => {
  const user = await makeUser(shop.reef);
  await shop.reef.sql`update users set status = 'deleting' where id = ${user.id}`;
  const before = shop.stripe.requests.length;
  const actor = { kind: "user", userId: user.id, sessionId: newId(), expiresAt: 0 } as const;
  const refused = await openCheckout(shop.reef.deps, actor, { plan: "pro", cycle: "monthly" }).catch(
    (error: { code?: string }) => error.code,
  );
  expect([refused, shop.stripe.requests.length]).toEqual(["account_suspended", before]);
});

test("paid in the very moment: it is ended, too", async () => {
  const user = await makeUser(shop.reef);
  const { checkout_url: url } = (await checkout(user, "pro")).body;
  const customer = await customerOf(shop, user);
  shop.stripe.failNext({ until: Promise.resolve() }, ({ path }) => {
    if (!path.endsWith("/expire")) return false;
    shop.stripe.completeCheckout(idIn(url));
    return true;
  });
  await leave(user);
  await isGone(user);
  expect(liveSubscriptions(shop, customer)).toEqual([]);
  expect(shop.stripe.truth(customer).subscriptions.length).toBe(1);
});

test("a customer that was made, but whose making was cut off, is found by what Stripe knows", async () => {
  const user = await makeUser(shop.reef);
  shop.stripe.failNext(
    { status: 500, afterWork: true },
    ({ method, path }) => method === "POST" && path === "/v1/customers",
  );
  expect((await checkout(user, "pro")).status).toBe(503);
  expect(customersOf(user).length).toBe(1);
  await leave(user);
  await isGone(user);
  expect(customersOf(user)).toEqual([]);
});

test("who never bought anything leaves without Stripe", async () => {
  const user = await makeUser(shop.reef);
  const before = shop.stripe.requests.length;
  await leave(user);
  await isGone(user);
  expect(shop.stripe.requests.slice(before)).toEqual([]);
});

test("a key of another account: nobody is told that they are gone while they pay there", async () => {
  const user = await makeSubscriber(shop);
  const customer = await customerOf(shop, user);
  const [mine] = liveSubscriptions(shop, customer);
  const name = async (id: string, subscriptionId: string) => {
    await shop.reef.sql`update stripe_customers set customer_id = ${id} where user_id = ${user.id}`;
    await shop.reef.sql`update subscriptions set stripe_subscription_id = ${subscriptionId} where user_id = ${user.id}`;
  };
  await name(`${customer}_there`, `${mine!.id}_there`);
  expect((await leave(user)).status).toBe(202);
  await until("it was tried", async () => {
    const row = await stepOf(user);
    return row?.step !== "subscription" || row.lastError !== null;
  });
  expect((await stepOf(user))?.step).toBe("subscription");
  await name(customer, mine!.id);
  await isGone(user);
  expect(liveSubscriptions(shop, customer)).toEqual([]);
});

test("another customer, made in place of one that is gone and never kept, is found when the person leaves", async () => {
  const user = await makeSubscriber(shop);
  shop.stripe.deleteCustomer(await customerOf(shop, user));
  shop.stripe.failNext(
    { status: 500, afterWork: true },
    ({ path, method }) => method === "POST" && path === "/v1/customers",
  );
  expect((await checkout(user, "pro")).status).toBe(503);
  expect(customersOf(user).length).toBe(1);
  // Whatever is done next ends the lease in order.
  expect((await user.call("POST", "/api/subscription/cancel")).body.code).toBe("no_subscription");
  expect((await leave(user)).status).toBe(202);
  await isGone(user);
  expect(customersOf(user)).toEqual([]);
});

test("without a key: who pays waits for it, who pays nothing leaves", async () => {
  const payer = await makeSubscriber(shop);
  const { STRIPE_SECRET_KEY: _, ...keyless } = shop.env;
  await shop.reef.stopProcess();
  const closed = await startProcess(keyless);
  shop.reef.sql = closed.deps.sql;
  const formerBuyer = await makeUser(closed);
  await closed.deps.sql`insert into stripe_customers (user_id, customer_id) values (${formerBuyer.id}, 'cus_old')`;
  const at = (user: TestUser) =>
    fetch(`${closed.url}/api/user/account`, {
      method: "DELETE",
      headers: { authorization: `Bearer ${user.token}`, "content-type": "application/json" },
      body: JSON.stringify({ password: user.password }),
    });
  expect((await at(payer)).status).toBe(202);
  expect((await at(formerBuyer)).status).toBe(202);
  await isGone(formerBuyer);
  await until("it has failed", async () => (await stepOf(payer))?.lastError);
  expect(await stepOf(payer)).toEqual({ step: "subscription", lastError: "Error stripe_not_configured" });
  await closed.stop();
});
