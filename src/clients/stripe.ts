import Stripe from "stripe";
import type { Config } from "../config.ts";

/** A call to Stripe; what takes longer has failed. */
const CALL_MS = 8_000;
/** A subscription that is over, however it came to it. */
const OVER = ["canceled", "incomplete_expired"];

export interface StripeClient {
  /**
   * Cancels a subscription at once; one that is over or that Stripe does not know is no error. `key`: the same key is
   * the same request to Stripe. Rejects when Stripe can't be reached, refuses, or has no key here.
   */
  cancelSubscription(input: { id: string; key: string }): Promise<void>;
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
  return {
    async cancelSubscription({ id, key: idempotencyKey }) {
      if (!stripe) throw Object.assign(new Error("STRIPE_SECRET_KEY is missing"), { code: "stripe_not_configured" });
      try {
        await stripe.subscriptions.cancel(id, {}, { idempotencyKey });
      } catch (error) {
        if (isMissing(error)) return;
        if (!(error instanceof Stripe.errors.StripeInvalidRequestError)) throw error;
        const { status } = await stripe.subscriptions.retrieve(id);
        if (!OVER.includes(status)) throw error;
      }
    },
  };
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

function isMissing(error: unknown): boolean {
  return error instanceof Stripe.errors.StripeInvalidRequestError && error.code === "resource_missing";
}
