import { afterAll, beforeAll, expect, test } from "bun:test";
import { join, resolve } from "node:path";
import type { Deps } from "../../src/deps.ts";
import { compareBilling } from "../../src/services/billingDrift.ts";
import { reconcileBilling } from "../../src/services/reconcileBilling.ts";
import { makeUser } from "../factories.ts";
import { startProcess, until } from "../harness.ts";
import { buy, makeBuyer, makeSubscriber, openShop, planOf, rowOf, type Buyer, type Shop } from "./shop.ts";

let shop: Shop;
beforeAll(async () => void (shop = await openShop()));
afterAll(() => shop.stop());

const root = resolve(import.meta.dir, "../..");
const admin = async (...args: string[]) => {
  const child = Bun.spawn([process.execPath, "--no-env-file", join(root, "src/jobs/admin.ts"), ...args], {
    env: { PATH: process.env["PATH"] ?? "", ...shop.reef.env },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, said] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { code: await child.exited, lines: out.trim() === "" ? [] : out.trim().split("\n"), said };
};
const settings = { settleMs: 0 };

/** People whose webhooks were all lost, in every way in which rows and Stripe can differ. */
async function drift() {
  const { stripe, sql, prices } = shop;
  const upgraded = await makeSubscriber(shop, "pro monthly");
  const ended = await makeSubscriber(shop, "pro monthly");
  const owing = await makeSubscriber(shop, "pro monthly");
  const right = await makeSubscriber(shop, "premium yearly");
  const invented = await makeBuyer(shop);
  stripe.webhooks.policy = () => "drop";
  const bought = await makeBuyer(shop);
  buy(shop, bought.customer, "premium monthly");
  const rowless = await makeBuyer(shop, false);
  buy(shop, rowless.customer, "pro yearly");
  stripe.portal.changePlan(upgraded.subscription, prices["premium monthly"]);
  stripe.cancelNow(ended.subscription);
  stripe.setCard(owing.customer, "declined");
  // The row says more than Stripe ever did.
  await sql`insert into subscriptions (user_id, source, plan, status, stripe_subscription_id)
    values (${invented.user.id}, 'stripe', 'premium', 'active', ${`sub_${invented.user.id}`})`;
  return { upgraded, ended, owing, right, invented, bought, rowless };
}

test("all that differs is found, in both directions, and nothing is changed by looking; then it is put right", async () => {
  const { stripe, reef, sql } = shop;
  const people = await drift();
  stripe.advance({ months: 1 });
  stripe.advance({ hours: 2 });
  const { upgraded, ended, owing, right, invented, bought, rowless } = people;
  const before = await sql`select * from subscriptions order by user_id, source`;
  const seen = await compareBilling(reef.deps, settings);
  expect(seen.compared).toBe(7);
  const found = Object.fromEntries(seen.differences.map(({ customerId, what }) => [customerId, what]));
  expect(Object.keys(found).sort((a, b) => (a < b ? -1 : 1))).toEqual(
    Object.values(people)
      .map(({ customer }) => customer)
      .filter((customer) => customer !== right.customer)
      .sort((a, b) => (a < b ? -1 : 1)),
  );
  expect(found[upgraded.customer]).toContain('plan: here "pro", at Stripe "premium"');
  expect(found[ended.customer]).toContain('status: here "active", at Stripe "canceled"');
  expect(found[owing.customer]).toContain("dueMicroUsd: here null, at Stripe 6990000");
  expect(found[invented.customer]).toContain('status: here "active", at Stripe "canceled"');
  expect(found[bought.customer]).toBe("here nothing, at Stripe active");
  expect(found[rowless.customer]).toBe("pays at Stripe, and is no customer here");
  expect(await sql`select * from subscriptions order by user_id, source`).toEqual(before);

  const verified = await admin("billing", "verify");
  expect([verified.code, verified.lines.length]).toEqual([1, seen.differences.length]);
  expect(verified.lines.some((line) => line.startsWith(`${upgraded.customer}  ${upgraded.user.id}  `))).toBe(true);
  expect(await sql`select * from subscriptions order by user_id, source`).toEqual(before);
  const repaired = await admin("billing", "repair");
  expect([repaired.code, repaired.lines.length]).toEqual([0, seen.differences.length]);
  expect(repaired.lines.every((line) => line.startsWith("mended  "))).toBe(true);
  const plans = await Promise.all(Object.values(people).map(({ user }) => planOf(user)));
  expect(plans).toEqual(["premium", "free", "pro", "premium", "free", "premium", "pro"]);
  expect(await rowOf(sql, owing.user.id)).toMatchObject({ status: "past_due" });
  expect(await admin("billing", "verify")).toMatchObject({ code: 0, lines: [] });
  stripe.webhooks.policy = () => "send";
});

test("several pages, some of which Stripe refuses at first", async () => {
  const { stripe, reef } = shop;
  stripe.webhooks.policy = () => "drop";
  const buyer = await makeBuyer(shop);
  for (let n = 0; n < 120; n++) {
    const id = buy(shop, buyer.customer, "pro monthly");
    if (n < 119) stripe.cancelNow(id);
  }
  const listings = () =>
    stripe.requests.filter(({ path, params }) => path === "/v1/subscriptions" && !params["customer"]);
  const before = listings().length;
  stripe.failNext({ status: 429 }, ({ path }) => path === "/v1/subscriptions");
  stripe.failNext({ status: 500 }, ({ params }) => params["starting_after"] !== undefined);
  const { repaired, left } = await reconcileBilling(reef.deps, settings);
  expect(repaired.map(({ customerId }) => customerId)).toEqual([buyer.customer]);
  expect(left).toEqual([]);
  expect(listings().length - before).toBeGreaterThanOrEqual(4);
  expect(await planOf(buyer.user)).toBe("pro");
  expect(await compareBilling(reef.deps, settings)).toMatchObject({ differences: [] });
  stripe.webhooks.policy = () => "send";
});

test("what nobody can put right is left, said and alarmed; a Stripe that is away is no difference", async () => {
  const { stripe, reef, sql } = shop;
  const { user, customer } = await makeSubscriber(shop, "pro monthly");
  await sql`update stripe_customers set customer_id = 'cus_other' where user_id = ${user.id}`;
  const { left } = await reconcileBilling(reef.deps, settings);
  expect(left.map(({ customerId }) => customerId).sort((a, b) => (a < b ? -1 : 1))).toEqual(
    ["cus_other", customer].sort((a, b) => (a < b ? -1 : 1)),
  );
  const alarms = () => sql`select severity, summary from alarms where key = 'stripe-drift' and resolved_at is null`;
  const [alarm] = await alarms();
  expect([alarm?.["severity"], String(alarm?.["summary"]).includes(customer)]).toEqual(["warning", true]);
  const repair = await admin("billing", "repair");
  expect([repair.code, repair.lines.every((line) => line.startsWith("left    "))]).toEqual([1, true]);
  expect(await planOf(user)).toBe("pro");
  await sql`update stripe_customers set customer_id = ${customer} where user_id = ${user.id}`;
  expect((await reconcileBilling(reef.deps, settings)).left).toEqual([]);
  expect((await alarms()).length).toBe(0);
  stripe.fault = () => ({ status: 401 });
  const away = await admin("billing", "verify");
  expect([away.code, away.lines]).toEqual([2, []]);
  expect(away.said).toContain("StripeAuthenticationError");
  stripe.fault = null;
}, 90_000);

test("the processes do it by themselves, one of them at a time, and count what they found", async () => {
  const { stripe } = shop;
  const env = { ...shop.reef.env, BILLING_RECONCILE_MS: "1000" };
  stripe.webhooks.policy = () => "drop";
  const buyer = await makeBuyer(shop);
  buy(shop, buyer.customer, "premium monthly");
  const processes = await Promise.all([startProcess(env), startProcess(env)]);
  const driftOf = async ({ deps }: { deps: Deps }) => (await deps.metrics.billingDrift.get()).values[0]?.value ?? 0;
  const before = await driftOf(shop.reef);
  await shop.reef.deps.redis.del("billing:slot");
  try {
    await until("it is put right", async () => (await planOf(buyer.user)) === "premium", 20_000);
    const counts = await Promise.all([...processes, shop.reef].map(driftOf));
    expect(counts.reduce((sum, n) => sum + n, 0) - before).toBe(1);
  } finally {
    await Promise.all(processes.map((process) => process.stop()));
    stripe.webhooks.policy = () => "send";
  }
});

test("a link to pay by is another one at each look: no difference, and in no log", async () => {
  const { stripe, reef, sql } = shop;
  const { user, customer } = await makeSubscriber(shop, "pro monthly");
  stripe.setCard(customer, "declined");
  stripe.advance({ months: 1 });
  stripe.advance({ hours: 2 });
  await shop.settled();
  await sql`update subscriptions set pay_url = 'https://invoice.example.org/older' where user_id = ${user.id}`;
  const mine = async () =>
    (await compareBilling(reef.deps, settings)).differences.filter(({ customerId }) => customerId === customer);
  expect(await mine()).toEqual([]);
  await sql`update subscriptions set pay_url = null where user_id = ${user.id}`;
  expect((await mine()).map(({ what }) => what)).toEqual(["payUrl: here none, at Stripe one"]);
  await reconcileBilling(reef.deps, settings);
  const { payUrl } = (await rowOf(sql, user.id))!;
  expect(reef.logs.some((line) => line.includes(payUrl!))).toBe(false);
});

test("one who can't be put right holds up nobody else, and the failure is not swallowed", async () => {
  const { stripe, reef } = shop;
  stripe.webhooks.policy = () => "drop";
  const buyers = [await makeBuyer(shop), await makeBuyer(shop)];
  for (const { customer } of buyers) buy(shop, customer, "pro monthly");
  const [poison, other] = buyers.toSorted((a, b) => (a.customer < b.customer ? -1 : 1)) as [Buyer, Buyer];
  // Compared it can be; what it comes to can't be kept.
  await shop.sql.unsafe(`alter table subscriptions add constraint poison check (user_id <> '${poison.user.id}')`);
  try {
    const failure = await reconcileBilling(reef.deps, settings).catch((error: unknown) => error);
    expect((failure as { code?: string }).code).toBe("23514");
    expect(await planOf(other.user)).toBe("pro");
  } finally {
    await shop.sql`alter table subscriptions drop constraint poison`;
    stripe.webhooks.policy = () => "send";
  }
  await reconcileBilling(reef.deps, settings);
  expect(await planOf(poison.user)).toBe("pro");
});

test("a plan in force that was not applied is applied", async () => {
  const { reef, sql } = shop;
  const user = await makeUser(reef);
  await sql`alter table subscriptions disable trigger subscriptions_tell`;
  await sql`insert into subscriptions (user_id, source, plan, status) values (${user.id}, 'grant', 'pro', 'active')`;
  await sql`alter table subscriptions enable trigger subscriptions_tell`;
  await reconcileBilling(reef.deps, settings);
  expect([...(await sql`select applied_plan from users where id = ${user.id}`)]).toEqual([
    { appliedPlan: "pro" },
  ] as never);
});

test("commands: gifts by id and by address, help, misuse", async () => {
  const user = await makeUser(shop.reef);
  expect((await admin("grant", user.email.toUpperCase(), "premium", "--until", "2099-01-31")).code).toBe(0);
  expect((await rowOf(shop.sql, user.id, "grant"))!.currentPeriodEnd).toEqual(new Date("2099-02-01T00:00:00Z"));
  expect(await planOf(user)).toBe("premium");
  expect((await admin("grant", user.id, "pro")).code).toBe(0);
  expect(await planOf(user)).toBe("pro");
  expect((await admin("grant", "end", user.id)).code).toBe(0);
  expect(await planOf(user)).toBe("free");
  const audits = await shop.sql`
    select action, actor, details ->> 'os_user' is not null as named from audit_log
    where subject_user_id = ${user.id} and action like 'subscription.%' order by id`;
  expect(audits.map(({ action, actor, named }) => [action, actor, named])).toEqual([
    ["subscription.granted", "job:admin", true],
    ["subscription.changed", "job:admin", true],
    ["subscription.granted", "job:admin", true],
    ["subscription.changed", "job:admin", true],
    ["subscription.grant_ended", "job:admin", true],
    ["subscription.changed", "job:admin", true],
  ]);
  for (const [args, code] of [
    [["grant", "end", user.id], 1],
    [["grant", "nobody@example.org", "pro"], 1],
    [["grant", user.id, "gold"], 1],
    [["grant", user.id, "pro", "--until", "2020-01-01"], 1],
    [["grant", user.id, "pro", "--until", "soon"], 2],
    [["grant", user.id], 2],
    [["grant", user.id, "pro", "more"], 2],
    [["grant", "end"], 2],
    [["billing"], 2],
    [["billing", "verify", "now"], 2],
    [["billing", "verify", "--name", "x"], 2],
  ] as const)
    expect([args, (await admin(...args)).code]).toEqual([args, code]);
  for (const command of [["grant"], ["grant", "end"], ["billing", "verify"], ["billing", "repair"]]) {
    const { code, lines } = await admin(...command, "--help");
    expect([code, lines[0]!.startsWith(`npm run admin -- ${command.join(" ")}`)]).toEqual([0, true]);
  }
});
