import type { Queryable } from "./connect.ts";

/*
 * What an export reads. Rows come as JSON in the form in which people get them (times in UTC, money in USD as decimal
 * strings), so no layer above touches them; secrets and hashes are not among the columns. Everything that grows is read
 * in pages by a key, each page a short statement: a slow reader holds no transaction.
 */

/** The place after which the next page begins: a time or day as text, exact to the microsecond, and an id. */
export interface Place {
  at: string;
  id: string;
}
export const FIRST: Place = { at: "-infinity", id: "00000000-0000-0000-0000-000000000000" };
/** A row of a list: its place and its JSON. */
export type ListedRow = Place & { json: string };

export interface ExportedAssistant {
  id: string;
  agentId: string;
  gatewayId: string;
  displayName: string | null;
  createdAt: Date;
  /** The conversation as it was when the export began. */
  lastSeq: number;
  about: object;
}

const usd = (sql: Queryable, column: string) => sql`round(${sql(column)} / 1000000.0, 6)::text`;

/** Who the person is: profile, linked accounts, plan, links that were mailed. Null when there is no such user. */
export async function findAccount(
  sql: Queryable,
  userId: string,
): Promise<{ timezone: string; today: string; account: object } | null> {
  const [row] = await sql<{ timezone: string; today: string; account: object }[]>`
    select timezone, (now() at time zone timezone)::date::text as today, json_build_object(
      'exported_at', now(), 'id', id, 'email', email, 'email_verified', email_verified, 'name', name,
      'avatar_url', avatar_url, 'status', status, 'has_password', password_hash is not null, 'timezone', timezone,
      'timezone_changed_at', timezone_changed_at, 'kept_day', kept_day, 'kept_day_ends_at', kept_day_ends_at, 'created_at', created_at, 'updated_at', updated_at,
      'plan', plan_of(id),
      'subscriptions', coalesce((select json_agg(s) from (
        select plan, status, source, billing_cycle, current_period_start, current_period_end, cancel_at_period_end,
          stripe_subscription_id, created_at, updated_at
        from subscriptions where user_id = users.id order by source) s), '[]'),
      'stripe_customer_id', (select customer_id from stripe_customers where user_id = users.id),
      'linked_accounts', coalesce((select json_agg(i) from (
        select provider, subject, email, created_at from identities where user_id = users.id order by created_at) i), '[]'),
      'mailed_links', coalesce((select json_agg(t) from (
        select kind, created_at, expires_at, used_at from one_time_tokens where user_id = users.id order by created_at) t), '[]')
    ) as account
    from users where id = ${userId}`;
  return row ?? null;
}

export async function listExportedAssistants(sql: Queryable, userId: string): Promise<ExportedAssistant[]> {
  return sql<ExportedAssistant[]>`
    select id, agent_id, gateway_id, display_name, created_at, last_seq, json_build_object(
      'id', id, 'agent_id', agent_id, 'display_name', display_name, 'voice', voice, 'model', model, 'status', status,
      'message_count', message_count, 'last_active_at', last_active_at, 'last_used_at', last_used_at,
      'created_at', created_at, 'updated_at', updated_at) as about
    from assistants where user_id = ${userId} and status <> 'deleted' order by created_at, id`;
}

interface PageInput {
  userId: string;
  after: Place;
  limit: number;
}

export async function listSessionRows(sql: Queryable, { userId, after, limit }: PageInput): Promise<ListedRow[]> {
  return sql<ListedRow[]>`
    select created_at::text as at, id, json_build_object('id', id, 'device_name', device_name, 'ip', ip,
      'created_at', created_at, 'last_used_at', last_used_at, 'expires_at', expires_at, 'revoked_at', revoked_at,
      'revoked_reason', revoked_reason)::text as json
    from refresh_tokens
    where user_id = ${userId} and (created_at, id) > (${after.at}::text::timestamptz, ${after.id}::uuid)
    order by created_at, id limit ${limit}`;
}

export async function listDailyUsageRows(sql: Queryable, { userId, after, limit }: PageInput): Promise<ListedRow[]> {
  return sql<ListedRow[]>`
    select date::text as at, user_id as id, json_build_object('date', date, 'text_messages', text_messages,
      'voice_input_seconds', voice_input_seconds, 'voice_output_seconds', voice_output_seconds,
      'tts_characters', tts_characters)::text as json
    from daily_usage where user_id = ${userId} and date > ${after.at}::text::date order by date limit ${limit}`;
}

