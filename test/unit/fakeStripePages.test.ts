import { afterEach, beforeEach, expect, test } from "bun:test";
import Stripe from "stripe";
import { startFakeStripe, type FakeStripe } from "../fakes/stripe.ts";

let fake: FakeStripe;
let stripe: Stripe;
let customer: string;
let price: string;
const EVIL = `"><script>alert(1)</script>`;

beforeEach(async () => {
  fake = await startFakeStripe({ running: true, settings: { shopName: `Reef ${EVIL}` } });
  const { hostname, port } = new URL(fake.apiBase);
  stripe = new Stripe(fake.secretKey, { host: hostname, port, protocol: "http", telemetry: false });
  const recurring = { interval: "month" as const };
  const input = { product_data: { name: `Pro ${EVIL}` }, currency: "usd", unit_amount: 699, recurring };
  price = (await stripe.prices.create(input)).id;
  customer = (await stripe.customers.create({ email: `${EVIL}@example.org` })).id;
});
afterEach(() => fake.close());

async function checkout(): Promise<string> {
  const session = await stripe.checkout.sessions.create({
    mode: "subscription",
    customer,
    line_items: [{ price, quantity: 1 }],
    success_url: "https://app.example.org/done?session={CHECKOUT_SESSION_ID}",
    cancel_url: "https://app.example.org/plans",
  });
  return session.url!;
}

async function read(url: string): Promise<string> {
  const response = await fetch(url);
  expect(response.headers.get("content-security-policy")).toContain("default-src 'none'");
  const text = await response.text();
  expect(text).toContain("Play shop – no real money");
  expect(text).not.toContain("<script");
  expect(text).not.toMatch(/(src|href)="https?:\/\/(?!app\.example\.org|127\.0\.0\.1)/);
  return text;
}

/** Presses a button; returns where that leads. */
async function press(url: string, form: Record<string, string>): Promise<string> {
  const response = await fetch(url, { method: "POST", body: new URLSearchParams(form), redirect: "manual" });
  expect(response.status).toBe(303);
  return response.headers.get("location")!;
}

const statuses = () => fake.truth(customer).subscriptions.map(({ status }) => status);

test("checkout: declined, then paid, and back to the app; a second press pays nothing more", async () => {
  const url = await checkout();
  const id = url.split("/").at(-1)!;
  expect(await read(url)).toContain("$6.99 per month");
  expect(await press(url, { action: "decline" })).toBe(new URL(url).pathname);
  expect(await read(url)).toContain("The card was declined");
  expect(await read(url)).not.toContain("The card was declined");
  expect(statuses()).toEqual(["incomplete"]);
  expect(await press(url, { action: "pay" })).toBe(`https://app.example.org/done?session=${id}`);
  expect(await press(url, { action: "pay" })).toBe(new URL(url).pathname);
  expect(statuses()).toEqual(["active"]);
  expect(await read(url)).toContain("This is paid");
});

test("checkout: the bank asks, the person refuses, then confirms; leaving buys nothing", async () => {
  const left = await checkout();
  expect(await press(left, { action: "leave" })).toBe("https://app.example.org/plans");
  expect(statuses()).toEqual([]);
  const url = await checkout();
  await press(url, { action: "confirm" });
  await press(url, { action: "needs_confirmation" });
  expect(await read(url)).toContain("Your bank asks");
  await press(url, { action: "refuse" });
  await press(url, { action: "needs_confirmation" });
  expect(await press(url, { action: "confirm" })).toContain("/done?session=");
  expect(statuses()).toEqual(["active"]);
});

test("portal: cancel, keep, another plan, another card, months that pass", async () => {
  const recurring = { interval: "month" as const };
  const input = { product_data: { name: "Premium" }, currency: "usd", unit_amount: 1299, recurring };
  const premium = await stripe.prices.create(input);
  await press(await checkout(), { action: "pay" });
  const subscription = fake.truth(customer).subscriptions[0]!.id;
  const { url } = await stripe.billingPortal.sessions.create({ customer, return_url: "https://app.example.org/me" });
  expect(await read(url)).toContain("Premium – $12.99 per month");
  await press(url, { action: "cancel", subscription });
  expect(await read(url)).toContain("Keep the subscription");
  await press(url, { action: "resume", subscription });
  await press(url, { action: "plan", subscription, price: premium.id });
  expect(fake.truth(customer).subscriptions[0]!.price).toBe(premium.id);
  await press(url, { action: "plan", subscription, price });
  expect(await read(url)).toContain("From then on: Pro");
  await press(url, { action: "plan", subscription, price: premium.id });
  expect(await read(url)).not.toContain("From then on");
  await press(url, { action: "card", card: "declined" });
  await press(url, { action: "month" });
  expect(await read(url)).toContain("Payment due");
  const { invoice } = fake.truth(customer).subscriptions[0]!.due!;
  await press(url, { action: "pay", invoice });
  expect(await read(url)).toContain("The card was not accepted");
  await press(url, { action: "card", card: "requires_action" });
  await press(url, { action: "confirm", invoice });
  expect(statuses()).toEqual(["active"]);
  expect(await read(`${fake.url}/i/${invoice}`)).toContain("paid");
});

test("portal: a flow leads back when it is done; nobody touches what is another's", async () => {
  await press(await checkout(), { action: "pay" });
  const subscription = fake.truth(customer).subscriptions[0]!.id;
  const stranger = fake.plantSubscription("sub_stranger");
  const { url } = await stripe.billingPortal.sessions.create({
    customer,
    flow_data: {
      type: "subscription_cancel",
      subscription_cancel: { subscription },
      after_completion: { type: "redirect", redirect: { return_url: "https://app.example.org/bye" } },
    },
  });
  await press(url, { action: "cancel", subscription: "sub_stranger" });
  expect(fake.truth(stranger).subscriptions[0]!.endsAt).toBe(null);
  expect(await press(url, { action: "cancel", subscription })).toBe("https://app.example.org/bye");
});

test("pages that are not there, forms that are too much, and the front page", async () => {
  expect((await fetch(`${fake.url}/c/pay/cs_test_unknown`)).status).toBe(404);
  expect((await fetch(`${fake.url}/p/session/constructor`)).status).toBe(404);
  const url = await checkout();
  expect((await fetch(url, { method: "POST", body: "x".repeat(20_000) })).status).toBe(413);
  expect((await fetch(url, { method: "DELETE" })).status).toBe(405);
  expect(await read(fake.url)).toContain("no card is charged");
  const before = fake.now();
  await press(fake.url, { action: "month" });
  expect(fake.now() - before).toBeGreaterThan(27 * 86_400);
});
