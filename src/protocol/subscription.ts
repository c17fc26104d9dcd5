import { z } from "zod";
import { time } from "./fields.ts";

/** The JSON bodies of /api/subscription. */

/** Stripe's events are larger than what users send. */
export const WEBHOOK_BODY_BYTES = 1024 * 1024;

const usd = z.string().describe('USD, e.g. "6.99"');
export const billingCycle = z.enum(["monthly", "yearly"]);

export const plansSchema = z.array(
  z.object({
    plan: z.string(),
    assistants: z.number().int(),
    text_messages: z.number().int().describe("A day"),
    voice_input_seconds: z.number().int().describe("A day"),
    voice_output_seconds: z.number().int().describe("A day"),
    tts_characters: z.number().int().describe("A day"),
    tts_model: z.string(),
    voices: z.array(z.string()),
    price_monthly: usd,
    price_yearly: usd,
    available: z.boolean().describe("Whether it can be bought here now; free always is"),
  }),
);

export const subscriptionSchema = z.object({
  plan: z.string().describe("The plan in force"),
  source: z.enum(["free", "stripe", "grant", "apple", "google"]).describe("Where it comes from"),
  status: z
    .enum([
      "none",
      "incomplete",
      "incomplete_expired",
      "trialing",
      "active",
      "past_due",
      "unpaid",
      "paused",
      "canceled",
    ])
    .describe("Of what is paid for at Stripe, as Stripe says; none: nothing ever was"),
  billing_cycle: billingCycle.nullable(),
  current_period_end: time.nullable().describe("When it renews or, where it will end, ends"),
  cancel_at_period_end: z.boolean(),
  payment_due: z
    .object({
      amount: usd,
      pay_url: z.string().nullable().describe("Where it can be paid"),
      since: time,
      grace_until: time.nullable().describe("The plan is kept until then; null: as long as Stripe tries again"),
    })
    .nullable()
    .describe("A payment failed; the app should say so"),
  checkout_open: z.boolean().describe("A checkout was begun and not finished"),
});

export const checkoutBody = z.strictObject({
  plan: z.string().min(1).max(30),
  billing_cycle: billingCycle,
});
export const checkoutSchema = z.object({
  checkout_url: z.string().describe("Open it in a browser; who has a subscription confirms its change there"),
});
export const portalSchema = z.object({ portal_url: z.string() });
export const receivedSchema = z.object({ received: z.literal(true) });
