import type { Queryable } from "./connect.ts";
import { notify } from "./notify.ts";
import { lockGatewayQueue } from "./turns.ts";
import type { AssistantState } from "./assistants.ts";

/** An assistant as the reconciler sees it. */
export interface Placed {
  id: string;
  agentId: string;
  displayName: string | null;
  model: string;
  state: AssistantState;
  generation: number;
}

/** A wake-up that failed is tried again after this. */
const FAILED_SECONDS = 10;

/**
 * The assistants that are to be awake: those with a running turn, then those whose messages wait longest, then the most
 * recently used, as many as the gateway's working set holds. Whoever still runs though it may not (just paused, say) has
 * its place until the run has ended.
 */
async function listWanted(
  sql: Queryable,
  input: { gatewayId: string; workingSet: number; idleMs: number },
): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    select a.id
    from assistants a join users u on u.id = a.user_id and u.status = 'active'
    left join lateral (
      select bool_or(t.status <> 'queued') as running, min(t.queued_at) as waiting_since
      from turns t where t.assistant_id = a.id and t.status in ('queued', 'dispatched', 'streaming')) q on true
    where a.gateway_id = ${input.gatewayId} and a.status = 'active'
      and (q.waiting_since is not null or a.last_used_at > now() - make_interval(secs => ${input.idleMs / 1000}))
    order by coalesce(q.running, false) desc, q.waiting_since nulls last, a.last_used_at desc
    limit greatest(0, ${input.workingSet}::int - (
      select count(*) from turns t join assistants o on o.id = t.assistant_id join users u on u.id = o.user_id
      where t.gateway_id = ${input.gatewayId} and t.status in ('dispatched', 'streaming')
        and (o.status <> 'active' or u.status <> 'active')))`;
  return rows.map((row) => row.id);
}

/**
 * Decides who is to be awake and who goes to sleep, in one transaction: a wanted sleeper becomes `waking`; one that is
 * not wanted and has no running turn becomes `asleep`. Returns all that are to be configured now.
 */
export async function decideWorkingSet(
  sql: Queryable,
  input: { gatewayId: string; workingSet: number; idleMs: number },
): Promise<Placed[]> {
  await lockGatewayQueue(sql, input.gatewayId);
  const wanted = await listWanted(sql, input);
  const changed = await sql<{ id: string }[]>`
    update assistants a set state = case when a.id = any(${wanted}::uuid[]) then 'waking' else 'asleep' end, state_reason = null
    where a.gateway_id = ${input.gatewayId} and (
      (a.id = any(${wanted}::uuid[]) and (a.state = 'asleep'
        or (a.state = 'failed' and a.failed_at < now() - make_interval(secs => ${FAILED_SECONDS}))))
      or (a.id <> all(${wanted}::uuid[]) and a.state <> 'asleep'
        and not exists (select 1 from turns t where t.assistant_id = a.id and t.status in ('dispatched', 'streaming'))))
    returning a.id`;
  for (const row of changed) await notify(sql, "assistant", row.id);
  return sql<Placed[]>`
    select id, agent_id, display_name, model, state, generation from assistants
    where gateway_id = ${input.gatewayId} and state in ('waking', 'awake')`;
}

/** The gateway has them: they are awake, and have what was asked for up to this generation. */
export async function markAwake(sql: Queryable, assistants: Placed[]): Promise<void> {
  for (const assistant of assistants) {
    const result = await sql`
      update assistants set applied_generation = ${assistant.generation}, state = 'awake', state_reason = null
      where id = ${assistant.id} and state = 'waking'`;
    if (result.count > 0) await notify(sql, "assistant", assistant.id);
  }
}

/** It could not be woken; tried again after a pause while somebody wants it. */
export async function markFailed(sql: Queryable, id: string, reason: string): Promise<void> {
  const result = await sql`
    update assistants set state = 'failed', state_reason = ${reason}, failed_at = now()
    where id = ${id} and state in ('waking', 'awake')`;
  if (result.count > 0) await notify(sql, "assistant", id);
}

/**
 * Deleted assistants whose purge has not ended. Only those that the working set has let go of: one that still answers
 * is configured as a living one, and the id of a purged agent must not be configured once more (the gateway fails).
 */
export async function listPurges(
  sql: Queryable,
  gatewayId: string,
): Promise<{ id: string; agentId: string; userId: string; purgeStep: "stopping" | "erasing" }[]> {
  return sql`
    select id, agent_id, user_id, purge_step from assistants a
    where gateway_id = ${gatewayId} and purge_step in ('stopping', 'erasing') and state = 'asleep'
      and not exists (select 1 from turns t where t.assistant_id = a.id and t.status in ('queued', 'dispatched', 'streaming'))
    order by updated_at limit 20`;
}

/** Turns of which Redis may still keep the text. */
export async function listRecentTurns(sql: Queryable, key: { id: string; userId: string }): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    select id from turns where assistant_id = ${key.id} and user_id = ${key.userId} and queued_at > now() - interval '1 day'`;
  return rows.map((row) => row.id);
}

