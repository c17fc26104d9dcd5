import type { StripeSubscription } from "../clients/stripe.ts";
import { findCustomer, listCustomers } from "../db/stripeCustomers.ts";
import { findPaid, listPaid, listPricePlans, type PaidSubscription, type PricePlan } from "../db/subscriptions.ts";
import { backoffDelay, sleep } from "../lib/retry.ts";
import { id } from "../protocol/fields.ts";
import { askStripe, isStrange, renderRow, type BillingDeps } from "./billing.ts";
import { choosePaid, isLive, mayOwe, type Read } from "./billingChoice.ts";

/** Stripe's test mode takes 25 reads a second; others want to be answered, too. */
const REST_MS = 60;
const TRIES = 5;
const BACKOFF_MS = 1_000;
const BACKOFF_CAP_MS = 20_000;
const PAGE = 500;

/** Something that is not what Stripe says. */
export interface Difference {
  customerId: string;
  /** Null: nobody here is this customer. */
  userId: string | null;
  /** What differs, e.g. `status: here "active", at Stripe "past_due"`. */
  what: string;
}

export interface Comparison {
  /** Customers that were compared. */
  compared: number;
  differences: Difference[];
}

/** How a comparison goes about it. `settleMs`: what differs is looked at again after this; a webhook may be on its way. */
export interface CompareOptions {
  settleMs: number;
  signal?: AbortSignal;
}

/**
 * Compares every subscription here with Stripe's, and every one of Stripe's with those here. Changes nothing. Rejects
 * when Stripe does not answer, or when `signal` aborts: half of it would say that the rest is missing.
 */
export async function compareBilling(deps: BillingDeps, { settleMs, signal }: CompareOptions): Promise<Comparison> {
  const prices = await listPricePlans(deps.sql);
  const truth = await readAll(deps, signal);
  const suspects: string[] = [];
  let compared = 0;
  for (let after = ""; ;) {
    signal?.throwIfAborted();
    const customers = await listCustomers(deps.sql, { after, limit: PAGE });
    const rows = await listPaid(
      deps.sql,
      customers.map(({ userId }) => userId),
    );
    const rowOf = new Map(rows.map(({ userId, ...row }) => [userId, row]));
    for (const { customerId, userId } of customers) {
      const theirs = truth.get(customerId) ?? [];
      truth.delete(customerId);
      compared += 1;
      if (!(await isAsStored(deps, rowOf.get(userId) ?? null, theirs, prices))) suspects.push(customerId);
    }
    if (customers.length < PAGE) break;
    after = customers.at(-1)!.customerId;
  }
  for (const [customerId, theirs] of truth) {
    compared += 1;
    if (theirs.some((one) => isLive(one) && isOurs(one, prices))) suspects.push(customerId);
  }
  if (suspects.length > 0) await sleep(settleMs, signal);
  const differences: Difference[] = [];
  signal?.throwIfAborted();
  for (const customerId of suspects) differences.push(...(await compareOne(deps, customerId)));
  return { compared, differences };
}

/** One customer, as both sides are now. */
export async function compareOne(deps: BillingDeps, customerId: string): Promise<Difference[]> {
  const known = await findCustomer(deps.sql, customerId);
  if (!known) return describeStranger(deps, customerId);
  const { userId, leaving } = known;
  if (leaving) return [];
  const answer = await patiently(() => askStripe(deps, customerId));
  const row = await findPaid(deps.sql, userId);
  const told = (what: string): Difference[] => [{ customerId, userId, what }];
  if (answer.unknown.length > 0)
    return told(`the price of ${answer.unknown.join(", ")} is of no plan that is known here`);
  if (isStrange(row, answer)) return told("Stripe never knew this customer: another account or mode");
  const differing = differenceOf(row, renderRow(row, answer));
  if (known.gone !== (answer.customer !== "lives")) differing.push(`the customer ${answer.customer} at Stripe`);
  return differing.length === 0 ? [] : told(differing.join("; "));
}

/** Somebody pays for one of our plans who is nobody here, or not known to be. */
async function describeStranger({ stripe }: BillingDeps, customerId: string): Promise<Difference[]> {
  const found = await patiently(() => stripe.findCustomer(customerId));
  if (!found || found.gone) return [];
  const { success, data: userId } = id.safeParse(found.userId);
  return [{ customerId, userId: success ? userId : null, what: "pays at Stripe, and is no customer here" }];
}

async function readAll(deps: BillingDeps, signal?: AbortSignal): Promise<Map<string, StripeSubscription[]>> {
  const truth = new Map<string, StripeSubscription[]>();
  for (let after: string | null = null; ;) {
    signal?.throwIfAborted();
    const page = await patiently(() => deps.stripe.listAllSubscriptions(after), signal);
    for (const one of page.items) truth.set(one.customerId, [...(truth.get(one.customerId) ?? []), one]);
    const last = page.items.at(-1)?.id;
    if (!page.hasMore || last === undefined) break;
    after = last;
    await sleep(REST_MS, signal);
  }
  return truth;
}

/** By the list alone, without another question unless money is owed; what seems to differ is asked for by itself. */
async function isAsStored(
  deps: BillingDeps,
  row: PaidSubscription | null,
  theirs: readonly StripeSubscription[],
  prices: readonly PricePlan[],
): Promise<boolean> {
  const read: Read[] = [];
  for (const one of theirs) {
    if (mayOwe(one)) await sleep(REST_MS);
    read.push({ ...one, debt: mayOwe(one) ? await patiently(() => deps.stripe.findDebt(one.id)) : null });
  }
  const graceDays = deps.config.BILLING_GRACE_DAYS ?? null;
  const choice = choosePaid(read, prices, { graceDays, now: Date.now() });
  if (choice.unknown.length > 0) return false;
  return differenceOf(row, renderRow(row, { ...choice, customer: "lives" })).length === 0;
}

function isOurs({ items }: StripeSubscription, prices: readonly PricePlan[]): boolean {
  return items.some((item) =>
    prices.some((price) => price.priceId === item.priceId || price.productId === item.productId),
  );
}

function differenceOf(here: PaidSubscription | null, there: PaidSubscription | null): string[] {
  if (!here || !there)
    return here === there
      ? []
      : [`here ${here ? here.status : "nothing"}, at Stripe ${there ? there.status : "nothing"}`];
  // A link to pay by is for the person alone, and may be another one each time that Stripe is asked.
  const show = (value: unknown, key: keyof PaidSubscription) =>
    key === "payUrl" ? (value === null ? "none" : "one") : (JSON.stringify(value) ?? "null");
  return (Object.keys(there) as (keyof PaidSubscription)[])
    .filter((key) => show(here[key], key) !== show(there[key], key))
    .map((key) => `${key}: here ${show(here[key], key)}, at Stripe ${show(there[key], key)}`);
}

/** Asks again, some times, with growing pauses: a limit of Stripe's or a hiccup is no end. */
async function patiently<T>(ask: () => Promise<T>, signal?: AbortSignal): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      return await ask();
    } catch (error) {
      if (tries + 1 >= TRIES || signal?.aborted || !mayPass(error)) throw error;
      await sleep(backoffDelay(tries, BACKOFF_MS, BACKOFF_CAP_MS), signal);
    }
  }
}

/** A refusal of Stripe's stays one; its limits, its faults and the network's pass. */
function mayPass(error: unknown): boolean {
  const { statusCode } = error as { statusCode?: number };
  return statusCode === undefined || statusCode === 429 || statusCode >= 500;
}
