import type { CatalogPrice, PortalProduct, StripeCatalog } from "../clients/stripeCatalog.ts";
import { insertAudit } from "../db/audit.ts";
import { withAdvisoryLock } from "../db/locks.ts";
import {
  findPortal,
  listPlans,
  listPrices,
  savePortal,
  savePrice,
  type BillingCycle,
  type StripePrice,
} from "../db/stripePrices.ts";
import type { Deps } from "../deps.ts";
import { renderUsd } from "../lib/money.ts";

/*
 * Makes products, prices and the portal at Stripe what `plan_limits` says, and keeps their ids. It looks at everything and
 * does only what is missing, so it may be run again, and after having died anywhere. A price can't be changed at Stripe:
 * another amount is another price, which takes the lookup key over; the old one is archived, and stays known for the
 * subscriptions that have it.
 */

type PriceDeps = Pick<Deps, "sql" | "catalog" | "stripe">;
type Say = (line: string) => void;

const MICRO_USD_PER_CENT = 10_000;
const CYCLES = { monthly: "month", yearly: "year" } as const;

/** An amount that can't be charged. */
export class UnsellablePrice extends Error {
  constructor(plan: string, cycle: BillingCycle) {
    super(`The ${cycle} price of ${plan} in plan_limits is not a number of whole cents; nothing was done.`);
    this.name = "UnsellablePrice";
  }
}

/** What is to be sold: one price. */
interface Wanted {
  plan: string;
  cycle: BillingCycle;
  lookupKey: string;
  cents: number;
}

/**
 * Says line by line what it did, in the mode of the key. Returns how much that was; null when another process is at it, or
 * there is no key. Throws UnsellablePrice, or what Stripe or the database threw: then it is run again.
 */
export async function syncPrices(deps: PriceDeps, person: { osUser: string }, say: Say): Promise<number | null> {
  const { sql, catalog } = deps;
  if (!catalog) return null;
  return withAdvisoryLock(sql, "stripe prices", async () => {
    let changes = 0;
    const count: Say = (line) => (changes++, say(line));
    const wanted = await listWanted(deps);
    const current = await ensurePrices(deps, catalog, wanted, count);
    await ensurePortal(deps, catalog, current, count);
    if (changes > 0) {
      const details = { mode: deps.stripe.isLive ? "live" : "test", changes, os_user: person.osUser };
      const audit = { actor: "job:admin", subjectUserId: null, ip: null, requestId: null };
      await insertAudit(sql, { ...audit, action: "billing.prices_synced", details });
    }
    return changes;
  });
}

async function listWanted({ sql }: PriceDeps): Promise<Wanted[]> {
  const plans = (await listPlans(sql, null)).filter((plan) => plan.priceMonthMicroUsd > 0);
  return plans.flatMap(({ plan, priceMonthMicroUsd, priceYearMicroUsd }) => [
    want(plan, "monthly", priceMonthMicroUsd),
    want(plan, "yearly", priceYearMicroUsd),
  ]);
}

function want(plan: string, cycle: BillingCycle, microUsd: number): Wanted {
  const cents = microUsd / MICRO_USD_PER_CENT;
  if (!Number.isInteger(cents) || cents <= 0) throw new UnsellablePrice(plan, cycle);
  return { plan, cycle, lookupKey: `reef_${plan}_${cycle}`, cents };
}

async function ensurePrices(
  deps: PriceDeps,
  catalog: StripeCatalog,
  wanted: Wanted[],
  say: Say,
): Promise<CatalogPrice[]> {
  const byKey = await catalog.listPricesByKey(wanted.map(({ lookupKey }) => lookupKey));
  const current: CatalogPrice[] = [];
  for (const [plan, its] of Map.groupBy(wanted, (one) => one.plan)) {
    const productId = `reef_${plan}`;
    const found = its.map((one) => byKey.find((price) => isAsWanted(price, one)));
    // Prices that somebody made under our lookup keys may belong to another product, and then ours is not needed.
    if (found.some((price) => price === undefined || price.productId === productId)) {
      const was = await catalog.ensureProduct({ id: productId, name: `Reef ${capitalize(plan)}`, plan });
      if (was !== "found") say(`${plan}: product ${productId} ${was}`);
    }
    for (const [n, one] of its.entries()) {
      const price = found[n] ?? (await makePrice(catalog, productId, one, say));
      const isNew = await keep(deps, price, one);
      if (isNew && found[n]) say(`${name(one)}: price ${price.id} found, ${dollars(price)}`);
      current.push(price);
    }
    await retire(deps, catalog, { plan, productId, current }, say);
  }
  return current;
}

