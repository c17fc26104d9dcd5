import type { OpenCheckout, SalesCalls, StripeSales } from "../clients/stripeSales.ts";
import { isCustomerGone, readStripeTrouble } from "../clients/stripeTrouble.ts";
import { findStripeCustomer, forgetCheckout, saveCheckout, saveLinkGiven } from "../db/checkouts.ts";
import { findCurrentPrice, findPortal, listPlans, type BillingCycle, type StripePrice } from "../db/stripePrices.ts";
import { findPaid, type PaidSubscription, type SubscriptionStatus } from "../db/subscriptions.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import type { Identity } from "./accessTokens.ts";
import { appLink } from "./mailContent.ts";
import { ensureCustomer, replaceCustomer } from "./checkoutCustomer.ts";
import { renderFailure, requireSales, syncNow, withStripe, type SaleDeps, type StripeLease } from "./stripeWork.ts";
import { countRequest } from "./throttle.ts";

/*
 * Buying a plan. A person has one open checkout at most and one living subscription at most, whatever they click on how
 * many devices. Under the person's lease (services/stripeWork.ts), in an order that leaves no gap:
 *   1. every open checkout for something else is taken back, so that nothing new can be bought but with the one that is kept;
 *   2. the subscription is fetched: whatever was bought before 1 is seen;
 *   3. there is one → a page to change or pay it; there is none → the open checkout again, or a new one.
 * An address of a checkout is given out only after it was kept, so what is made by a process that dies then is nobody's.
 */

/** A checkout that ends sooner is not given out any more. */
const TIME_TO_PAY_MS = 10 * 60_000;
const LOOK_MS = 8_000;
/** What somebody may ask of Stripe through us. */
const REQUESTS = { kind: "billing", limit: 60, windowSeconds: 15 * 60 };
/** How often the world may change under one request. */
const ROUNDS = 4;

const LIVING: SubscriptionStatus[] = ["incomplete", "trialing", "active", "past_due", "unpaid", "paused"];

export function isLiving(paid: PaidSubscription | null): paid is PaidSubscription {
  return paid !== null && LIVING.includes(paid.status);
}

/** Whether it ends with what is paid for; Stripe says so by a flag or by a date. */
export function isEnding(paid: PaidSubscription): boolean {
  return paid.cancelAtPeriodEnd || paid.cancelAt !== null;
}

/** Counts a request that makes us ask Stripe. Throws `too_many_attempts`. */
export function countBilling(deps: Pick<Deps, "redis" | "localCounts">, userId: string): Promise<void> {
  return countRequest(deps, { ...REQUESTS, who: userId });
}

/**
 * Where the actor buys a plan, or changes to it, or pays what is owed. Throws `validation_failed`, `already_subscribed`,
 * `billing_not_configured`, `billing_unavailable`, `too_many_attempts`.
 */
export async function openCheckout(
  deps: SaleDeps,
  actor: Identity,
  input: { plan: string; cycle: BillingCycle },
): Promise<string> {
  const { userId } = actor;
  const sales = requireSales(deps);
  const price = await getPrice(deps, input);
  await countBilling(deps, userId);
  const given = await findGivenCheckout(deps, sales, userId, price).catch((error: unknown) => {
    throw renderFailure(deps, userId, error);
  });
  if (given !== null) return given;
  return withStripe(deps, userId, async (lease) => {
    const sale = { deps, lease, price, calls: sales.within(lease.leftMs) };
    let customerId = await ensureCustomer(deps, sale.calls, userId);
    for (let round = 0; round < ROUNDS; round++) {
      try {
        const url = await sell(sale, customerId);
        if (url !== null) return url;
      } catch (error) {
        if (!isCustomerGone(error)) throw error;
        // What was paid for by that customer is over first, or known to be in another account of Stripe's.
        await syncNow(deps, lease, customerId);
        customerId = await replaceCustomer(deps, sale.calls, { userId, gone: customerId });
      }
    }
    throw new AppError("billing_unavailable", { retry_after: 1 });
  });
}

interface Sale {
  deps: SaleDeps;
  calls: SalesCalls;
  lease: StripeLease;
  price: StripePrice;
}

async function getPrice(deps: SaleDeps, { plan, cycle }: { plan: string; cycle: BillingCycle }): Promise<StripePrice> {
  const paidPlans = (await listPlans(deps.sql, null)).filter((one) => one.priceMonthMicroUsd > 0);
  if (!paidPlans.some((one) => one.plan === plan)) {
    const names = paidPlans.map((one) => one.plan).join(", ");
    throw new AppError("validation_failed", { details: [{ path: "plan", message: `must be one of: ${names}` }] });
  }
  const price = await findCurrentPrice(deps.sql, { plan, cycle, livemode: deps.stripe.isLive });
  if (!price) throw notSynced(deps);
  return price;
}

/** The log says what to do. */
export function notSynced({ log, stripe }: Pick<Deps, "log" | "stripe">): AppError {
  log.error({ live: stripe.isLive }, "Nothing can be sold: run npm run admin -- stripe sync-prices");
  return new AppError("billing_not_configured");
}

