import { afterEach, expect, test } from "bun:test";
import { join, resolve } from "node:path";
import { call } from "../factories.ts";
import { startFakeStripe, type FakeStripe } from "../fakes/stripe.ts";
import { startProcess, startTestReef, type TestReef } from "../harness.ts";
import { keysOf, stock } from "./storefront.ts";

const ADMIN = join(resolve(import.meta.dir, "../.."), "src/jobs/admin.ts");
let stripe: FakeStripe;
let reef: TestReef;
afterEach(async () => {
  await reef.stop();
  await stripe.close();
});

async function open(): Promise<void> {
  stripe = await startFakeStripe();
  reef = await startTestReef(keysOf(stripe));
}

const run = async (env: Record<string, string>, ...args: string[]) => {
  const child = Bun.spawn([process.execPath, "--no-env-file", ADMIN, "stripe", ...args], {
    env: { PATH: process.env["PATH"] ?? "", ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, said] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { code: await child.exited, lines: out.trim().split("\n"), said };
};

const rows = (livemode = false) => reef.sql<
  { priceId: string; plan: string; cycle: string; amountMicroUsd: number; current: boolean }[]
>`select price_id, plan, cycle, amount_micro_usd, current from stripe_prices where livemode = ${livemode}
  order by plan, cycle, current, created_at`;
const prices = (mode: "live" | "test" = "test") => Object.values(stripe.account(mode).objects.prices);
const available = async (url = reef.url) =>
  (await call(url, "GET", "/api/subscription/plans")).body.map((plan: { available: boolean }) => plan.available);

/** What must be so after any run that ended well. */
async function expectStocked(mode: "live" | "test" = "test"): Promise<void> {
  const active = prices(mode).filter((price) => price.active);
  expect(active.map(({ lookup_key: key, unit_amount: cents }) => `${key} ${cents}`).toSorted()).toEqual([
    "reef_premium_monthly 1299",
    "reef_premium_yearly 12999",
    "reef_pro_monthly 699",
    "reef_pro_yearly 6999",
  ]);
  expect(Object.keys(stripe.account(mode).objects.products).toSorted()).toEqual(["reef_premium", "reef_pro"]);
  const current = (await rows(mode === "live")).filter((row) => row.current);
  expect(current.map(({ priceId }) => priceId).toSorted()).toEqual(active.map(({ id }) => id).toSorted());
  const portals = Object.values(stripe.account(mode).objects.portalConfigurations);
  expect(portals.length).toBe(1);
  const sold = portals[0]!.features.subscription_update.products!.flatMap((product) => product.prices);
  expect(sold.toSorted()).toEqual(active.map(({ id }) => id).toSorted());
}

test("by hand: it prints what it did, and nothing the second time; the plans are for sale then", async () => {
  await open();
  expect(await available()).toEqual([true, false, false]);
  const first = await run(reef.env, "sync-prices");
  expect(first.code).toBe(0);
  expect(first.lines[0]).toBe("mode: test");
  for (const words of [
    "pro: product reef_pro made",
    /^premium yearly: price price_\w+ made, 129\.99 USD$/,
    /^portal: /,
  ])
    expect(first.lines).toContainEqual(typeof words === "string" ? words : expect.stringMatching(words));
  expect(first.lines.at(-1)).toMatch(/^Done: \d+ changes\.$/);
  await expectStocked();
  expect(await available()).toEqual([true, true, true]);
  const before = stripe.requests.length;
  const second = await run(reef.env, "sync-prices");
  expect([second.code, second.lines]).toEqual([0, ["mode: test", "Nothing was to be done."]]);
  expect(stripe.requests.slice(before).filter(({ method }) => method !== "GET")).toEqual([]);
  const audits = await reef.sql`select actor, details from audit_log where action = 'billing.prices_synced'`;
  expect(audits.map(({ actor, details }) => [actor, details.mode])).toEqual([["job:admin", "test"]]);
});

test("misuse, no key, a wrong key, no Stripe: a sentence and an exit code; the help says what it does", async () => {
  await open();
  expect((await run({}, "sync-prices", "--help")).lines[0]).toBe("npm run admin -- stripe sync-prices");
  expect((await run(reef.env, "sync-prices", "now")).code).toBe(2);
  const { STRIPE_SECRET_KEY: _, ...keyless } = reef.env;
  expect(await run(keyless, "sync-prices")).toMatchObject({
    code: 2,
    said: expect.stringContaining("nothing is sold"),
  });
  const wrong = await run({ ...reef.env, STRIPE_SECRET_KEY: "sk_test_wrong" }, "sync-prices");
  expect([wrong.code, wrong.said.includes("StripeAuthenticationError 401"), wrong.said.includes("wrong")]).toEqual([
    1,
    true,
    false,
  ]);
  const away = await run({ ...reef.env, STRIPE_API_BASE: "http://127.0.0.1:1" }, "sync-prices");
  expect([away.code, away.said.includes("StripeConnectionError")]).toEqual([1, true]);
  await reef.sql`update plan_limits set price_month_micro_usd = 6990001 where plan = 'pro'`;
  const odd = await run(reef.env, "sync-prices");
  expect([odd.code, odd.said]).toEqual([1, expect.stringContaining("whole cents")]);
  expect(prices()).toEqual([]);
});

test("a changed amount is a new price that takes the key over; the old one is archived and stays known", async () => {
  await open();
  await stock(reef);
  const [old] = prices().filter((price) => price.lookup_key === "reef_pro_monthly");
  await reef.sql`update plan_limits set price_month_micro_usd = 7990000 where plan = 'pro'`;
  const said = await stock(reef);
  expect(said).toContainEqual(expect.stringMatching(/^pro monthly: price price_\w+ made, 7\.99 USD$/));
  expect(said).toContain(`pro monthly: ${old!.id} archived, 6.99 USD`);
  expect(prices().find(({ id }) => id === old!.id)).toMatchObject({ active: false, lookup_key: null });
  const monthly = (await rows()).filter((row) => row.plan === "pro" && row.cycle === "monthly");
  expect(monthly.map(({ amountMicroUsd, current }) => [amountMicroUsd, current])).toEqual([
    [6_990_000, false],
    [7_990_000, true],
  ]);
  await reef.sql`update plan_limits set price_month_micro_usd = 6990000 where plan = 'pro'`;
  await stock(reef);
  await expectStocked();
  expect(await stock(reef)).toEqual([]);
  // A new database knows the old ones again: somebody may still have them.
  await reef.sql`delete from stripe_prices`;
  await stock(reef);
  expect((await rows()).length).toBe(6);
  await expectStocked();
});

test("test and live mode are kept apart; the key decides", async () => {
  await open();
  await stock(reef);
  const live = await startProcess({ ...reef.env, STRIPE_SECRET_KEY: stripe.liveKey });
  try {
    expect(await available(live.url)).toEqual([true, false, false]);
    await stock(live);
    expect(await available(live.url)).toEqual([true, true, true]);
  } finally {
    await live.stop();
  }
  for (const mode of ["live", "test"] as const) await expectStocked(mode);
});

test("what somebody made under our keys is used; what is theirs beside it is left alone", async () => {
  await open();
  await stock(reef);
  const objects = stripe.account().objects;
  const [own] = Object.values(objects.prices).filter((price) => price.lookup_key === "reef_pro_monthly");
  const foreign = { ...structuredClone(own!), id: "price_foreign", lookup_key: null, currency: "eur", metadata: {} };
  objects.prices["price_foreign"] = foreign;
  objects.products["reef_pro"]!.active = false;
  expect(await stock(reef)).toEqual(["pro: product reef_pro restored"]);
  expect(objects.prices["price_foreign"]!.active).toBe(true);
  await reef.sql`delete from stripe_prices`;
  await reef.sql`delete from stripe_portals`;
  const said = await stock(reef);
  expect([said.length, said.every((line) => / found(, |$)/.test(line))]).toEqual([5, true]);
  await expectStockedBeside("price_foreign");
});

async function expectStockedBeside(foreign: string): Promise<void> {
  delete stripe.account().objects.prices[foreign];
  await expectStocked();
}

test("cut off before or after any of its calls, and run again: it is right, without doubles", async () => {
  await open();
  await reef.sql`update plan_limits set price_month_micro_usd = 5000000 where plan = 'pro'`;
  await stock(reef);
  await reef.sql`update plan_limits set price_month_micro_usd = 6990000 where plan = 'pro'`;
  const older = stripe.snapshot().test.objects;
  const none = { prices: {}, products: {} };
  for (const [when, from, calls] of [
    ["beforeWork", none, 12],
    ["afterWork", none, 12],
    ["beforeWork", older, 8],
    ["afterWork", older, 8],
  ] as const) {
    let cut = true;
    for (let n = 0; cut; n++) {
      await reef.sql`delete from stripe_prices`;
      await reef.sql`delete from stripe_portals`;
      const { objects } = stripe.account();
      objects.prices = structuredClone(from.prices);
      objects.products = structuredClone(from.products);
      objects.portalConfigurations = {};
      let seen = 0;
      stripe.fault = () => (seen++ === n ? { cut: when } : null);
      await stock(reef).catch(() => undefined);
      cut = seen > n;
      stripe.fault = null;
      await stock(reef);
      await expectStocked();
      expect(await stock(reef)).toEqual([]);
      if (!cut) expect(n).toBeGreaterThan(calls);
    }
  }
});

test("two at once: one does it, the other says so", async () => {
  await open();
  const ran = await Promise.all([run(reef.env, "sync-prices"), run(reef.env, "sync-prices")]);
  expect(ran.some(({ code }) => code === 0)).toBe(true);
  for (const { code, said, lines } of ran)
    expect(code === 0 ? lines[0] : said).toMatch(/^mode: test|Another process is at it/);
  await stock(reef);
  await expectStocked();
});
