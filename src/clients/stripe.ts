import Stripe from "stripe";
import type { Config } from "../config.ts";

/** A call to Stripe; what takes longer has failed. */
const CALL_MS = 8_000;
const PAGE = 100;
/** A subscription that is over, however it came to it. */
const OVER = ["canceled", "incomplete_expired"];
/** Minor units (cents) of a price in USD. */
const MICRO_USD_PER_CENT = 10_000;

/** A subscription as Stripe has it now. */
export interface StripeSubscription {
  id: string;
  customerId: string;
  status: Exclude<Stripe.Subscription.Status, string & {}>;
  createdAt: Date;
  cancelAtPeriodEnd: boolean;
  cancelAt: Date | null;
  items: StripeItem[];
}
export interface StripeItem {
  priceId: string;
  productId: string;
  /** Null: neither by the month nor by the year. */
  cycle: "monthly" | "yearly" | null;
  periodStart: Date;
  periodEnd: Date;
}

/** What is owed for a subscription: its open invoices together. */
export interface StripeDebt {
  dueMicroUsd: number;
  /** Since when the oldest is open, and where it is paid. */
  since: Date;
  payUrl: string | null;
}

export interface StripeClient {
  /** Whether there is a key; without one every call rejects. */
  isConfigured: boolean;
  /** Whether the key is of the live mode. */
  isLive: boolean;
  /**
   * Cancels a subscription at once; one that is over or that Stripe does not know is no error. `key`: the same key is
   * the same request to Stripe. Rejects when Stripe can't be reached, refuses, or has no key here.
   */
  cancelSubscription(input: { id: string; key: string }): Promise<void>;
  /** Every subscription that a customer has or had, newest first; null when Stripe knows no such customer. */
  listSubscriptions(customerId: string): Promise<StripeSubscription[] | null>;
  /** A page of all subscriptions of the account, newest first; `after` is the last id of the page before. */
  listAllSubscriptions(after: string | null): Promise<{ items: StripeSubscription[]; hasMore: boolean }>;
  /** Null: nothing is owed. */
  findDebt(subscriptionId: string): Promise<StripeDebt | null>;
  /** Whose a customer is by its own account of itself (`metadata.user_id`); null when Stripe never knew it. */
  findCustomer(customerId: string): Promise<{ gone: boolean; userId: string | null } | null>;
  /** Who paid; null when nobody that has an id did, or Stripe does not know the charge. */
  findCustomerOfCharge(chargeId: string): Promise<string | null>;
}

export type StripeConfig = Pick<Config, "STRIPE_SECRET_KEY" | "STRIPE_API_BASE">;

/** Stripe's own package, set up as this configuration says; null without STRIPE_SECRET_KEY. Opens nothing by itself. */
export function openStripe(config: StripeConfig): Stripe | null {
  const key = config.STRIPE_SECRET_KEY;
  return key === undefined ? null : new Stripe(key, optionsOf(config.STRIPE_API_BASE));
}

/** The client of Stripe, by its own package. Without STRIPE_SECRET_KEY every call rejects. */
export function createStripeClient(config: StripeConfig): StripeClient {
  const stripe = openStripe(config);
  const require = () => {
    if (stripe) return stripe;
    throw Object.assign(new Error("STRIPE_SECRET_KEY is missing"), { code: "stripe_not_configured" });
  };
  return {
    isConfigured: stripe !== null,
    isLive: /^[a-z]+_live_/.test(config.STRIPE_SECRET_KEY ?? ""),
    cancelSubscription: async (input) => cancel(require(), input),
    listSubscriptions: async (customerId) => orNull(() => listOf(require(), customerId)),
    async listAllSubscriptions(after) {
      const page = await require().subscriptions.list({ status: "all", limit: PAGE, ...startAt(after) });
      return { items: page.data.map(readSubscription), hasMore: page.has_more };
    },
    findDebt: async (subscriptionId) => findDebt(require(), subscriptionId),
    findCustomer: (customerId) =>
      orNull(async () => {
        const customer = await require().customers.retrieve(customerId);
        if (customer.deleted) return { gone: true, userId: null };
        return { gone: false, userId: customer.metadata["user_id"] ?? null };
      }),
    findCustomerOfCharge: (chargeId) => orNull(async () => idOf((await require().charges.retrieve(chargeId)).customer)),
  };
}

