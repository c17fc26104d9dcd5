import type { Queryable } from "./connect.ts";

/** The assistant's row, locked: from here on this transaction alone numbers its messages. */
export interface LockedConversation {
  gatewayId: string;
  status: "active" | "paused" | "deleted";
  state: string;
  agentId: string;
}

/** Locks a conversation for one decision. Always the first lock taken, so that no two decisions wait in a circle. */
export async function lockConversation(
  sql: Queryable,
  key: { userId: string; assistantId: string },
): Promise<LockedConversation | null> {
  const [row] = await sql<LockedConversation[]>`
    select gateway_id, status, state, agent_id from assistants where id = ${key.assistantId} and user_id = ${key.userId} for no key update`;
  return row ?? null;
}

/** The next number of a locked conversation; also what the list of assistants shows of it. */
export async function nextSeq(sql: Queryable, key: { userId: string; assistantId: string }): Promise<number> {
  const [row] = await sql<{ lastSeq: number }[]>`
    update assistants set last_seq = last_seq + 1, message_count = message_count + 1, last_active_at = now(), last_used_at = now()
    where id = ${key.assistantId} and user_id = ${key.userId} returning last_seq`;
  return row!.lastSeq;
}
