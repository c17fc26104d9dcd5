import { newId } from "../lib/ids.ts";
import type { Queryable } from "./connect.ts";
import { DELETION_STEPS, type DeletionStep } from "./deletions.ts";

/** Who was erased, or is being: ids only. A restored backup has to forget them again. */
export interface Erasures {
  users: { id: string; step: DeletionStep }[];
  /** Assistants that were deleted by people who stayed. */
  assistants: string[];
}

/** All of them: a deletion's row is kept for ever, an assistant's as long as its owner stays. */
export async function listErasures(sql: Queryable): Promise<Erasures> {
  const users = await sql<Erasures["users"]>`select user_id as id, step from account_deletions order by user_id`;
  const assistants = await sql<{ id: string }[]>`select id from assistants where status = 'deleted' order by id`;
  return { users: [...users], assistants: assistants.map(({ id }) => id) };
}

/** Several lists as one; of a person the one that has come furthest. */
export function mergeErasures(lists: readonly Erasures[]): Erasures {
  const steps = new Map<string, DeletionStep>();
  for (const { id, step } of lists.flatMap(({ users }) => users)) {
    const known = steps.get(id);
    if (!known || DELETION_STEPS.indexOf(step) > DELETION_STEPS.indexOf(known)) steps.set(id, step);
  }
  const assistants = new Set(lists.flatMap((list) => list.assistants));
  return { users: [...steps].map(([id, step]) => ({ id, step })), assistants: [...assistants] };
}

/** What the provider and Stripe were told already needs not to be told again: then it goes on with the assistants. */
const TOLD: readonly DeletionStep[] = DELETION_STEPS.slice(DELETION_STEPS.indexOf("agents"));

/**
 * Begins the deletion of somebody whom a backup brought back (services/deletion.ts does the rest), or only keeps the
 * fact, where it did not. True when they were back.
 */
export async function eraseAgain(sql: Queryable, user: Erasures["users"][number]): Promise<boolean> {
  const told = TOLD.includes(user.step);
  const [found] = await sql`
    with old as (select id, email from users where id = ${user.id} and status <> 'deleting' for update),
    leaving as (
      update users u set status = 'deleting', email = ${`deleted-${newId()}@deleted.invalid`}, password_hash = null,
        updated_at = now()
      from old where u.id = old.id)
    insert into account_deletions (user_id, step, recipient, provider_tokens)
    select id, ${told ? "agents" : user.step}, case when ${told} then null else email end,
      case when ${told} then '[]'::jsonb else (
        select coalesce(jsonb_agg(jsonb_build_object('provider', provider, 'token', encode(provider_token, 'hex'))), '[]')
        from identities where user_id = ${user.id} and provider_token is not null) end
    from old on conflict (user_id) do nothing returning user_id`;
  if (!found) {
    await sql`
      insert into account_deletions (user_id, step, finished_at)
      select ${user.id}, 'done', now() where not exists (select 1 from users where id = ${user.id})
      on conflict (user_id) do nothing`;
    return false;
  }
  await sql`delete from identities where user_id = ${user.id}`;
  await sql`delete from outbox where user_id = ${user.id}`;
  await sql`delete from one_time_tokens where user_id = ${user.id}`;
  await sql`delete from refresh_tokens where user_id = ${user.id}`;
  return true;
}

/** Assistants of these ids that a backup brought back. */
export async function listBroughtBack(sql: Queryable, ids: string[]): Promise<{ id: string; userId: string }[]> {
  return sql<{ id: string; userId: string }[]>`
    select id, user_id from assistants where status <> 'deleted' and id = any(${ids}::uuid[])`;
}

/** Assistants of people who are leaving, and that have not been told yet. */
export async function listOfLeaving(sql: Queryable): Promise<{ id: string; userId: string }[]> {
  return sql<{ id: string; userId: string }[]>`
    select a.id, a.user_id from assistants a join users u on u.id = a.user_id
    where a.status <> 'deleted' and u.status = 'deleting'`;
}

/** Agents whose files may come back: of assistants that nobody deleted. */
export async function listKeptAgents(sql: Queryable): Promise<string[]> {
  const rows = await sql<{ agentId: string }[]>`select agent_id from assistants where status <> 'deleted'`;
  return rows.map(({ agentId }) => agentId);
}
