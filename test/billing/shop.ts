import type { Sql } from "../../src/db/connect.ts";
import { notify } from "../../src/db/notify.ts";
import { call, makeUser, type TestUser } from "../factories.ts";
import { startFakeStripe, type FakeStripe, type FakeStripeOptions } from "../fakes/stripe.ts";
import { createPrice, createProduct } from "../fakes/stripeCatalog.ts";
import { createCheckout } from "../fakes/stripeCheckout.ts";
import { createCustomer } from "../fakes/stripeCustomers.ts";
import type { Card } from "../fakes/stripeState.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

export type Plan = "pro" | "premium";
export type Cycle = "monthly" | "yearly";

/** A Reef and a Stripe that knows its prices and sends it webhooks. */
export interface Shop {
  reef: TestReef;
  sql: Sql;
  stripe: FakeStripe;
  /** By `plan cycle`. */
  prices: Record<`${Plan} ${Cycle}`, string>;
  /** All webhooks have arrived, or were given up, and the inbox is empty. */
  settled(): Promise<void>;
  stop(): Promise<void>;
}

const AMOUNTS: Record<Plan, Record<Cycle, number>> = {
  pro: { monthly: 699, yearly: 6999 },
  premium: { monthly: 1299, yearly: 12_999 },
};

/** `env`: of Reef. `fake`: of Stripe; its clock stands still. */
export async function openShop(env: Record<string, string> = {}, fake: FakeStripeOptions = {}): Promise<Shop> {
  const stripe = await startFakeStripe(fake);
  const reef = await startTestReef({
    STRIPE_SECRET_KEY: stripe.secretKey,
    STRIPE_API_BASE: stripe.apiBase,
    STRIPE_WEBHOOK_SECRETS: "whsec_old,whsec_reef",
    ...env,
  });
  deliverTo(stripe, reef.url);
  const { sql } = reef;
  // Nothing is put right behind a test's back: a reconciliation has just been.
  await until("Redis is there", () => reef.deps.redis.set("billing:slot", "test").catch(() => null));
  const prices = await makePrices(stripe, sql);
  return {
    reef,
    sql,
    stripe,
    prices,
    async settled() {
      await stripe.webhooks.settled();
      await until("the inbox is empty", () => isEmpty(sql), 20_000);
    },
    async stop() {
      await stripe.close();
      await reef.stop();
    },
  };
}

export function deliverTo(stripe: FakeStripe, url: string): void {
  stripe.webhooks.endpoints = [{ url: `${url}/api/webhooks/stripe`, secrets: ["whsec_reef"], live: false }];
}

export async function isEmpty(sql: Sql): Promise<boolean> {
  const [row] = await sql<{ n: number }[]>`select count(*)::int as n from stripe_events where processed_at is null`;
  return row!.n === 0;
}

/** The pause of what has failed, or the lease of who has died, is over. */
export async function makeDue(sql: Sql): Promise<void> {
  await sql`update stripe_events set next_attempt_at = now() where id in (
    select id from stripe_events where processed_at is null for update skip locked)`;
  await notify(sql, "stripe", "");
}

async function makePrices(stripe: FakeStripe, sql: Sql): Promise<Shop["prices"]> {
  const account = stripe.account();
  const prices = {} as Shop["prices"];
  for (const plan of ["pro", "premium"] as const) {
    const product = createProduct(account, { name: plan });
    for (const cycle of ["monthly", "yearly"] as const) {
      const amount = AMOUNTS[plan][cycle];
      const recurring = { interval: cycle === "monthly" ? "month" : "year" };
      const price = createPrice(account, { product: product.id, currency: "usd", unit_amount: amount, recurring });
      prices[`${plan} ${cycle}`] = price.id;
      await sql`insert into stripe_prices (price_id, plan, cycle, livemode, product_id, amount_micro_usd)
        values (${price.id}, ${plan}, ${cycle}, false, ${product.id}, ${amount * 10_000})`;
    }
  }
  return prices;
}

/** A person who is a customer; `row`: whether Reef knows it already. */
export interface Buyer {
  user: TestUser;
  customer: string;
}

export async function makeBuyer(shop: Shop, row = true): Promise<Buyer> {
  const user = await makeUser(shop.reef);
  const customer = createCustomer(shop.stripe.account(), { email: user.email, metadata: { user_id: user.id } }).id;
  if (row) await shop.sql`insert into stripe_customers (user_id, customer_id) values (${user.id}, ${customer})`;
  return { user, customer };
}

/** Buys a plan in the checkout; answers the subscription's id. */
export function buy(shop: Shop, customer: string, price: keyof Shop["prices"], card: Card = "ok"): string {
  const { stripe } = shop;
  const session = createCheckout(stripe.account(), {
    mode: "subscription",
    customer,
    line_items: [{ price: shop.prices[price] }],
    success_url: "https://app.example.org/thanks",
  });
  stripe.completeCheckout(session.id, { card });
  return stripe.truth(customer).subscriptions[0]!.id;
}

/** A person who has bought a plan, and Reef knows it. */
export async function makeSubscriber(
  shop: Shop,
  price: keyof Shop["prices"],
): Promise<Buyer & { subscription: string }> {
  const buyer = await makeBuyer(shop);
  const subscription = buy(shop, buyer.customer, price);
  await shop.settled();
  return { ...buyer, subscription };
}

export async function planOf(user: TestUser): Promise<string> {
  return (await user.call("GET", "/api/user/usage")).body.plan;
}

/** The row as it is; null: there is none. */
export async function rowOf(sql: Sql, userId: string, source = "stripe") {
  const [row] = await sql<
    {
      plan: string;
      status: string;
      billingCycle: string | null;
      currentPeriodEnd: Date | null;
      cancelAtPeriodEnd: boolean;
      cancelAt: Date | null;
      pastDueSince: Date | null;
      graceUntil: Date | null;
      dueMicroUsd: number | null;
      payUrl: string | null;
      stripeSubscriptionId: string | null;
      updatedAt: Date;
    }[]
  >`select * from subscriptions where user_id = ${userId} and source = ${source}`;
  return row ?? null;
}

export async function mailsOf(
  sql: Sql,
  userId: string,
): Promise<{ template: string; params: Record<string, string> }[]> {
  return sql<{ template: string; params: Record<string, string> }[]>`
    select template, params from outbox where user_id = ${userId} and template in ('plan-changed', 'payment-failed') order by id`;
}

export async function auditOf(sql: Sql, userId: string, action: string): Promise<Record<string, string | number>[]> {
  const rows = await sql<{ details: Record<string, string | number> }[]>`
    select details from audit_log where subject_user_id = ${userId} and action = ${action} order by id`;
  return rows.map(({ details }) => details);
}

/** Posts a body to the webhook as anybody can. */
export async function post(shop: Shop, body: string, signature?: string) {
  const headers: Record<string, string> = signature === undefined ? {} : { "stripe-signature": signature };
  return call(shop.reef.url, "POST", "/api/webhooks/stripe", body, undefined, headers);
}
