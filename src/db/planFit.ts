import { findAssistant, setAssistantStatus, type Assistant } from "./assistants.ts";
import type { Queryable } from "./connect.ts";
import { notify } from "./notify.ts";

/*
 * Fitting a person's assistants to their plan. Locks are taken in the order of those who accept and end messages:
 * assistants, turns, the user. With the user's row locked nobody creates or resumes one meanwhile.
 */

/** Locks all of a person that fitting may change. */
export async function lockAssistantsOf(sql: Queryable, userId: string): Promise<void> {
  await sql`select 1 from assistants where user_id = ${userId} and status <> 'deleted' order by id for no key update`;
  await sql`
    select 1 from turns where user_id = ${userId} and status in ('queued', 'dispatched', 'streaming')
    order by id for no key update`;
  await sql`select 1 from users where id = ${userId} for no key update`;
}

/** Pauses the least recently used ones beyond `limit`; their unfinished turns are asked to stop. How many it were. */
export async function pauseBeyond(sql: Queryable, input: { userId: string; limit: number }): Promise<number> {
  const rows = await sql<{ id: string; gatewayId: string }[]>`
    update assistants set status = 'paused', paused_by_plan = true, updated_at = now()
    where user_id = ${input.userId} and id in (
      select id from assistants where user_id = ${input.userId} and status = 'active'
      order by last_used_at desc, id desc offset ${input.limit})
    returning id, gateway_id`;
  if (rows.length === 0) return 0;
  const ids = rows.map(({ id }) => id);
  await sql`
    update turns set stop_requested = true
    where user_id = ${input.userId} and assistant_id = any(${ids}::uuid[])
      and status in ('queued', 'dispatched', 'streaming')`;
  for (const id of ids) await notify(sql, "stop", id);
  await tellChanged(sql, rows);
  return rows.length;
}

/** Lets those come back that the plan had no room for, the most recently used first, as many as fit. How many it were. */
export async function resumeWithin(sql: Queryable, input: { userId: string; limit: number }): Promise<number> {
  const rows = await sql<{ id: string; gatewayId: string }[]>`
    update assistants set status = 'active', paused_by_plan = false, updated_at = now()
    where user_id = ${input.userId} and id in (
      select id from assistants where user_id = ${input.userId} and status = 'paused' and paused_by_plan
      order by last_used_at desc, id desc limit greatest(0, ${input.limit}::int - (
        select count(*) from assistants where user_id = ${input.userId} and status = 'active')))
    returning id, gateway_id`;
  await tellChanged(sql, rows);
  return rows.length;
}

/** Gives the living assistants the plan's model; it counts from their next turn on. */
export async function setModels(sql: Queryable, input: { userId: string; chatModel: string }): Promise<void> {
  const rows = await sql<{ id: string; gatewayId: string }[]>`
    update assistants set model = ${input.chatModel}, updated_at = now()
    where user_id = ${input.userId} and status <> 'deleted' and model <> ${input.chatModel}
    returning id, gateway_id`;
  await tellChanged(sql, rows);
}

async function tellChanged(sql: Queryable, rows: { id: string; gatewayId: string }[]): Promise<void> {
  for (const { id } of rows) await notify(sql, "assistant", id);
  for (const gatewayId of new Set(rows.map((row) => row.gatewayId))) await notify(sql, "gateway", gatewayId);
}

/**
 * Resumes one by hand, when the plan has a place for it. "full": it has none. Null when it is not this user's. Call it
 * in a transaction.
 */
export async function resumeAssistant(
  sql: Queryable,
  key: { userId: string; id: string },
): Promise<Assistant | "full" | null> {
  await sql`select 1 from assistants where id = ${key.id} and user_id = ${key.userId} for no key update`;
  await sql`select 1 from users where id = ${key.userId} for no key update`;
  const found = await findAssistant(sql, key);
  if (!found) return null;
  const [row] = await sql<{ fits: boolean }[]>`
    select (select count(*) from assistants where user_id = ${key.userId} and status = 'active') < p.assistants as fits
    from plan_limits p where p.plan = plan_of(${key.userId})`;
  if (found.status !== "active" && !row!.fits) return "full";
  return setAssistantStatus(sql, { ...key, status: "active" });
}
