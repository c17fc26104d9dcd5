import Stripe from "stripe";
import { z } from "zod";

/** Seconds that a delivery may take; older ones may be somebody's who has listened. */
const TOLERANCE_SECONDS = 300;

const eventSchema = z.object({
  id: z.string().min(1).max(255),
  type: z.string().min(1).max(255),
  created: z.number(),
  livemode: z.boolean().default(false),
  account: z.string().optional(),
  data: z.object({ object: z.record(z.string(), z.unknown()) }).optional(),
});

/** What an event says of itself. What has changed it does not say for certain: that is asked for. */
export interface StripeEvent {
  id: string;
  type: string;
  createdAt: Date;
  live: boolean;
  /** Set for an account that is connected to ours (Connect). */
  account: string | null;
  customerId: string | null;
  /** What it is about; of a dispute the charge. */
  objectId: string | null;
}

/**
 * The event in a webhook's body, exactly as it came; null when none of the secrets has signed it within the last five
 * minutes, or it is no event.
 */
export async function readStripeEvent(
  body: string,
  signature: string,
  secrets: readonly string[],
): Promise<StripeEvent | null> {
  for (const secret of secrets) {
    const signed = await Stripe.webhooks
      .constructEventAsync(body, signature, secret, TOLERANCE_SECONDS)
      .catch(() => null);
    if (signed) return readEvent(signed);
  }
  return null;
}

function readEvent(signed: unknown): StripeEvent | null {
  const { data: event } = eventSchema.safeParse(signed);
  if (!event) return null;
  const object = event.data?.object ?? {};
  const { id, type, created, livemode, account } = event;
  const own = idOf(object);
  return {
    id,
    type,
    createdAt: new Date(created * 1000),
    live: livemode,
    account: account ?? null,
    customerId: object["object"] === "customer" ? own : idOf(object["customer"]),
    objectId: object["object"] === "dispute" ? idOf(object["charge"]) : own,
  };
}

/** An id, or the id of what was expanded. */
function idOf(value: unknown): string | null {
  const id = typeof value === "object" && value !== null ? (value as { id?: unknown }).id : value;
  return typeof id === "string" && id.length <= 255 ? id : null;
}
