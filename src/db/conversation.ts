import type { Queryable } from "./connect.ts";

/** The assistant's row, locked: from here on this transaction alone numbers its messages. */
export interface LockedConversation {
  gatewayId: string;
  status: "active" | "paused" | "deleted";
  state: string;
  agentId: string;
  model: string;
  lastSeq: number;
}

/** Locks a conversation for one decision. Always the first lock taken, so that no two decisions wait in a circle. */
export async function lockConversation(
  sql: Queryable,
  key: { userId: string; assistantId: string },
): Promise<LockedConversation | null> {
  const [row] = await sql<LockedConversation[]>`
    select gateway_id, status, state, agent_id, model, last_seq from assistants where id = ${key.assistantId} and user_id = ${key.userId} for no key update`;
  return row ?? null;
}

/** Takes the number after `lastSeq` in a locked conversation; also what the list of assistants shows of it. */
export async function setLastSeq(
  sql: Queryable,
  key: { userId: string; assistantId: string; seq: number },
): Promise<void> {
  await sql`
    update assistants set last_seq = ${key.seq}, message_count = message_count + 1, last_active_at = now(), last_used_at = now()
    where id = ${key.assistantId} and user_id = ${key.userId}`;
}

/** Whether a conversation takes messages and has not had this one; asked without a lock, so it may change meanwhile. */
export async function isNewMessage(
  sql: Queryable,
  key: { userId: string; assistantId: string; clientId: string },
): Promise<boolean> {
  const rows = await sql`
    select 1 from assistants a where a.id = ${key.assistantId} and a.user_id = ${key.userId} and a.status = 'active'
      and not exists (select 1 from messages m where m.assistant_id = a.id and m.client_id = ${key.clientId})`;
  return rows.length === 1;
}
