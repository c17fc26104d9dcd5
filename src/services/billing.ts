import { lockPlan } from "../db/appliedPlans.ts";
import { forgetCheckout } from "../db/checkouts.ts";
import type { Queryable } from "../db/connect.ts";
import { beginFetch, beginStaleFetch, storeFetch, type Fetch } from "../db/stripeCustomers.ts";
import { findPaid, listPricePlans, putPaid, type PaidSubscription } from "../db/subscriptions.ts";
import type { Deps } from "../deps.ts";
import { describeError } from "../lib/errors.ts";
import { choosePaid, ENTITLING, isLive, mayOwe, type Choice, type Read } from "./billingChoice.ts";
import { applyPlan } from "./billingPlan.ts";
import { sendMail } from "./mail.ts";
import { forgetPlan } from "./usageCache.ts";

/*
 * What a person pays for is what Stripe says now, fetched. Webhooks, the app's questions and the reconciliation all end
 * here: they only say that something may have changed. A fetch is numbered before it begins (db/stripeCustomers.ts), and
 * one transaction stores it and does all that follows from it.
 */

export type BillingDeps = Pick<Deps, "sql" | "stripe" | "config" | "log" | "redis">;

/**
 * `stored`: the row is what Stripe said. `superseded`: a later fetch was stored before this one, or the account is being
 * deleted. `unknown_customer`: nobody here is this customer. `unknown_price`: something live is paid for of which nobody
 * knows what plan it is. `missing_customer`: Stripe never knew the customer of a living subscription, so this is another
 * account or mode of it. After the last two nothing has changed: no plan is taken away for them.
 */
export type SyncOutcome = "stored" | "superseded" | "unknown_customer" | "unknown_price" | "missing_customer";
export interface Synced {
  outcome: SyncOutcome;
  /** Whether the row said something else before. */
  changed: boolean;
}

const STRIPE = { actor: "stripe", ip: null, requestId: null };

/** Brings what is stored of a customer to what Stripe says now. Rejects when Stripe does not answer as it should. */
export async function syncCustomer(deps: BillingDeps, customerId: string): Promise<Synced> {
  const fetch = await beginFetch(deps.sql, customerId);
  return fetch ? fetchAndStore(deps, fetch) : { outcome: "unknown_customer", changed: false };
}

/**
 * The same for a user, unless it was asked within the last `maxAgeMs`, by whatever process. For questions that should
 * not wait for a webhook that may be lost: false, and the rows stay as they are, when Stripe can't be asked.
 */
export async function syncIfStale(deps: BillingDeps, userId: string, maxAgeMs: number): Promise<boolean> {
  if (!deps.stripe.isConfigured) return false;
  const fetch = await beginStaleFetch(deps.sql, { userId, maxAgeMs });
  if (!fetch) return false;
  return fetchAndStore(deps, fetch).then(
    ({ outcome }) => outcome === "stored",
    (error: unknown) => {
      deps.log.warn({ user_id: userId, reason: describeError(error) }, "Stripe could not be asked for a subscription");
      return false;
    },
  );
}

/** What Stripe says of a customer: that it lives, was deleted there, or was never known. */
export interface Answer extends Choice {
  customer: "lives" | "deleted" | "missing";
}

/** Asks Stripe. Logs as an alarm what only an operator can put right. */
export async function askStripe(deps: BillingDeps, customerId: string): Promise<Answer> {
  const { stripe, sql, config } = deps;
  const found = await stripe.listSubscriptions(customerId);
  const subscriptions: Read[] = [];
  for (const one of found ?? [])
    subscriptions.push({ ...one, debt: mayOwe(one) ? await stripe.findDebt(one.id) : null });
  // One that has a living subscription is there; of the others it is not sure.
  const known = subscriptions.some(isLive) ? { gone: false } : await stripe.findCustomer(customerId);
  const customer = known === null ? "missing" : known.gone ? "deleted" : "lives";
  const graceDays = config.BILLING_GRACE_DAYS ?? null;
  const choice = choosePaid(subscriptions, await listPricePlans(sql), { graceDays, now: Date.now() });
  if (choice.unknown.length > 0)
    deps.log.error(
      { customer_id: customerId, subscriptions: choice.unknown },
      "a subscription has a price of no plan; run: npm run admin -- stripe sync-prices",
    );
  if (choice.live.length > 1)
    deps.log.error({ customer_id: customerId, subscriptions: choice.live }, "a customer pays for two subscriptions");
  return { ...choice, customer };
}

