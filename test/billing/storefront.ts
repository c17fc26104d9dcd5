import { syncPrices } from "../../src/services/stripePrices.ts";
import { makeUser, type TestUser } from "../factories.ts";
import { startFakeStripe, type FakeStripe } from "../fakes/stripe.ts";
import { startTestReef, type TestReef } from "../harness.ts";

/** A Reef that sells by a Stripe of its own. Webhooks go nowhere unless a test sends them. */
export interface Shop {
  reef: TestReef;
  stripe: FakeStripe;
  /** Settings of another process of the same Reef. */
  env: Record<string, string>;
  close(): Promise<void>;
}

export async function openShop(overrides: Record<string, string> = {}): Promise<Shop> {
  const stripe = await startFakeStripe();
  const reef = await startTestReef({ ...keysOf(stripe), ...overrides });
  await stock(reef);
  return {
    reef,
    stripe,
    env: reef.env,
    async close() {
      await reef.stop();
      await stripe.close();
    },
  };
}

export function keysOf(stripe: FakeStripe): Record<string, string> {
  return {
    STRIPE_SECRET_KEY: stripe.secretKey,
    STRIPE_API_BASE: stripe.apiBase,
    STRIPE_WEBHOOK_SECRETS: "whsec_reef",
    APP_URL: "https://app.example.org",
  };
}

/** What `npm run admin -- stripe sync-prices` does; what it said. */
export async function stock({ deps }: Pick<TestReef, "deps">): Promise<string[]> {
  const lines: string[] = [];
  await syncPrices(deps, { osUser: "tester" }, (line) => lines.push(line));
  return lines;
}

export const checkout = (user: TestUser, plan: string, cycle = "monthly") =>
  user.call("POST", "/api/subscription/checkout", { plan, billing_cycle: cycle });
export const subscription = async (user: TestUser) => (await user.call("GET", "/api/subscription")).body;

/** The same a while later: what was fetched of Stripe a moment ago is not fetched again. */
export async function lookLater({ reef }: Pick<Shop, "reef">, user: TestUser) {
  await reef.sql`update stripe_customers set asked_at = now() - interval '1 minute' where user_id = ${user.id}`;
  return subscription(user);
}

/** The id in an address of a page of Stripe's. */
export const idIn = (url: string) => url.split("/").at(-1)!;

/** Who a user is at Stripe. */
export async function customerOf({ reef }: Pick<Shop, "reef">, user: TestUser): Promise<string> {
  const [row] = await reef.sql<{ customerId: string }[]>`
    select customer_id from stripe_customers where user_id = ${user.id}`;
  return row!.customerId;
}

/** A new person who has just paid, and whose app has looked at it. */
export async function makeSubscriber(shop: Shop, plan = "pro", cycle = "monthly"): Promise<TestUser> {
  const user = await makeUser(shop.reef);
  const { body } = await checkout(user, plan, cycle);
  shop.stripe.completeCheckout(idIn(body.checkout_url));
  await lookLater(shop, user);
  return user;
}

export const openSessions = (shop: Shop, customer: string) =>
  Object.values(shop.stripe.account().objects.checkoutSessions).filter(
    (session) => session.customer === customer && session.status === "open",
  );
export const liveSubscriptions = (shop: Shop, customer: string) =>
  shop.stripe
    .truth(customer)
    .subscriptions.filter(({ status }) => status !== "canceled" && status !== "incomplete_expired");
