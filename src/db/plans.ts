import type { Queryable } from "./connect.ts";

export interface PlanLimits {
  plan: string;
  rank: number;
  assistants: number;
  voices: string[];
  chatModel: string;
}

/** The limits of the plan that a user has now. */
export async function getPlanOf(sql: Queryable, userId: string): Promise<PlanLimits> {
  const [row] = await sql<PlanLimits[]>`
    select plan, rank, assistants, voices, chat_model from plan_limits where plan = plan_of(${userId})`;
  return row!;
}

/** The next larger plan, or null for the largest: what `upgrade_to` names. */
export async function findUpgrade(sql: Queryable, plan: string): Promise<string | null> {
  const [row] = await sql<{ plan: string }[]>`
    select plan from plan_limits where rank > (select rank from plan_limits where plan = ${plan}) order by rank limit 1`;
  return row?.plan ?? null;
}

export async function hasPlan(sql: Queryable, plan: string): Promise<boolean> {
  const [row] = await sql`select 1 from plan_limits where plan = ${plan}`;
  return row !== undefined;
}
