import type { Queryable, Sql } from "./connect.ts";
import { setTransactionLimit } from "./timeouts.ts";

/** What a check has counted: rows looked at, rows that break the rule, and which (at most five). */
export interface Tally {
  total: number;
  violations: number;
  samples: string[];
}

type Rows = ReturnType<Queryable>;

/*
 * Each check is one statement over whole tables (hash joins and grouped scans, nothing per row), so it sees one moment
 * and takes seconds with millions of rows. Full joins find what is missing on either side, though foreign keys and
 * unique indexes should make most of it impossible: a restored or hand-mended database may have lost them.
 */

/** Runs a check on one snapshot that can't write; `timeoutMs` bounds each of its statements. */
export async function readSnapshot(
  sql: Sql,
  timeoutMs: number,
  read: (sql: Queryable) => Promise<Tally>,
): Promise<Tally> {
  return sql.begin("isolation level repeatable read read only", async (transaction) => {
    await setTransactionLimit(transaction, 0, true);
    await transaction`select set_config('statement_timeout', ${String(timeoutMs)}, true)`;
    return read(transaction);
  });
}

/** Counts rows of (id, ok). What compares to null counts as broken. */
async function tally(sql: Queryable, rows: Rows): Promise<Tally> {
  const [row] = await sql<Tally[]>`
    select count(*) as total, count(*) filter (where ok is not true) as violations,
      coalesce((array_agg(id::text) filter (where ok is not true))[1:5], '{}') as samples
    from (${rows}) as checked`;
  return row!;
}

export function checkTurnOfMessage(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select coalesce(m.turn_id, t.id) as id, m.assistant_id = t.assistant_id and m.seq = t.seq as ok
      from turns t full join (select turn_id, assistant_id, seq from messages where role = 'user') m on m.turn_id = t.id`,
  );
}

export function checkAnswerOfTurn(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select coalesce(m.turn_id, t.id) as id, case t.status
        when 'done' then m.finish = 'complete' when 'stopped' then m.finish = 'stopped' when 'failed' then m.finish = 'error'
        else t.id is not null and m.turn_id is null end as ok
      from turns t full join (select turn_id, finish from messages where role = 'assistant') m on m.turn_id = t.id`,
  );
}

export function checkFinishTimes(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select id, (status in ('done', 'failed', 'stopped')) = (finished_at is not null) as ok from turns`,
  );
}

export function checkOneRunning(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select assistant_id as id, count(*) = 1 as ok from turns where status in ('dispatched', 'streaming') group by assistant_id`,
  );
}

/** `graceMs`: what a sweep, a lease and an abort may take beyond the budgets. A taken over turn has its budget anew. */
export function checkStuckTurns(
  sql: Queryable,
  budgets: { waitMs: number; totalMs: number; graceMs: number },
): Promise<Tally> {
  const age = (ms: number) => sql`make_interval(secs => ${ms / 1000})`;
  return tally(
    sql,
    sql`select id, case status when 'queued' then queued_at > now() - ${age(budgets.waitMs + budgets.graceMs)}
        else lease_owner is not null and lease_until is not null
          and dispatched_at > now() - greatest(attempts, 1) * ${age(budgets.totalMs + budgets.graceMs)} end as ok
      from turns where status in ('queued', 'dispatched', 'streaming')`,
  );
}

export function checkSeqs(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select coalesce(a.id, m.assistant_id) as id, a.last_seq = coalesce(m.n, 0) and a.message_count = coalesce(m.n, 0)
        and coalesce(m.first, 1) = 1 and coalesce(m.last, 0) = coalesce(m.n, 0) as ok
      from assistants a full join (
        select assistant_id, count(*) as n, min(seq) as first, max(seq) as last from messages group by assistant_id) m
      on m.assistant_id = a.id`,
  );
}

const counted = (sql: Queryable) => sql`
  select user_id, date, sum(amount) as used, max(limit_then) as most from usage_logs
  where kind = 'text_messages' and status in ('reserved', 'committed') group by user_id, date`;

export function checkUsageSums(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select coalesce(d.user_id, l.user_id) || ' ' || coalesce(d.date, l.date) as id,
        coalesce(d.text_messages, 0) = coalesce(l.used, 0) as ok
      from daily_usage d full join (${counted(sql)}) l on l.user_id = d.user_id and l.date = d.date`,
  );
}

/** A plan may shrink within a day: the largest limit among the day's rows is the one that the last sum was held to. */
export function checkUsageLimits(sql: Queryable): Promise<Tally> {
  return tally(sql, sql`select user_id || ' ' || date as id, used <= most as ok from (${counted(sql)}) l`);
}

/** A stopped turn is charged when something was said. */
export function checkLedger(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select coalesce(l.idempotency_key, t.id::text) as id,
        (l.status = 'reserved') = (l.settled_at is null) and case
          when t.id is null then l.status <> 'reserved'
          when t.status = 'done' then l.status = 'committed'
          when t.status = 'failed' then l.status = 'released'
          when t.status = 'stopped' then l.status = case when m.content <> '' then 'committed' else 'released' end
          else l.status = 'reserved' end as ok
      from (select * from usage_logs where kind = 'text_messages') l full join turns t on t.id::text = l.idempotency_key
      left join messages m on t.status = 'stopped' and m.turn_id = t.id and m.role = 'assistant'`,
  );
}

export function checkMessageOwners(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select m.id, m.user_id = a.user_id as ok from messages m left join assistants a on a.id = m.assistant_id`,
  );
}

