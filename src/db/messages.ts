import type { Queryable } from "./connect.ts";

export interface Message {
  id: string;
  assistantId: string;
  turnId: string;
  seq: number;
  role: "user" | "assistant";
  content: string;
  clientId: string | null;
  finish: "complete" | "stopped" | "error" | null;
  createdAt: Date;
}

const columns = (sql: Queryable) => sql`id, assistant_id, turn_id, seq, role, content, client_id, finish, created_at`;

/** A page of a conversation in ascending order: after `afterSeq`, or the last before `beforeSeq`, or the newest. */
export async function listMessages(
  sql: Queryable,
  input: { userId: string; assistantId: string; afterSeq: number | null; beforeSeq: number | null; limit: number },
): Promise<Message[]> {
  const mine = sql`user_id = ${input.userId} and assistant_id = ${input.assistantId}`;
  if (input.afterSeq !== null) {
    const before = input.beforeSeq === null ? sql`` : sql`and seq < ${input.beforeSeq}`;
    return sql<Message[]>`
      select ${columns(sql)} from messages where ${mine} and seq > ${input.afterSeq} ${before} order by seq limit ${input.limit}`;
  }
  const before = input.beforeSeq === null ? sql`` : sql`and seq < ${input.beforeSeq}`;
  const rows = await sql<Message[]>`
    select ${columns(sql)} from messages where ${mine} ${before} order by seq desc limit ${input.limit}`;
  return [...rows].reverse();
}

/** Adds a message under the next number of its assistant, which the caller holds locked. */
export async function insertMessage(
  sql: Queryable,
  input: Omit<Message, "createdAt"> & { userId: string },
): Promise<Message> {
  const [row] = await sql<Message[]>`
    insert into messages (id, assistant_id, user_id, turn_id, seq, role, content, client_id, finish)
    values (${input.id}, ${input.assistantId}, ${input.userId}, ${input.turnId}, ${input.seq}, ${input.role}, ${input.content},
      ${input.clientId}, ${input.finish})
    returning ${columns(sql)}`;
  return row!;
}

/** The user's message of a client_id, if it was accepted before. */
export async function findMessageByClientId(
  sql: Queryable,
  key: { userId: string; assistantId: string; clientId: string },
): Promise<Message | null> {
  const [row] = await sql<Message[]>`
    select ${columns(sql)} from messages
    where user_id = ${key.userId} and assistant_id = ${key.assistantId} and client_id = ${key.clientId}`;
  return row ?? null;
}

/** The message that ended a turn; null while it has not ended. */
export async function findAnswer(sql: Queryable, key: { userId: string; turnId: string }): Promise<Message | null> {
  const [row] = await sql<Message[]>`
    select ${columns(sql)} from messages
    where user_id = ${key.userId} and turn_id = ${key.turnId} and role = 'assistant'`;
  return row ?? null;
}
