import type { Queryable } from "./connect.ts";
import { notify } from "./notify.ts";

export type AssistantState = "asleep" | "waking" | "awake" | "failed";

export interface Assistant {
  id: string;
  userId: string;
  gatewayId: string;
  agentId: string;
  /** What the person calls it; null until they say so. */
  displayName: string | null;
  voice: string;
  model: string;
  status: "active" | "paused" | "deleted";
  /** Paused because the plan has no room for it; comes back with the plan. */
  pausedByPlan: boolean;
  state: AssistantState;
  stateReason: string | null;
  lastSeq: number;
  messageCount: number;
  lastActiveAt: Date | null;
  createdAt: Date;
  updatedAt: Date;
}

const columns = (
  sql: Queryable,
) => sql`id, user_id, gateway_id, agent_id, display_name, voice, model, status, paused_by_plan, state,
  state_reason, last_seq, message_count, last_active_at, created_at, updated_at`;

/**
 * Adds an assistant, with the plan's model, when the user has fewer than the plan gives; null when there is no room. The
 * user's row is locked first, so that parallel requests and changes of the plan are counted one after the other, and
 * nobody who is leaving gets another one. An id that exists already is returned as it is.
 */
export async function createAssistant(
  sql: Queryable,
  input: Pick<Assistant, "id" | "userId" | "gatewayId" | "agentId" | "displayName" | "voice">,
): Promise<Assistant | "inactive" | null> {
  const [user] = await sql`select 1 from users where id = ${input.userId} and status = 'active' for update`;
  if (!user) return "inactive";
  const existing = await findAssistant(sql, { userId: input.userId, id: input.id });
  if (existing) return existing;
  const [row] = await sql<Assistant[]>`
    insert into assistants (id, user_id, gateway_id, agent_id, display_name, voice, model)
    select ${input.id}::uuid, ${input.userId}::uuid, ${input.gatewayId}::text, ${input.agentId}::text,
      ${input.displayName}::text, ${input.voice}::text, p.chat_model
    from plan_limits p where p.plan = plan_of(${input.userId})
      and (select count(*) from assistants where user_id = ${input.userId} and status <> 'deleted') < p.assistants
    returning ${columns(sql)}`;
  if (!row) return null;
  await notify(sql, "gateway", row.gatewayId);
  return row;
}

/** The user's assistants, oldest first. */
export async function listAssistants(sql: Queryable, userId: string): Promise<Assistant[]> {
  return sql<Assistant[]>`
    select ${columns(sql)} from assistants where user_id = ${userId} and status <> 'deleted' order by created_at, id`;
}

export async function findAssistant(sql: Queryable, key: { userId: string; id: string }): Promise<Assistant | null> {
  const [row] = await sql<Assistant[]>`
    select ${columns(sql)} from assistants where id = ${key.id} and user_id = ${key.userId} and status <> 'deleted'`;
  return row ?? null;
}

export async function findAssistantByAgent(
  sql: Queryable,
  key: { userId: string; agentId: string },
): Promise<Assistant | null> {
  const [row] = await sql<Assistant[]>`
    select ${columns(sql)} from assistants where agent_id = ${key.agentId} and user_id = ${key.userId} and status <> 'deleted'`;
  return row ?? null;
}

/** Changes the settings; they reach the model through the files rendered before each turn. Null when it is not this user's. */
export async function updateAssistant(
  sql: Queryable,
  input: { userId: string; id: string; displayName: string | null; voice: string | null },
): Promise<Assistant | null> {
  const [row] = await sql<Assistant[]>`
    update assistants set
      display_name = coalesce(${input.displayName}, display_name),
      voice = coalesce(${input.voice}, voice),
      updated_at = now()
    where id = ${input.id} and user_id = ${input.userId} and status <> 'deleted'
    returning ${columns(sql)}`;
  if (row) await notify(sql, "assistant", row.id);
  return row ?? null;
}

/**
 * Pauses, resumes or deletes. Deleting starts the purge; leaving `active` asks its unfinished turns to stop.
 * Null when it is not this user's or deleted already. Resuming counts as use, so that it wakes. What somebody does by
 * hand stays, whatever becomes of the plan.
 */
export async function setAssistantStatus(
  sql: Queryable,
  input: { userId: string; id: string; status: Assistant["status"] },
): Promise<Assistant | null> {
  const [row] = await sql<Assistant[]>`
    update assistants set status = ${input.status}, paused_by_plan = false, updated_at = now(),
      last_used_at = case when ${input.status} = 'active' then now() else last_used_at end,
      purge_step = case when ${input.status} = 'deleted' then 'stopping' end
    where id = ${input.id} and user_id = ${input.userId} and status <> 'deleted'
    returning ${columns(sql)}`;
  if (!row) return null;
  if (input.status !== "active") {
    await sql`
      update turns set stop_requested = true
      where assistant_id = ${input.id} and user_id = ${input.userId} and status in ('queued', 'dispatched', 'streaming')`;
    await notify(sql, "stop", row.id);
  }
  await notify(sql, "assistant", row.id);
  await notify(sql, "gateway", row.gatewayId);
  return row;
}

/** Somebody looks at this assistant or writes to it: it is wanted awake. Wakes the reconciler only when it sleeps. */
export async function touchAssistant(sql: Queryable, key: { userId: string; id: string }): Promise<void> {
  const [row] = await sql<{ state: AssistantState; gatewayId: string }[]>`
    update assistants set last_used_at = now()
    where id = ${key.id} and user_id = ${key.userId} and status = 'active' returning state, gateway_id`;
  if (row && row.state !== "awake") await notify(sql, "gateway", row.gatewayId);
}

/** Who is to be awake may have changed on every gateway that has an assistant of this user. */
export async function notifyGatewaysOf(sql: Queryable, userId: string): Promise<void> {
  const rows = await sql<{ gatewayId: string }[]>`
    select distinct gateway_id from assistants where user_id = ${userId} and status <> 'deleted'`;
  for (const { gatewayId } of rows) await notify(sql, "gateway", gatewayId);
}

/** How far conversations have come: to find those of which something was missed. Ids, numbers, states and plans only. */
export async function listConversationHeads(
  sql: Queryable,
  ids: string[],
): Promise<(Pick<Assistant, "id" | "lastSeq" | "state"> & { plan: string })[]> {
  return sql`
    select a.id, a.last_seq, a.state, u.applied_plan as plan from assistants a join users u on u.id = a.user_id
    where a.id = any(${ids}::uuid[]) and a.status <> 'deleted'`;
}
