import { readStripeEvent, type StripeEvent } from "../clients/stripeEvents.ts";
import { insertEvent } from "../db/stripeEvents.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";

type WebhookDeps = Pick<Deps, "sql" | "stripe" | "config" | "log">;

/** What may change whether, or how, somebody pays. */
export const TELLING: ReadonlySet<string> = new Set([
  "checkout.session.completed",
  "customer.subscription.created",
  "customer.subscription.updated",
  "customer.subscription.deleted",
  "customer.subscription.paused",
  "customer.subscription.resumed",
  "invoice.paid",
  "invoice.payment_failed",
  "invoice.payment_action_required",
  "customer.deleted",
  "charge.dispute.created",
  "charge.refunded",
]);

/**
 * Takes an event in: stored and, by a notice in the same transaction, told to the inbox (services/stripeInbox.ts). When
 * this resolves it is durable and Stripe may forget it. Throws `billing_not_configured`, `invalid_signature`.
 */
export async function receiveEvent(
  deps: WebhookDeps,
  input: { body: string; signature: string | null },
): Promise<void> {
  const { config, stripe, log } = deps;
  const secrets = config.STRIPE_WEBHOOK_SECRETS;
  if (!stripe.isConfigured || secrets.length === 0) throw new AppError("billing_not_configured");
  const event = await readStripeEvent(input.body, input.signature ?? "", secrets);
  if (!event) throw new AppError("invalid_signature");
  const outcome = ignored(event, stripe.isLive);
  const isNew = await deps.sql.begin((sql) => insertEvent(sql, { ...event, outcome }));
  log.info({ event_id: event.id, type: event.type, outcome: isNew ? outcome : "known" }, "Stripe's event received");
}

/** Why an event says nothing to us; null when it may. */
function ignored({ type, live, account }: StripeEvent, isLive: boolean): string | null {
  if (account !== null) return "ignored: another account";
  if (live !== isLive) return "ignored: another mode";
  return TELLING.has(type) ? null : "ignored: type";
}