async function cancel(stripe: Stripe, { id, key }: { id: string; key: string }): Promise<void> {
  try {
    await stripe.subscriptions.cancel(id, {}, { idempotencyKey: key });
  } catch (error) {
    if (isMissing(error)) return;
    if (!(error instanceof Stripe.errors.StripeInvalidRequestError)) throw error;
    const { status } = await stripe.subscriptions.retrieve(id);
    if (!OVER.includes(status)) throw error;
  }
}

async function listOf(stripe: Stripe, customer: string): Promise<StripeSubscription[]> {
  const found: StripeSubscription[] = [];
  for (;;) {
    const after = found.at(-1)?.id ?? null;
    const page = await stripe.subscriptions.list({ customer, status: "all", limit: PAGE, ...startAt(after) });
    found.push(...page.data.map(readSubscription));
    if (!page.has_more || page.data.length === 0) return found;
  }
}

async function findDebt(stripe: Stripe, subscription: string): Promise<StripeDebt | null> {
  const { data } = await stripe.invoices.list({ subscription, status: "open", limit: PAGE });
  const oldest = data.at(-1);
  if (!oldest) return null;
  return {
    dueMicroUsd: data.reduce((sum, invoice) => sum + invoice.amount_remaining, 0) * MICRO_USD_PER_CENT,
    since: readTime(oldest.status_transitions.finalized_at ?? oldest.created),
    payUrl: oldest.hosted_invoice_url ?? null,
  };
}

function readSubscription(subscription: Stripe.Subscription): StripeSubscription {
  const { id, customer, status, cancel_at: cancelAt } = subscription;
  return {
    id,
    customerId: idOf(customer)!,
    status: status as StripeSubscription["status"],
    createdAt: readTime(subscription.created),
    cancelAtPeriodEnd: subscription.cancel_at_period_end,
    cancelAt: cancelAt === null ? null : readTime(cancelAt),
    items: subscription.items.data.map((item) => ({
      priceId: item.price.id,
      productId: idOf(item.price.product)!,
      cycle: cycleOf(item.price.recurring),
      periodStart: readTime(item.current_period_start),
      periodEnd: readTime(item.current_period_end),
    })),
  };
}

function cycleOf(recurring: Stripe.Price.Recurring | null): StripeItem["cycle"] {
  if (recurring?.interval_count !== 1) return null;
  return recurring.interval === "month" ? "monthly" : recurring.interval === "year" ? "yearly" : null;
}

function readTime(seconds: number): Date {
  return new Date(seconds * 1000);
}

/** The id of what may be expanded. */
function idOf(reference: string | { id: string } | null): string | null {
  return typeof reference === "string" ? reference : (reference?.id ?? null);
}

function startAt(after: string | null) {
  return after === null ? {} : { starting_after: after };
}

// Retries are the caller's, who knows what waits behind this call.
function optionsOf(base: string) {
  const { protocol, hostname, port } = new URL(base);
  const secure = protocol === "https:";
  return {
    host: hostname,
    port: port === "" ? (secure ? 443 : 80) : Number(port),
    protocol: secure ? ("https" as const) : ("http" as const),
    timeout: CALL_MS,
    maxNetworkRetries: 0,
    telemetry: false,
  };
}

async function orNull<T>(ask: () => Promise<T>): Promise<T | null> {
  try {
    return await ask();
  } catch (error) {
    if (isMissing(error)) return null;
    throw error;
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof Stripe.errors.StripeInvalidRequestError && error.code === "resource_missing";
}
