import type { Queryable } from "./connect.ts";

export type SubscriptionStatus =
  "incomplete" | "incomplete_expired" | "trialing" | "active" | "past_due" | "unpaid" | "paused" | "canceled";

/** What somebody pays for at Stripe, as it was last fetched. */
export interface PaidSubscription {
  subscriptionId: string;
  plan: string;
  status: SubscriptionStatus;
  billingCycle: "monthly" | "yearly" | null;
  priceId: string;
  currentPeriodStart: Date;
  currentPeriodEnd: Date;
  cancelAtPeriodEnd: boolean;
  cancelAt: Date | null;
  pastDueSince: Date | null;
  graceUntil: Date | null;
  /** What is owed; null: nothing. */
  dueMicroUsd: number | null;
  payUrl: string | null;
}

const columns = (
  sql: Queryable,
) => sql`stripe_subscription_id as subscription_id, plan, status, billing_cycle, price_id,
  current_period_start, current_period_end, cancel_at_period_end, cancel_at, past_due_since, grace_until, due_micro_usd, pay_url`;

/** The row of source `stripe`; null when nothing was ever bought. */
export async function findPaid(sql: Queryable, userId: string): Promise<PaidSubscription | null> {
  const [row] = await sql<PaidSubscription[]>`
    select ${columns(sql)} from subscriptions where user_id = ${userId} and source = 'stripe'`;
  return row ?? null;
}

/** The rows of several people; who has none is left out. */
export async function listPaid(sql: Queryable, userIds: string[]): Promise<(PaidSubscription & { userId: string })[]> {
  return sql<(PaidSubscription & { userId: string })[]>`
    select user_id, ${columns(sql)} from subscriptions where source = 'stripe' and user_id = any(${userIds}::uuid[])`;
}

/** Writes the row; false, and nobody is told, when it says all this already. Call it under `lockPlan`. */
export async function putPaid(sql: Queryable, userId: string, paid: PaidSubscription): Promise<boolean> {
  const result = await sql`
    insert into subscriptions as s (user_id, source, stripe_subscription_id, plan, status, billing_cycle, price_id,
      current_period_start, current_period_end, cancel_at_period_end, cancel_at, past_due_since, grace_until,
      due_micro_usd, pay_url)
    values (${userId}, 'stripe', ${paid.subscriptionId}, ${paid.plan}, ${paid.status}, ${paid.billingCycle},
      ${paid.priceId}, ${paid.currentPeriodStart}, ${paid.currentPeriodEnd}, ${paid.cancelAtPeriodEnd},
      ${paid.cancelAt}, ${paid.pastDueSince}, ${paid.graceUntil}, ${paid.dueMicroUsd}, ${paid.payUrl})
    on conflict (user_id, source) do update set stripe_subscription_id = excluded.stripe_subscription_id,
      plan = excluded.plan, status = excluded.status, billing_cycle = excluded.billing_cycle,
      price_id = excluded.price_id, current_period_start = excluded.current_period_start,
      current_period_end = excluded.current_period_end, cancel_at_period_end = excluded.cancel_at_period_end,
      cancel_at = excluded.cancel_at, past_due_since = excluded.past_due_since, grace_until = excluded.grace_until,
      due_micro_usd = excluded.due_micro_usd, pay_url = excluded.pay_url, updated_at = now()
    where (s.stripe_subscription_id, s.plan, s.status, s.billing_cycle, s.price_id, s.current_period_start,
        s.current_period_end, s.cancel_at_period_end, s.cancel_at, s.past_due_since, s.grace_until, s.due_micro_usd,
        s.pay_url)
      is distinct from (excluded.stripe_subscription_id, excluded.plan, excluded.status, excluded.billing_cycle,
        excluded.price_id, excluded.current_period_start, excluded.current_period_end, excluded.cancel_at_period_end,
        excluded.cancel_at, excluded.past_due_since, excluded.grace_until, excluded.due_micro_usd, excluded.pay_url)`;
  return result.count === 1;
}

/** Which plan a price is of. `productId`: another price of the same product is the same plan. */
export interface PricePlan {
  priceId: string;
  productId: string;
  plan: string;
  rank: number;
}

/** Every price that was ever ours, the older ones too. */
export async function listPricePlans(sql: Queryable): Promise<PricePlan[]> {
  return sql<PricePlan[]>`
    select s.price_id, s.product_id, s.plan, p.rank from stripe_prices s join plan_limits p on p.plan = s.plan`;
}

/** An operator's gift: takes the place of an earlier one. Call it under `lockPlan`. */
export async function putGrant(
  sql: Queryable,
  input: { userId: string; plan: string; until: Date | null },
): Promise<void> {
  await sql`
    insert into subscriptions (user_id, source, plan, status, current_period_start, current_period_end)
    values (${input.userId}, 'grant', ${input.plan}, 'active', now(), ${input.until})
    on conflict (user_id, source) do update set plan = excluded.plan, status = 'active',
      current_period_start = now(), current_period_end = excluded.current_period_end, updated_at = now()`;
}

/** Ends a gift, `over`: only one whose time is over. False when there is none. Call it under `lockPlan`. */
export async function endGrant(sql: Queryable, input: { userId: string; over: boolean }): Promise<boolean> {
  const result = await sql`
    update subscriptions set status = 'canceled', current_period_end = least(current_period_end, now()),
      updated_at = now()
    where user_id = ${input.userId} and source = 'grant' and status = 'active'
      and (not ${input.over} or current_period_end <= now())`;
  return result.count === 1;
}

/** What a person has by whom, for operators. */
export interface Entitlement {
  source: "stripe" | "grant" | "apple" | "google";
  plan: string;
  status: SubscriptionStatus;
  currentPeriodEnd: Date | null;
}

export async function listEntitlements(sql: Queryable, userId: string): Promise<Entitlement[]> {
  return sql<Entitlement[]>`
    select source, plan, status, current_period_end from subscriptions where user_id = ${userId} order by source`;
}