export async function listLedgerRows(sql: Queryable, { userId, after, limit }: PageInput): Promise<ListedRow[]> {
  return sql<ListedRow[]>`
    select date::text as at, id, json_build_object('id', id, 'date', date, 'kind', kind, 'amount', amount,
      'limit_then', limit_then, 'plan', plan, 'model', model, 'status', status, 'for', idempotency_key, 'input_tokens', input_tokens,
      'output_tokens', output_tokens, 'cost_usd', ${usd(sql, "cost_micro_usd")}, 'created_at', created_at,
      'settled_at', settled_at, 'expires_at', expires_at)::text as json
    from usage_logs
    where user_id = ${userId} and (date, id) > (${after.at}::text::date, ${after.id}::uuid)
    order by date, id limit ${limit}`;
}

/**
 * The person's own security events. Who acted is told by kind: an operator's name and address are not the person's to
 * have, and what an operator wrote may name others.
 */
export async function listAuditRows(sql: Queryable, { userId, after, limit }: PageInput): Promise<ListedRow[]> {
  return sql<ListedRow[]>`
    select at::text as at, id, json_build_object('at', at, 'action', action,
      'actor', case when actor = ${`user:${userId}`} then 'you' else split_part(actor, ':', 1) end,
      'ip', case when actor not like 'operator:%' then ip end, 'request_id', request_id,
      'details', case when actor like 'operator:%' then '{}' else details end)::text as json
    from audit_log
    where subject_user_id = ${userId} and (at, id) > (${after.at}::text::timestamptz, ${after.id}::uuid)
    order by at, id limit ${limit}`;
}

export async function listMailRows(sql: Queryable, { userId, after, limit }: PageInput): Promise<ListedRow[]> {
  return sql<ListedRow[]>`
    select created_at::text as at, id, json_build_object('template', template, 'recipient', recipient,
      'params', params, 'attempts', attempts, 'created_at', created_at)::text as json
    from outbox
    where user_id = ${userId} and (created_at, id) > (${after.at}::text::timestamptz, ${after.id}::uuid)
    order by created_at, id limit ${limit}`;
}

interface MessagePage {
  userId: string;
  assistantId: string;
  /** After this number, up to and with `lastSeq`. */
  afterSeq: number;
  lastSeq: number;
  limit: number;
}

/** Messages as JSON; a question comes with what became of it (asked one by one: a join may read all turns for a page). */
export async function listMessageRows(sql: Queryable, page: MessagePage): Promise<{ seq: number; json: string }[]> {
  return sql<{ seq: number; json: string }[]>`
    select m.seq, json_build_object('seq', m.seq, 'id', m.id, 'role', m.role, 'content', m.content,
      'timestamp', m.created_at, 'finish', coalesce(m.finish, 'complete'), 'client_id', m.client_id, 'turn_id', m.turn_id,
      'turn', case when m.role = 'user' then (select json_build_object('status', t.status, 'error_code', t.error_code,
        'queued_at', t.queued_at, 'dispatched_at', t.dispatched_at, 'first_text_at', t.first_text_at,
        'finished_at', t.finished_at, 'input_tokens', t.input_tokens, 'output_tokens', t.output_tokens,
        'cost_usd', ${usd(sql, "t.cost_micro_usd")}) from turns t where t.id = m.turn_id) end)::text as json
    from messages m
    where m.user_id = ${page.userId} and m.assistant_id = ${page.assistantId}
      and m.seq > ${page.afterSeq} and m.seq <= ${page.lastSeq}
    order by m.seq limit ${page.limit}`;
}

/** A message as a person reads it: day and time of their own time zone. */
export interface SpokenMessage {
  seq: number;
  role: "user" | "assistant";
  content: string;
  finish: "complete" | "stopped" | "error" | null;
  day: string;
  time: string;
}

export async function listSpokenMessages(
  sql: Queryable,
  page: MessagePage & { timezone: string },
): Promise<SpokenMessage[]> {
  return sql<SpokenMessage[]>`
    select seq, role, content, finish,
      to_char(created_at at time zone ${page.timezone}, 'FMDay, FMDD FMMonth YYYY') as day,
      to_char(created_at at time zone ${page.timezone}, 'HH24:MI') as time
    from messages
    where user_id = ${page.userId} and assistant_id = ${page.assistantId} and seq > ${page.afterSeq} and seq <= ${page.lastSeq}
    order by seq limit ${page.limit}`;
}
