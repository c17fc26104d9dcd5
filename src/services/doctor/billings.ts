import { listPlans, listPrices, type BillingCycle } from "../../db/stripePrices.ts";
import { TELLING } from "../stripeWebhook.ts";
import { bad, ok, onSystem, skip, warn, type Check, type Result, type SystemScene } from "./check.ts";

const MICRO_USD_PER_CENT = 10_000;
const NOTHING_SOLD = "no STRIPE_SECRET_KEY: nothing is sold";
const SYNC = "reef admin stripe sync-prices (npm run admin -- stripe sync-prices)";
const PATH = "/api/webhooks/stripe";

async function checkPrices({ deps: { sql, catalog, stripe } }: SystemScene): Promise<Result> {
  if (!catalog) return skip(NOTHING_SOLD);
  const plans = (await listPlans(sql, stripe.isLive)).filter(({ priceMonthMicroUsd }) => priceMonthMicroUsd > 0);
  const wanted = plans.flatMap(({ plan, priceMonthMicroUsd, priceYearMicroUsd }) => [
    { plan, cycle: "monthly" as BillingCycle, interval: "month", cents: priceMonthMicroUsd / MICRO_USD_PER_CENT },
    { plan, cycle: "yearly" as BillingCycle, interval: "year", cents: priceYearMicroUsd / MICRO_USD_PER_CENT },
  ]);
  const known = (await listPrices(sql, stripe.isLive)).filter(({ current }) => current);
  const atStripe = await catalog.listPricesByKey(wanted.map(({ plan, cycle }) => `reef_${plan}_${cycle}`));
  const wrong = wanted.flatMap(({ plan, cycle, interval, cents }) => {
    const price = atStripe.find(({ lookupKey }) => lookupKey === `reef_${plan}_${cycle}`);
    const ours = known.find((one) => one.plan === plan && one.cycle === cycle);
    const name = `${plan} ${cycle}`;
    if (!price?.active) return [`${name} is not at Stripe`];
    if (price.cents !== cents || price.currency !== "usd" || price.interval !== interval)
      return [`${name} costs ${price.cents} ${price.currency} cents at Stripe, ${cents} in plan_limits`];
    return ours?.priceId === price.id ? [] : [`${name} is sold by another price here than Stripe's`];
  });
  return wrong.length === 0 ? ok(`${wanted.length} prices are what plan_limits says`) : bad(wrong.join("; "), SYNC);
}

/** Where Stripe reaches us; null: nowhere that is known. */
function findWebhook({ place }: SystemScene): string | null {
  if (place.domain !== null && !place.isTrial) return `https://${place.domain}${PATH}`;
  return place.isTrial && place.api[0] ? `${place.api[0].url}${PATH}` : null;
}

/** An event without a signature has to reach us, and has to be refused by us. */
async function checkWebhook(scene: SystemScene): Promise<Result> {
  if (!scene.deps.stripe.isConfigured) return skip(NOTHING_SOLD);
  const url = findWebhook(scene);
  if (url === null) return skip("no domain that Stripe could call");
  const headers = { "content-type": "application/json" };
  const signal = AbortSignal.timeout(10_000);
  const answer = await fetch(url, { method: "POST", headers, body: "{}", signal, redirect: "manual" }).catch(
    () => null,
  );
  if (!answer) return bad(`${url} does not answer`, "systemctl status nginx reef-api@1");
  const { code } = (await answer.json().catch(() => ({}))) as { code?: unknown };
  if (code === "invalid_signature") return ok(`reached, and an unsigned event is refused (${answer.status})`);
  if (code === "billing_not_configured")
    return bad(
      "it is refused for want of STRIPE_WEBHOOK_SECRETS",
      "put the endpoint's whsec_… into /etc/reef/reef.env",
    );
  return bad(
    `${url} answers ${answer.status}, and not as ours`,
    "nginx must hand POST /api/webhooks/stripe to the API",
  );
}

async function checkEndpoint(scene: SystemScene): Promise<Result> {
  const { catalog } = scene.deps;
  if (!catalog) return skip(NOTHING_SOLD);
  if (scene.place.isTrial) return skip("a trial's shop delivers by itself");
  const url = findWebhook(scene);
  if (url === null) return skip("no domain that Stripe could call");
  const endpoints = await catalog.listWebhookEndpoints();
  if (endpoints === null) return skip("this key may not list endpoints; Stripe's dashboard shows them");
  const fix = `Stripe's dashboard, Developers, Webhooks: an endpoint ${url} (docs/billing-operations.md)`;
  const ours = endpoints.find((endpoint) => endpoint.url === url);
  if (!ours) return bad("Stripe has no endpoint of this address", fix);
  if (!ours.enabled) return bad("Stripe has switched the endpoint off", fix);
  const missing = ours.events.includes("*") ? [] : [...TELLING].filter((type) => !ours.events.includes(type));
  return missing.length === 0
    ? ok("registered, with every event that tells")
    : warn(`it does not send ${missing.join(", ")}`, fix);
}

export const BILLING: readonly Check[] = [
  onSystem("billing.prices", checkPrices, { limitMs: 45_000 }),
  onSystem("billing.webhook", checkWebhook),
  onSystem("billing.endpoint", checkEndpoint, { limitMs: 45_000 }),
];