export async function setPurgeStep(
  sql: Queryable,
  input: { id: string; userId: string; step: "erasing" },
): Promise<void> {
  await sql`update assistants set purge_step = ${input.step} where id = ${input.id} and user_id = ${input.userId} and purge_step = 'stopping'`;
}

/** Last step: conversation and names go; the row stays as a tombstone, so that the agent id is never used again. */
export async function finishPurge(sql: Queryable, input: { id: string; userId: string }): Promise<void> {
  await sql`delete from messages where assistant_id = ${input.id} and user_id = ${input.userId}`;
  await sql`delete from turns where assistant_id = ${input.id} and user_id = ${input.userId}`;
  // Kept answers to repeated requests: those that are about it name its agent.
  await sql`
    delete from idempotency_keys where user_id = ${input.userId}
      and position((select agent_id from assistants where id = ${input.id}) in response) > 0`;
  await sql`
    update assistants set purge_step = 'purged', display_name = null, state = 'asleep', state_reason = null, last_seq = 0, message_count = 0
    where id = ${input.id} and user_id = ${input.userId} and status = 'deleted'`;
  await notify(sql, "deletion", input.userId);
}

/** Each gateway, and how many assistants of free plans there were unused for `days`. */
export async function countInactive(sql: Queryable, days: number): Promise<{ gatewayId: string; inactive: number }[]> {
  return sql<{ gatewayId: string; inactive: number }[]>`
    select g.id as gateway_id, count(a.id)::int as inactive from gateways g left join assistants a
      on a.gateway_id = g.id and ${isInactive(sql, days)}
    group by g.id order by g.id`;
}

/**
 * Puts those of them to sleep that are not, in the caller's transaction; `busy` is how many stay, because a message waits
 * or is answered. Looks only at what is not asleep: a few, since it holds up the gateway's queue.
 */
export async function sleepInactive(
  sql: Queryable,
  { gatewayId, days }: { gatewayId: string; days: number },
): Promise<{ slept: number; busy: number }> {
  await lockGatewayQueue(sql, gatewayId);
  const rows = await sql<{ id: string; busy: boolean }[]>`
    select a.id, exists (
      select 1 from turns t where t.assistant_id = a.id and t.status in ('queued', 'dispatched', 'streaming')) as busy
    from assistants a where a.gateway_id = ${gatewayId} and a.state <> 'asleep' and ${isInactive(sql, days)}`;
  const ids = rows.filter((row) => !row.busy).map((row) => row.id);
  await sql`update assistants set state = 'asleep', state_reason = null where id = any(${ids}::uuid[])`;
  for (const id of ids) await notify(sql, "assistant", id);
  if (ids.length > 0) await notify(sql, "gateway", gatewayId);
  return { slept: ids.length, busy: rows.length - ids.length };
}

const isInactive = (sql: Queryable, days: number) => sql`
  a.status <> 'deleted' and a.last_used_at < now() - make_interval(days => ${days}) and plan_of(a.user_id) = 'free'`;
