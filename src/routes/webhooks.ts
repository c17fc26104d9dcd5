import type { Deps } from "../deps.ts";
import type { Router } from "../http/env.ts";
import { inRequest } from "../http/middleware.ts";
import { receivedSchema, WEBHOOK_BODY_BYTES } from "../protocol/subscription.ts";
import { receiveEvent } from "../services/stripeWebhook.ts";

/** `/api/webhooks`: what other services tell us, signed by them. */
export function webhookRoutes(router: Router, deps: Deps): void {
  router.route(
    {
      method: "post",
      path: "/api/webhooks/stripe",
      access: "public",
      tag: "Webhooks",
      summary: "Stripe's events, signed (Stripe-Signature). 200: stored; Stripe sends everything else again",
      bodyBytes: WEBHOOK_BODY_BYTES,
      responses: { 200: receivedSchema },
      errors: ["invalid_signature", "billing_not_configured"],
    },
    async (c) => {
      await receiveEvent(inRequest(deps, c), {
        body: await c.req.text(),
        signature: c.req.header("stripe-signature") ?? null,
      });
      return c.json({ received: true as const });
    },
  );
}
