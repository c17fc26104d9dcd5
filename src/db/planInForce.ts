import type { Queryable } from "./connect.ts";

/** Where the plan in force comes from. */
export interface PlanInForce {
  plan: string;
  source: "free" | "stripe" | "grant" | "apple" | "google";
  endsAt: Date | null;
  checkoutSessionId: string | null;
  /** A checkout is open, as far as we know. */
  checkoutOpen: boolean;
  /** The person was on Stripe's pages within the last hour. */
  wasAtStripe: boolean;
}

/** The plan in force, the row it comes from, and whether something may have changed at Stripe just now. */
export async function findPlanInForce(sql: Queryable, userId: string): Promise<PlanInForce | null> {
  const [row] = await sql<PlanInForce[]>`
    select coalesce(best.plan, 'free') as plan, coalesce(best.source, 'free') as source,
      best.current_period_end as ends_at, c.checkout_session_id,
      coalesce(c.checkout_expires_at > now(), false) as checkout_open,
      coalesce(c.link_given_at > now() - interval '1 hour', false) as was_at_stripe
    from users u
    left join lateral (
      select s.plan, s.source, s.current_period_end from subscriptions s join plan_limits p on p.plan = s.plan
      where s.user_id = u.id and entitles(s, now()) order by p.rank desc, s.source = 'stripe' desc limit 1) best on true
    left join stripe_customers c on c.user_id = u.id
    where u.id = ${userId}`;
  return row ?? null;
}