export function checkTurnOwners(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select t.id, t.user_id = a.user_id as ok from turns t left join assistants a on a.id = t.assistant_id`,
  );
}

/** The rows of purged turns stay in the ledger and have nothing left to be compared with. */
export function checkLedgerOwners(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select l.id, l.user_id = a.user_id as ok
      from usage_logs l join turns t on t.id::text = l.idempotency_key join assistants a on a.id = t.assistant_id`,
  );
}

export function checkPurgeSteps(sql: Queryable): Promise<Tally> {
  return tally(sql, sql`select id, (status = 'deleted') = (purge_step is not null) as ok from assistants`);
}

export function checkPurgedRows(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select a.id, m.assistant_id is null and t.assistant_id is null as ok from assistants a
      left join (select distinct assistant_id from messages) m on m.assistant_id = a.id
      left join (select distinct assistant_id from turns) t on t.assistant_id = a.id
      where a.purge_step = 'purged'`,
  );
}

/** `agentIds`: whose files are on the disk. A purged assistant's, and those of an id of ours that no row has, are too many. */
export function checkPurgedFiles(sql: Queryable, agentIds: string[]): Promise<Tally> {
  return tally(
    sql,
    sql`select f.agent_id as id, coalesce(a.purge_step <> 'purged', a.id is not null or f.agent_id !~ '^agent_[0-9a-f]{20}$') as ok
      from unnest(${agentIds}::text[]) f (agent_id) left join assistants a on a.agent_id = f.agent_id`,
  );
}

export function checkDeletionSteps(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select coalesce(u.id, d.user_id) as id, (u.status = 'deleting') = (d.user_id is not null) as ok
      from users u full join (
        select user_id from account_deletions where step in ('subscription', 'provider', 'agents', 'rows')) d on d.user_id = u.id`,
  );
}

/** Foreign keys should make most of it impossible. What was audited keeps ids, and what is over keeps no address. */
export function checkDeletedRows(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select d.user_id as id, r.user_id is null and a.subject_user_id is null
        and (d.step <> 'done' or (d.finished_at is not null and d.recipient is null and d.provider_tokens = '[]' and d.turn_ids = '{}')) as ok
      from account_deletions d
      left join (${userRows(sql)}) r on r.user_id = d.user_id
      left join (select distinct subject_user_id from audit_log where ip is not null or details <> '{}') a on a.subject_user_id = d.user_id
      where d.step in ('redis', 'mail', 'done')`,
  );
}

const userRows = (sql: Queryable) => sql`
  select id as user_id from users union select user_id from assistants union select user_id from turns
  union select user_id from messages union select user_id from usage_logs union select user_id from daily_usage
  union select user_id from idempotency_keys union select user_id from subscriptions union select user_id from stripe_customers
  union select user_id from identities
  union select user_id from one_time_tokens union select user_id from outbox union select user_id from refresh_tokens`;

/** An event of Stripe's may wait, but not longer than this. */
export function checkStripeInbox(sql: Queryable, input: { seconds: number }): Promise<Tally> {
  return tally(
    sql,
    sql`select id, processed_at is not null or received_at > now() - make_interval(secs => ${input.seconds}) as ok
      from stripe_events`,
  );
}

/** Who is leaving is told nothing any more. */
export function checkAppliedPlans(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select id, applied_plan = plan_of(id) as ok from users u
      where status <> 'deleting' and (applied_plan <> 'free' or id in (select user_id from subscriptions))`,
  );
}

/** Active ones; what is paused costs nothing. */
export function checkAssistantNumbers(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select a.user_id as id, a.n <= p.assistants as ok
      from (select user_id, count(*) as n from assistants where status = 'active' group by user_id) a
      join users u on u.id = a.user_id and u.status <> 'deleting'
      join plan_limits p on p.plan = plan_of(a.user_id)`,
  );
}

/** What is sold is sold at one price; the index that sees to it may be lost. */
export function checkCurrentPrices(sql: Queryable): Promise<Tally> {
  return tally(
    sql,
    sql`select plan || ' ' || cycle || case when livemode then ' live' else ' test' end as id, count(*) = 1 as ok
      from stripe_prices where current group by plan, cycle, livemode`,
  );
}

/** `agentIds`: who is configured. To be so: awake, active, of an active user; or ending an answer; or being purged. */
export function checkConfigured(sql: Queryable, input: { gatewayId: string; agentIds: string[] }): Promise<Tally> {
  return tally(
    sql,
    sql`select c.agent_id as id, a.id is not null and (
        a.purge_step in ('stopping', 'erasing')
        or (a.state in ('waking', 'awake') and ((a.status = 'active' and u.status = 'active') or exists (
          select 1 from turns t where t.assistant_id = a.id and t.status in ('dispatched', 'streaming'))))) as ok
      from unnest(${input.agentIds}::text[]) c (agent_id)
      left join assistants a on a.agent_id = c.agent_id and a.gateway_id = ${input.gatewayId}
      left join users u on u.id = a.user_id`,
  );
}

/** Whom the rows want configured on a gateway. */
export async function listConfigured(sql: Queryable, gatewayId: string): Promise<{ agentId: string; model: string }[]> {
  return sql<{ agentId: string; model: string }[]>`
    select agent_id, model from assistants where gateway_id = ${gatewayId} and state in ('waking', 'awake')`;
}
