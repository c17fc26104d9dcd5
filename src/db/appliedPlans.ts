import type { Queryable } from "./connect.ts";

/*
 * `users.applied_plan`: the plan that a person was last told of and that their assistants were fitted to. Limits never
 * ask it: they ask plan_of(), which is right at any moment.
 */

/**
 * Serialises what changes a person's entitlements, until the transaction ends: of two that change at once neither would
 * see the other. Always the first lock taken; before any row of `subscriptions` is written.
 */
export async function lockPlan(sql: Queryable, userId: string): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtext('reef:plan'), hashtext(${userId}))`;
}

/** Where a person stands: what was applied, what is in force, and whether their assistants are as it has them. */
export interface PlanState {
  applied: string;
  plan: string;
  chatModel: string;
  /** How many assistants may be active. */
  limit: number;
  fitted: boolean;
  /** Whose time to pay is over: Stripe may know better by now. */
  overdueCustomerId: string | null;
}

/** Null for somebody who is leaving, or is gone: nothing is applied to them any more. */
export async function findPlanState(sql: Queryable, userId: string): Promise<PlanState | null> {
  const [row] = await sql<PlanState[]>`
    select u.applied_plan as applied, p.plan, p.chat_model, p.assistants as "limit",
      (select count(*) filter (where a.status = 'active') <= p.assistants and count(*) filter (where a.model <> p.chat_model) = 0
        from assistants a where a.user_id = u.id and a.status <> 'deleted') as fitted,
      (select c.customer_id from stripe_customers c join subscriptions s on s.user_id = c.user_id and s.source = 'stripe'
        where c.user_id = u.id and s.status = 'past_due' and s.grace_until <= now()) as overdue_customer_id
    from users u join plan_limits p on p.plan = plan_of(u.id)
    where u.id = ${userId} and u.status <> 'deleting'`;
  return row ?? null;
}

export async function setAppliedPlan(sql: Queryable, input: { userId: string; plan: string }): Promise<void> {
  await sql`update users set applied_plan = ${input.plan} where id = ${input.userId}`;
}

/** Somebody whose gift, or whose time to pay, has ended by the clock. `customerId`: the latter, which Stripe may know better. */
export interface EndedPlan {
  userId: string;
  customerId: string | null;
}

export async function listEndedPlans(sql: Queryable, input: { limit: number }): Promise<EndedPlan[]> {
  return sql<EndedPlan[]>`
    select s.user_id, case when s.source = 'stripe' then c.customer_id end as customer_id
    from subscriptions s join users u on u.id = s.user_id and u.status <> 'deleting'
    left join stripe_customers c on c.user_id = s.user_id
    where (s.source = 'grant' and s.status = 'active' and s.current_period_end <= now())
      or (s.status = 'past_due' and s.grace_until <= now() and u.applied_plan <> plan_of(u.id))
    limit ${input.limit}`;
}

/**
 * Whose applied plan is not the one in force, or whose assistants are not as it has them, whatever the reason (the plan
 * itself may have been changed): reads every entitlement and assistant there is.
 */
export async function listUnapplied(sql: Queryable): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    select u.id from users u
    where u.status <> 'deleting' and (u.applied_plan <> 'free' or u.id in (select user_id from subscriptions))
      and u.applied_plan <> plan_of(u.id)
    union
    select u.id from users u join plan_limits p on p.plan = u.applied_plan
      join assistants a on a.user_id = u.id and a.status <> 'deleted'
    where u.status <> 'deleting' group by u.id, p.plan
    having count(*) filter (where a.status = 'active') > p.assistants or bool_or(a.model <> p.chat_model)`;
  return rows.map(({ id }) => id);
}
