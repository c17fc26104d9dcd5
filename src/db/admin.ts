import type { AssistantState } from "./assistants.ts";
import type { Queryable } from "./connect.ts";
import type { User } from "./users.ts";

/** What operators may ask about any user. Nothing here reads a message, a name of an assistant or a secret. */

const columns = (sql: Queryable) =>
  sql`id, email, email_verified, name, avatar_url, status, timezone, plan_of(id) as plan, created_at`;

/** A page of users, newest first; `before` is the id of the last one of the page before. */
export async function listUsers(
  sql: Queryable,
  input: {
    id: string | null;
    email: string | null;
    status: User["status"] | null;
    before: string | null;
    limit: number;
  },
): Promise<User[]> {
  return sql<User[]>`
    select ${columns(sql)} from users
    where (${input.id}::uuid is null or id = ${input.id}) and (${input.email}::citext is null or email = ${input.email})
      and (${input.status}::text is null or status = ${input.status})
      and (${input.before}::uuid is null or id < ${input.before})
    order by id desc limit ${input.limit}`;
}

export async function findUser(sql: Queryable, id: string): Promise<User | null> {
  const [row] = await sql<User[]>`select ${columns(sql)} from users where id = ${id}`;
  return row ?? null;
}

/** Suspends or restores; false when the user is not in the state that this begins with. */
export async function setUserStatus(
  sql: Queryable,
  input: { userId: string; from: User["status"]; to: User["status"] },
): Promise<boolean> {
  const result = await sql`
    update users set status = ${input.to}, updated_at = now() where id = ${input.userId} and status = ${input.from}`;
  return result.count === 1;
}

export interface AssistantOverview {
  id: string;
  agentId: string;
  status: "active" | "paused" | "deleted";
  state: AssistantState;
  stateReason: string | null;
  purgeStep: string | null;
  messageCount: number;
  lastActiveAt: Date | null;
}

/** How a user's assistants stand, also those that are being purged. */
export async function listAssistantOverviews(sql: Queryable, userId: string): Promise<AssistantOverview[]> {
  return sql<AssistantOverview[]>`
    select id, agent_id, status, state, state_reason, purge_step, message_count, last_active_at
    from assistants where user_id = ${userId} and purge_step is distinct from 'purged' order by created_at, id`;
}

export async function countSessions(sql: Queryable, userId: string): Promise<number> {
  const [row] = await sql<{ n: number }[]>`
    select count(*) as n from refresh_tokens
    where user_id = ${userId} and revoked_at is null and expires_at > now()`;
  return row!.n;
}
