import { createHash } from "node:crypto";
import type Stripe from "stripe";
import { unlessMissing } from "./stripeSales.ts";

/** A call to Stripe; what takes longer has failed. */
const CALL_MS = 20_000;

/** Stripe takes no more in a request. */
const KEYS_AT_ONCE = 10;

/** A price as Stripe has it. */
export interface CatalogPrice {
  id: string;
  productId: string;
  lookupKey: string | null;
  active: boolean;
  currency: string;
  /** Null for one that is not so many whole cents. */
  cents: number | null;
  interval: "month" | "year" | null;
  /** The plan and cycle it was made for; null for one that somebody else made. */
  plan: string | null;
  cycle: string | null;
}

export interface PortalProduct {
  product: string;
  prices: string[];
}

/** What is sold at Stripe: products, prices, and what people may do in the portal. Rejects with Stripe's own errors. */
export type StripeCatalog = ReturnType<typeof createStripeCatalog>;

export function createStripeCatalog(stripe: Stripe) {
  const limits = { timeout: CALL_MS };
  return {
    ...productCalls(stripe, limits),
    ...priceCalls(stripe, limits),
    ...portalCalls(stripe, limits),
    /** Where Stripe sends events to; null when the key may not ask. */
    async listWebhookEndpoints(): Promise<{ url: string; enabled: boolean; events: string[] }[] | null> {
      try {
        const page = await stripe.webhookEndpoints.list({ limit: 100 }, limits);
        return page.data.map(({ url, status, enabled_events }) => ({
          url,
          enabled: status === "enabled",
          events: enabled_events,
        }));
      } catch (error) {
        const { type, statusCode } = error as { type?: string; statusCode?: number };
        if (type === "StripePermissionError" || statusCode === 403) return null;
        throw error;
      }
    },
  };
}

type Limits = { timeout: number };

function productCalls(stripe: Stripe, limits: Limits) {
  return {
    /** Makes a product, or puts one that was archived on sale again. */
    async ensureProduct(input: { id: string; name: string; plan: string }): Promise<"found" | "made" | "restored"> {
      const { id, name, plan } = input;
      const found = await unlessMissing(stripe.products.retrieve(id, {}, limits));
      if (found?.active) return "found";
      if (found) {
        await stripe.products.update(id, { active: true }, limits);
        return "restored";
      }
      await stripe.products.create({ id, name, metadata: { reef_plan: plan } }, limits);
      return "made";
    },
  };
}

function priceCalls(stripe: Stripe, limits: Limits) {
  return {
    async listPricesByKey(lookupKeys: string[]): Promise<CatalogPrice[]> {
      const found: CatalogPrice[] = [];
      for (let n = 0; n < lookupKeys.length; n += KEYS_AT_ONCE) {
        const lookup_keys = lookupKeys.slice(n, n + KEYS_AT_ONCE);
        const page = await stripe.prices.list({ lookup_keys, limit: 100 }, limits);
        found.push(...page.data.map(toCatalogPrice));
      }
      return found;
    },
    /** All of a product's, archived ones too; none of a product that is not there. */
    async listPricesOf(productId: string): Promise<CatalogPrice[]> {
      const found: CatalogPrice[] = [];
      for (let after: string | undefined; ;) {
        const paging = after === undefined ? {} : { starting_after: after };
        const page = await stripe.prices.list({ product: productId, limit: 100, ...paging }, limits);
        found.push(...page.data.map(toCatalogPrice));
        after = page.data.at(-1)?.id;
        if (!page.has_more || after === undefined) return found;
      }
    },
    /** Takes the lookup key over from the price that has it. */
    async createPrice(input: {
      productId: string;
      lookupKey: string;
      cents: number;
      interval: "month" | "year";
      plan: string;
      cycle: string;
    }): Promise<CatalogPrice> {
      const price = await stripe.prices.create(
        {
          product: input.productId,
          currency: "usd",
          unit_amount: input.cents,
          recurring: { interval: input.interval },
          lookup_key: input.lookupKey,
          transfer_lookup_key: true,
          metadata: { reef_plan: input.plan, reef_cycle: input.cycle },
        },
        limits,
      );
      return toCatalogPrice(price);
    },
    async archivePrice(id: string): Promise<void> {
      await stripe.prices.update(id, { active: false }, limits);
    },
  };
}

/** Who has a subscription pays more at once, and what was paid for runs on until a cheaper plan begins. */
const CHANGES = {
  enabled: true,
  default_allowed_updates: ["price" as const],
  proration_behavior: "always_invoice" as const,
  schedule_at_period_end: {
    conditions: [{ type: "decreasing_item_amount" as const }, { type: "shortening_interval" as const }],
  },
};
const MARK = "reef_portal";

function portalCalls(stripe: Stripe, limits: Limits) {
  return {
    /** Makes or changes Reef's own settings of the portal; their metadata say which content they have. */
    async ensurePortal(products: PortalProduct[]): Promise<{ id: string; was: "changed" | "found" | "made" }> {
      const features: Stripe.BillingPortal.ConfigurationCreateParams.Features = {
        invoice_history: { enabled: true },
        payment_method_update: { enabled: true },
        subscription_cancel: { enabled: true, mode: "at_period_end" },
        subscription_update: { ...CHANGES, products },
      };
      const mark = createHash("sha256").update(JSON.stringify(features)).digest("hex").slice(0, 16);
      const metadata = { [MARK]: mark };
      const found = await findPortal(stripe, limits);
      if (found?.metadata?.[MARK] === mark) return { id: found.id, was: "found" };
      if (found) {
        await stripe.billingPortal.configurations.update(found.id, { features, metadata }, limits);
        return { id: found.id, was: "changed" };
      }
      const made = await stripe.billingPortal.configurations.create({ name: "Reef", features, metadata }, limits);
      return { id: made.id, was: "made" };
    },
  };
}

async function findPortal(stripe: Stripe, limits: Limits): Promise<Stripe.BillingPortal.Configuration | null> {
  for (let after: string | undefined; ;) {
    const paging = after === undefined ? {} : { starting_after: after };
    const page = await stripe.billingPortal.configurations.list({ active: true, limit: 100, ...paging }, limits);
    const found = page.data.find(({ metadata }) => metadata?.[MARK] !== undefined);
    after = page.data.at(-1)?.id;
    if (found || !page.has_more || after === undefined) return found ?? null;
  }
}

function toCatalogPrice(price: Stripe.Price): CatalogPrice {
  const recurring = price.recurring?.interval_count === 1 ? price.recurring.interval : null;
  return {
    id: price.id,
    productId: typeof price.product === "string" ? price.product : price.product.id,
    lookupKey: price.lookup_key,
    active: price.active,
    currency: price.currency,
    cents: price.unit_amount,
    interval: recurring === "month" ? "month" : recurring === "year" ? "year" : null,
    plan: price.metadata["reef_plan"] ?? null,
    cycle: price.metadata["reef_cycle"] ?? null,
  };
}