function isAsWanted(price: CatalogPrice, { lookupKey, cents, cycle }: Wanted): boolean {
  const { active, currency, interval } = price;
  return (
    price.lookupKey === lookupKey && active && currency === "usd" && price.cents === cents && interval === CYCLES[cycle]
  );
}

async function makePrice(catalog: StripeCatalog, productId: string, one: Wanted, say: Say): Promise<CatalogPrice> {
  const { plan, cycle, lookupKey, cents } = one;
  const price = await catalog.createPrice({ productId, lookupKey, cents, interval: CYCLES[cycle], plan, cycle });
  say(`${name(one)}: price ${price.id} made, ${dollars(price)}`);
  return price;
}

/** Keeps a price as the one that is sold; false when it was that already. */
async function keep({ sql, stripe }: PriceDeps, price: CatalogPrice, { plan, cycle }: Wanted): Promise<boolean> {
  const livemode = stripe.isLive;
  const known = (await listPrices(sql, livemode)).find(({ priceId }) => priceId === price.id);
  if (known?.current) return false;
  await sql.begin((tx) => savePrice(tx, { ...toRow(price, livemode, plan, cycle), current: true }));
  return true;
}

/** Takes a plan's other prices out of the shop, and keeps them for the subscriptions that have them. */
async function retire(
  { sql, stripe }: PriceDeps,
  catalog: StripeCatalog,
  plan: { plan: string; productId: string; current: CatalogPrice[] },
  say: Say,
): Promise<void> {
  const livemode = stripe.isLive;
  const known = new Map((await listPrices(sql, livemode)).map((price) => [price.priceId, price]));
  const kept = new Set(plan.current.map(({ id }) => id));
  for (const price of await catalog.listPricesOf(plan.productId)) {
    const cycle = known.get(price.id)?.cycle ?? toCycle(price.cycle);
    const ours = known.has(price.id) || price.plan === plan.plan;
    if (kept.has(price.id) || !ours || cycle === null || price.cents === null) continue;
    if (!known.has(price.id)) {
      const row = toRow(price, livemode, plan.plan, cycle);
      await sql.begin((tx) => savePrice(tx, { ...row, current: false }));
      say(`${plan.plan} ${cycle}: ${price.id} is known again, for subscriptions that have it`);
    }
    if (!price.active) continue;
    await catalog.archivePrice(price.id);
    say(`${plan.plan} ${cycle}: ${price.id} archived, ${dollars(price)}`);
  }
}

async function ensurePortal(
  { sql, stripe }: PriceDeps,
  catalog: StripeCatalog,
  current: CatalogPrice[],
  say: Say,
): Promise<void> {
  const products: PortalProduct[] = [...Map.groupBy(current, ({ productId }) => productId)].map(
    ([product, prices]) => ({
      product,
      prices: prices.map(({ id }) => id),
    }),
  );
  const livemode = stripe.isLive;
  const { id, was } = await catalog.ensurePortal(products);
  const known = (await findPortal(sql, livemode)) === id;
  if (!known) await savePortal(sql, { livemode, configurationId: id });
  if (!known || was !== "found") say(`portal: settings ${id} ${was}`);
}

function toRow(price: CatalogPrice, livemode: boolean, plan: string, cycle: BillingCycle): StripePrice {
  const amountMicroUsd = (price.cents ?? 0) * MICRO_USD_PER_CENT;
  return { priceId: price.id, plan, cycle, livemode, productId: price.productId, amountMicroUsd };
}

function toCycle(text: string | null): BillingCycle | null {
  return text === "monthly" || text === "yearly" ? text : null;
}

const name = ({ plan, cycle }: Wanted) => `${plan} ${cycle}`;
const dollars = ({ cents }: CatalogPrice) => `${renderUsd((cents ?? 0) * MICRO_USD_PER_CENT)} USD`;
const capitalize = (word: string) => word.charAt(0).toUpperCase() + word.slice(1);