/** The second click: the open checkout again, without waiting for anybody. Null where there is more to be decided. */
async function findGivenCheckout(
  { sql }: SaleDeps,
  sales: StripeSales,
  userId: string,
  price: StripePrice,
): Promise<string | null> {
  const customer = await findStripeCustomer(sql, userId);
  if (customer === null || customer.checkoutSessionId === null || customer.checkoutPriceId !== price.priceId)
    return null;
  if (isLiving(await findPaid(sql, userId))) return null;
  const checkout = await sales.within(() => LOOK_MS).findOpenCheckout(customer.checkoutSessionId);
  return checkout && hasTime(checkout) ? checkout.url : null;
}

/** One look at everything, and what follows from it; null when it changed meanwhile: look again. */
async function sell(sale: Sale, customerId: string): Promise<string | null> {
  const { deps, calls, lease, price } = sale;
  const open = await calls.listOpenCheckouts(customerId);
  const kept = open.find((one) => one.priceId === price.priceId && hasTime(one)) ?? null;
  for (const one of open) if (one !== kept) await takeBack(sale, one);
  await syncNow(deps, lease, customerId);
  const paid = await findPaid(deps.sql, lease.userId);
  if (!isLiving(paid)) return give(sale, kept ?? (await create(sale, customerId)));
  if (paid.status === "incomplete") return finish(sale, customerId, paid, kept);
  if (kept) await takeBack(sale, kept);
  return payOrChange(sale, customerId, paid);
}

async function takeBack({ deps, calls, lease }: Sale, checkout: OpenCheckout): Promise<void> {
  await calls.expireCheckout(checkout.id);
  await forgetCheckout(deps.sql, { userId: lease.userId, sessionId: checkout.id });
}

function hasTime({ expiresAt }: OpenCheckout): boolean {
  return expiresAt.getTime() > Date.now() + TIME_TO_PAY_MS;
}

function create({ deps, calls, lease, price }: Sale, customerId: string): Promise<OpenCheckout> {
  const back = (how: string) => appLink(deps.config.APP_URL, `subscription?checkout=${how}`);
  return calls.createCheckout({
    customerId,
    userId: lease.userId,
    priceId: price.priceId,
    doneUrl: back("done"),
    cancelledUrl: back("cancelled"),
    key: `checkout:${lease.token}:${customerId}`,
  });
}

/** Kept first. Who has lost the lease meanwhile takes back what they made: another one is, or will be, the open one. */
async function give({ deps, calls, lease }: Sale, checkout: OpenCheckout): Promise<string> {
  const { userId, token } = lease;
  if (await saveCheckout(deps.sql, { userId, token, checkout })) return checkout.url;
  await calls.expireCheckout(checkout.id).catch(() => undefined);
  throw new AppError("billing_unavailable", { retry_after: 1 });
}

/** The first payment did not succeed yet: it can be tried again; for another plan it is forgotten first. */
async function finish(
  sale: Sale,
  customerId: string,
  paid: PaidSubscription,
  kept: OpenCheckout | null,
): Promise<string | null> {
  if (paid.plan === sale.price.plan && paid.billingCycle === sale.price.cycle) {
    if (kept) return give(sale, kept);
    return paid.payUrl ?? portal(sale, customerId);
  }
  const found = await sale.calls.findSubscription(paid.subscriptionId);
  if (found?.status === "incomplete") await sale.calls.dropUnpaid(found);
  return null;
}

async function payOrChange(sale: Sale, customerId: string, paid: PaidSubscription): Promise<string | null> {
  const { deps, calls, lease, price } = sale;
  const same = paid.plan === price.plan && paid.billingCycle === price.cycle;
  if (paid.status === "past_due" || paid.status === "unpaid") {
    await saveLinkGiven(deps.sql, lease.userId);
    return paid.payUrl ?? portal(sale, customerId);
  }
  if (paid.status === "paused") return portal(sale, customerId);
  if (same) throw new AppError("already_subscribed", {}, isEnding(paid) ? ENDING : undefined);
  const found = await calls.findSubscription(paid.subscriptionId);
  if (!found || found.status === "canceled") return null;
  // A change that waits for the period's end can be taken back on the portal's first page only.
  if (found.scheduleId !== null) return portal(sale, customerId);
  const change = { subscriptionId: found.id, itemId: found.itemId, priceId: price.priceId };
  return portal(sale, customerId, change).catch((error: unknown) => {
    if (readStripeTrouble(error)?.kind !== "refused" || isCustomerGone(error)) throw error;
    renderFailure(deps, lease.userId, error);
    return portal(sale, customerId);
  });
}

const ENDING = "You have this plan already; it is set to end, and can be resumed.";

async function portal(
  { deps, calls, lease }: Sale,
  customerId: string,
  change?: { subscriptionId: string; itemId: string; priceId: string },
): Promise<string> {
  const configurationId = await findPortal(deps.sql, deps.stripe.isLive);
  if (configurationId === null) throw notSynced(deps);
  const returnUrl = appLink(deps.config.APP_URL, "subscription?portal=done");
  const url = await calls.openPortal({ customerId, configurationId, returnUrl, ...(change ? { change } : {}) });
  await saveLinkGiven(deps.sql, lease.userId);
  return url;
}