async function fetchAndStore(deps: BillingDeps, fetch: Fetch): Promise<Synced> {
  const answer = await askStripe(deps, fetch.customerId);
  if (answer.unknown.length > 0) return { outcome: "unknown_price", changed: false };
  const { planIsNew, ...synced } = await deps.sql.begin((sql) => store(deps, sql, fetch, answer));
  // Every process hears of it by a notice; whoever asks next may be faster.
  if (planIsNew) await forgetPlan(deps.redis, fetch.userId);
  return synced;
}

async function store(
  deps: BillingDeps,
  sql: Queryable,
  fetch: Fetch,
  answer: Answer,
): Promise<Synced & { planIsNew: boolean }> {
  const { userId } = fetch;
  const nothing = { changed: false, planIsNew: false };
  await lockPlan(sql, userId);
  const before = await findPaid(sql, userId);
  if (isStrange(before, answer)) {
    deps.log.error(
      { customer_id: fetch.customerId, user_id: userId },
      "Stripe never knew this customer; is the key right?",
    );
    return { outcome: "missing_customer", ...nothing };
  }
  if (!(await storeFetch(sql, fetch, { gone: answer.customer !== "lives" })))
    return { outcome: "superseded", ...nothing };
  const after = renderRow(before, answer);
  const changed = after !== null && (await putPaid(sql, userId, after));
  if (after && isBoughtAnew(before, after)) await forgetCheckout(sql, { userId, sessionId: null });
  if (after && owesAnew(before, after)) await mailFailure(sql, userId, after);
  const planIsNew = await applyPlan(sql, userId, STRIPE);
  // Nobody may be refused by the old plan once this is committed.
  if (planIsNew) await forgetPlan(deps.redis, userId);
  return { outcome: "stored", changed, planIsNew };
}

/** A living subscription of a customer that Stripe never knew: not deleted, but asked for in the wrong place. */
export function isStrange(before: PaidSubscription | null, { customer }: Answer): boolean {
  return customer === "missing" && before !== null && ENTITLING.includes(before.status);
}

/** What the row is to say; null: there is none to be. `before`: what it says. Pure. */
export function renderRow(before: PaidSubscription | null, { paid, customer }: Answer): PaidSubscription | null {
  if (paid && customer === "lives") return paid;
  // Whatever it was, it is over.
  const last = paid ?? before;
  if (!last || last.status === "incomplete_expired") return last;
  const none = { pastDueSince: null, graceUntil: null, dueMicroUsd: null, payUrl: null };
  return { ...last, ...none, status: "canceled" };
}

/** A subscription that was begun in a checkout which is over therefore, however it stands by now. */
function isBoughtAnew(before: PaidSubscription | null, after: PaidSubscription): boolean {
  if (after.status === "incomplete" || after.status === "incomplete_expired") return false;
  return before?.subscriptionId !== after.subscriptionId || before.status === "incomplete";
}

/** A payment failed that the person was not told of: one mail for each time that something stays unpaid. */
function owesAnew(before: PaidSubscription | null, after: PaidSubscription): boolean {
  if (after.status !== "past_due" || after.pastDueSince === null) return false;
  return before?.pastDueSince?.getTime() !== after.pastDueSince.getTime();
}

async function mailFailure(sql: Queryable, userId: string, { plan, pastDueSince, graceUntil }: PaidSubscription) {
  const params = { plan, at: pastDueSince!.toISOString(), grace_until: graceUntil?.toISOString() ?? null };
  await sendMail(sql, userId, { template: "payment-failed", params });
}
