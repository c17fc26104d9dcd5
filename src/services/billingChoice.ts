import type { StripeDebt, StripeItem, StripeSubscription } from "../clients/stripe.ts";
import type { PaidSubscription, PricePlan } from "../db/subscriptions.ts";

const DAY_MS = 86_400_000;
/** Statuses in which a subscription costs and may give something, and those in which something may be owed. */
export const ENTITLING: readonly string[] = ["active", "trialing", "past_due"];
const OWING = ["past_due", "unpaid", "incomplete"];
/** Of subscriptions that give nothing, which says most about how the person stands. */
const TELLING = ["past_due", "unpaid", "paused", "incomplete", "canceled", "incomplete_expired"];

/** A subscription, and what is owed for it. */
export interface Read extends StripeSubscription {
  debt: StripeDebt | null;
}

/** The one of a customer's subscriptions that counts. */
export interface Choice {
  /** Null: there never was one. */
  paid: PaidSubscription | null;
  /** Live ones whose price is of no plan that we know: what they give can't be said. */
  unknown: string[];
  /** All that are live; more than one is somebody's mistake, who pays twice. */
  live: string[];
}

export function isLive({ status }: StripeSubscription): boolean {
  return ENTITLING.includes(status);
}

export function mayOwe({ status }: StripeSubscription): boolean {
  return OWING.includes(status);
}

/**
 * Chooses the subscription that counts: one that entitles, of the largest plan; else the one that says most. Pure.
 * `graceDays`: how long a plan is kept that was not paid for; null: as long as Stripe tries. `now` in milliseconds.
 */
export function choosePaid(
  subscriptions: readonly Read[],
  prices: readonly PricePlan[],
  input: { graceDays: number | null; now: number },
): Choice {
  const read = subscriptions.map((one) => ({ one, ...planOfItems(one.items, prices) }));
  const unknown = read.filter(({ one, price }) => isLive(one) && price === null).map(({ one }) => one.id);
  const rows = read.map(({ one, item, price }) => ({ one, price, row: renderPaid(one, item, price, input.graceDays) }));
  const entitles = ({ one, row }: (typeof rows)[number]) =>
    isLive(one) && (row.graceUntil === null || row.graceUntil.getTime() > input.now);
  const [first] = rows.toSorted(
    (a, b) =>
      Number(entitles(b)) - Number(entitles(a)) ||
      (entitles(a) ? (b.price?.rank ?? -1) - (a.price?.rank ?? -1) : telling(a.one) - telling(b.one)) ||
      b.one.createdAt.getTime() - a.one.createdAt.getTime() ||
      (a.one.id < b.one.id ? 1 : -1),
  );
  return { paid: first?.row ?? null, unknown, live: subscriptions.filter(isLive).map(({ id }) => id) };
}

function telling({ status }: StripeSubscription): number {
  return TELLING.indexOf(status);
}

/** The item of the largest plan: by its price, or by its product, of which it is another price. */
function planOfItems(
  items: readonly StripeItem[],
  prices: readonly PricePlan[],
): { item: StripeItem | undefined; price: PricePlan | null } {
  let best: { item: StripeItem | undefined; price: PricePlan | null } = { item: items[0], price: null };
  for (const item of items) {
    const price =
      prices.find(({ priceId }) => priceId === item.priceId) ??
      prices.find(({ productId }) => productId === item.productId);
    if (price && price.rank > (best.price?.rank ?? -1)) best = { item, price };
  }
  return best;
}

function renderPaid(
  one: Read,
  item: StripeItem | undefined,
  price: PricePlan | null,
  graceDays: number | null,
): PaidSubscription {
  const since = one.status === "past_due" || one.status === "unpaid" ? (one.debt?.since ?? null) : null;
  const kept = one.status === "past_due" && since !== null && graceDays !== null;
  return {
    subscriptionId: one.id,
    plan: price?.plan ?? "free",
    status: one.status,
    billingCycle: item?.cycle ?? null,
    priceId: item?.priceId ?? "",
    currentPeriodStart: item?.periodStart ?? one.createdAt,
    currentPeriodEnd: item?.periodEnd ?? one.createdAt,
    cancelAtPeriodEnd: one.cancelAtPeriodEnd,
    cancelAt: one.cancelAt,
    pastDueSince: since,
    graceUntil: kept ? new Date(since.getTime() + graceDays * DAY_MS) : null,
    dueMicroUsd: one.debt?.dueMicroUsd ?? null,
    payUrl: one.debt?.payUrl ?? null,
  };
}
