import type { z } from "zod";
import type { Deps } from "../deps.ts";
import type { Router } from "../http/env.ts";
import { inRequest } from "../http/middleware.ts";
import { renderUsd } from "../lib/money.ts";
import {
  checkoutBody,
  checkoutSchema,
  plansSchema,
  portalSchema,
  subscriptionSchema,
} from "../protocol/subscription.ts";
import { isEnding, isLiving, openCheckout } from "../services/checkout.ts";
import { readPlans, readSubscription, type SubscriptionView } from "../services/subscription.ts";
import { cancelSubscription, openPortal, resumeSubscription } from "../services/subscriptionChanges.ts";

const path = "/api/subscription";
const tag = "Subscription";
const PAYS = ["billing_not_configured", "billing_unavailable", "too_many_attempts"] as const;

/** `/api/subscription`: plans, what one has, buying, changing, ending. */
export function subscriptionRoutes(router: Router, deps: Deps): void {
  readRoutes(router, deps);
  linkRoutes(router, deps);
  const act = { method: "post", access: "user", tag, responses: { 200: subscriptionSchema } } as const;
  const errors = ["no_subscription", ...PAYS] as const;
  router.route(
    { ...act, path: `${path}/cancel`, summary: "End it with what is paid for; again is the same", errors },
    async (c) => c.json(renderSubscription(await cancelSubscription(inRequest(deps, c), c.get("actor")))),
  );
  router.route(
    { ...act, path: `${path}/resume`, summary: "Let it go on after all; again is the same", errors },
    async (c) => c.json(renderSubscription(await resumeSubscription(inRequest(deps, c), c.get("actor")))),
  );
}

function readRoutes(router: Router, deps: Deps): void {
  router.route(
    {
      method: "get",
      path: `${path}/plans`,
      access: "public",
      tag,
      summary: "Every plan, what is in it and what it costs",
      responses: { 200: plansSchema },
      errors: [],
    },
    async (c) => c.json(renderPlans(await readPlans(deps))),
  );
  router.route(
    {
      method: "get",
      path,
      access: "user",
      tag,
      summary: "The plan in force, what is paid for, what is due",
      responses: { 200: subscriptionSchema },
      errors: [],
    },
    async (c) => c.json(renderSubscription(await readSubscription(inRequest(deps, c), c.get("actor")))),
  );
}

function linkRoutes(router: Router, deps: Deps): void {
  router.route(
    {
      method: "post",
      path: `${path}/checkout`,
      access: "user",
      tag,
      // The page of a kept address may be over, and who may buy may have changed.
      keeps: false,
      summary: "Where a plan is bought, or changed to; the open checkout again when there is one",
      body: checkoutBody,
      responses: { 200: checkoutSchema },
      errors: ["already_subscribed", ...PAYS],
    },
    async (c, { body }) => {
      const url = await openCheckout(inRequest(deps, c), c.get("actor"), {
        plan: body.plan,
        cycle: body.billing_cycle,
      });
      return c.json({ checkout_url: url });
    },
  );
  router.route(
    {
      method: "post",
      path: `${path}/portal`,
      access: "user",
      tag,
      keeps: false,
      summary: "Stripe's page for invoices, card and subscription",
      responses: { 200: portalSchema },
      errors: ["no_subscription", ...PAYS],
    },
    async (c) => c.json({ portal_url: await openPortal(inRequest(deps, c), c.get("actor")) }),
  );
}

function renderPlans(plans: Awaited<ReturnType<typeof readPlans>>): z.input<typeof plansSchema> {
  return plans.map((plan) => ({
    plan: plan.plan,
    assistants: plan.assistants,
    text_messages: plan.textMessages,
    voice_input_seconds: plan.voiceInputSeconds,
    voice_output_seconds: plan.voiceOutputSeconds,
    tts_characters: plan.ttsCharacters,
    tts_model: plan.ttsModel,
    voices: plan.voices,
    price_monthly: renderUsd(plan.priceMonthMicroUsd),
    price_yearly: renderUsd(plan.priceYearMicroUsd),
    available: plan.available,
  }));
}

/** Cycle and end are of what is paid for where there is such a thing, else of what was given. */
function renderSubscription({ inForce, paid, checkoutOpen }: SubscriptionView): z.input<typeof subscriptionSchema> {
  const living = isLiving(paid) ? paid : null;
  const running = living?.status === "incomplete" ? null : living;
  const ends = running ? (running.cancelAt ?? running.currentPeriodEnd) : inForce.endsAt;
  const due = living?.dueMicroUsd ?? null;
  return {
    plan: inForce.plan,
    source: inForce.source,
    status: paid?.status ?? "none",
    billing_cycle: running?.billingCycle ?? null,
    current_period_end: ends?.toISOString() ?? null,
    cancel_at_period_end: running ? isEnding(running) : inForce.endsAt !== null,
    payment_due:
      living && due !== null
        ? {
            amount: renderUsd(due),
            pay_url: living.payUrl,
            since: (living.pastDueSince ?? living.currentPeriodStart).toISOString(),
            grace_until: living.graceUntil?.toISOString() ?? null,
          }
        : null,
    checkout_open: checkoutOpen,
  };
}
