import type { Queryable } from "./connect.ts";
import { isSeen } from "./gateways.ts";
import { notify } from "./notify.ts";

export type TurnStatus = "queued" | "dispatched" | "streaming" | "done" | "failed" | "stopped";

export interface Turn {
  id: string;
  assistantId: string;
  userId: string;
  gatewayId: string;
  seq: number;
  status: TurnStatus;
  stopRequested: boolean;
  errorCode: string | null;
}

/** A turn that this process holds the lease of, with all that is needed to run it. */
export interface ClaimedTurn extends Turn {
  agentId: string;
  displayName: string | null;
  content: string;
  /** How often it was claimed; from the second time on the gateway may know it already. */
  attempts: number;
  /** Milliseconds since it was first dispatched: its budgets do not begin anew with another process. */
  ageMs: number;
}

const columns = (sql: Queryable) =>
  sql`t.id, t.assistant_id, t.user_id, t.gateway_id, t.seq, t.status, t.stop_requested, t.error_code`;
const claimed = (sql: Queryable) => sql`${columns(sql)}, t.attempts,
  (extract(epoch from now() - t.dispatched_at) * 1000)::int as age_ms,
  (select agent_id from assistants where id = t.assistant_id) as agent_id,
  (select display_name from assistants where id = t.assistant_id) as display_name,
  (select content from messages where turn_id = t.id and role = 'user') as content`;

/** Serialises what decides over a gateway's queue and working set, until the transaction ends. */
export async function lockGatewayQueue(sql: Queryable, gatewayId: string): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtext('reef:queue'), hashtext(${gatewayId}))`;
}

export async function insertTurn(
  sql: Queryable,
  input: { id: string; assistantId: string; userId: string; gatewayId: string; seq: number },
): Promise<Turn> {
  const [row] = await sql<Turn[]>`
    insert into turns as t (id, assistant_id, user_id, gateway_id, seq)
    values (${input.id}, ${input.assistantId}, ${input.userId}, ${input.gatewayId}, ${input.seq})
    returning ${columns(sql)}`;
  return row!;
}

export async function findTurn(sql: Queryable, key: { userId: string; id: string }): Promise<Turn | null> {
  const [row] = await sql<
    Turn[]
  >`select ${columns(sql)} from turns t where t.id = ${key.id} and t.user_id = ${key.userId}`;
  return row ?? null;
}

/** Tells every process of a queue in which something waits. */
export async function notifyIfQueued(sql: Queryable, gatewayId: string): Promise<void> {
  const waiting = sql`where exists (select 1 from turns where gateway_id = ${gatewayId} and status = 'queued')`;
  await notify(sql, "turn", gatewayId, waiting);
}

/** Whether a sleeping assistant of the gateway has a message that waits. */
export async function hasWaitingSleeper(sql: Queryable, gatewayId: string): Promise<boolean> {
  const [row] = await sql<{ waits: boolean }[]>`
    select exists (
      select 1 from turns t join assistants a on a.id = t.assistant_id and a.status = 'active' and a.state <> 'awake'
      where t.gateway_id = ${gatewayId} and t.status = 'queued') as waits`;
  return row!.waits;
}

/**
 * Claims queued turns, the next ones in fair order, as many as the gateway has places (migrations/0004_claim.sql).
 * `mayWait` false: claims nothing while somebody else decides over the queue, so that a person's message never waits.
 */
export async function claimTurns(
  sql: Queryable,
  input: {
    gatewayId: string;
    owner: string;
    leaseMs: number;
    maxRuns: number;
    workingSet: number;
    waitMs: number;
    mayWait: boolean;
  },
): Promise<ClaimedTurn[]> {
  const { gatewayId, owner, leaseMs, maxRuns, workingSet, waitMs, mayWait } = input;
  return sql<ClaimedTurn[]>`
    select * from claim_turns(${gatewayId}, ${owner}, ${leaseMs}, ${maxRuns}, ${workingSet}, ${waitMs}, ${mayWait})`;
}

/** Takes over running turns whose lease ran out: their process died or stands still. */
export async function takeOverTurns(
  sql: Queryable,
  input: { gatewayId: string; owner: string; leaseMs: number },
): Promise<ClaimedTurn[]> {
  return sql<ClaimedTurn[]>`
    update turns t set attempts = attempts + 1, lease_owner = ${input.owner}, lease_until = now() + make_interval(secs => ${input.leaseMs / 1000})
    where t.id in (
      select id from turns where gateway_id = ${input.gatewayId} and status in ('dispatched', 'streaming') and lease_until < now()
      for update skip locked)
    returning ${claimed(sql)}`;
}

/**
 * Renews leases; answers those still held, and whether they are to stop: somebody asked, or their user may not talk any
 * more (one suspended while the turn was being accepted had no turn yet that could be asked to stop). In the order of
 * `requestStopOfUser`, or the two could wait for each other.
 */
export async function renewLeases(
  sql: Queryable,
  input: { owner: string; ids: string[]; leaseMs: number },
): Promise<{ id: string; stopRequested: boolean }[]> {
  return sql<{ id: string; stopRequested: boolean }[]>`
    update turns set lease_until = now() + make_interval(secs => ${input.leaseMs / 1000})
    where id in (
      select id from turns
      where id in ${sql(input.ids)} and lease_owner = ${input.owner} and status in ('dispatched', 'streaming')
      order by id for no key update)
    returning id, stop_requested or not exists (
      select 1 from users u where u.id = turns.user_id and u.status = 'active') as stop_requested`;
}

/** Lets go of leases at once, so that another process takes over without waiting. */
export async function releaseLeases(sql: Queryable, input: { owner: string }): Promise<void> {
  await sql`
    update turns set lease_until = now() - interval '1 second'
    where lease_owner = ${input.owner} and status in ('dispatched', 'streaming')`;
}

export async function markStreaming(sql: Queryable, input: { id: string; owner: string }): Promise<void> {
  await sql`
    update turns set status = 'streaming', first_text_at = now()
    where id = ${input.id} and lease_owner = ${input.owner} and status = 'dispatched'`;
}

/**
 * Gives a claimed turn back to its place in the queue: its assistant turned out to be asleep, or else it was never sent,
 * which is no attempt. Call it in a transaction.
 */
export async function requeueTurn(
  sql: Queryable,
  input: { id: string; owner: string; assistantId: string; gatewayId: string; asleep: boolean },
): Promise<void> {
  const result = await sql`
    update turns set status = 'queued', attempts = attempts - ${input.asleep ? 0 : 1}::int, lease_owner = null, lease_until = null
    where id = ${input.id} and lease_owner = ${input.owner} and status in ('dispatched', 'streaming')`;
  if (result.count === 0) return;
  if (!input.asleep) return notify(sql, "turn", input.gatewayId);
  await sql`update assistants set state = 'waking' where id = ${input.assistantId} and state = 'awake'`;
  await notify(sql, "assistant", input.assistantId);
  await notify(sql, "gateway", input.gatewayId);
}

/**
 * Queued turns that will not run: somebody stopped them, their user may not talk any more (which is a stop, too), or they
 * waited longer than `waitMs`.
 */
export async function listTurnsToDrop(sql: Queryable, input: { gatewayId: string; waitMs: number }): Promise<Turn[]> {
  return listOverdue(sql, input.waitMs, sql`t.gateway_id = ${input.gatewayId}`);
}

async function listOverdue(sql: Queryable, waitMs: number, where: ReturnType<typeof ofAway>): Promise<Turn[]> {
  return sql<Turn[]>`
    select t.id, t.assistant_id, t.user_id, t.gateway_id, t.seq, t.status, t.error_code,
      t.stop_requested or u.status <> 'active' as stop_requested
    from turns t join users u on u.id = t.user_id
    where ${where} and t.status = 'queued'
      and (t.stop_requested or u.status <> 'active' or t.queued_at < now() - make_interval(secs => ${waitMs / 1000}))
    limit 100`;
}

const ofAway = (sql: Queryable, but: string | null) =>
  sql`t.gateway_id in (select g.id from gateways g where g.id is distinct from ${but} and not ${isSeen(sql)})`;

/** As `listTurnsToDrop`, of all gateways but ours that no process is connected to. */
export async function listAbandonedTurns(
  sql: Queryable,
  input: { gatewayId: string; waitMs: number },
): Promise<Turn[]> {
  return listOverdue(sql, input.waitMs, ofAway(sql, input.gatewayId));
}

/**
 * Takes running turns of gateways that no process is connected to, but for one, whose lease ran out and that were
 * dispatched longer than `afterMs` ago, when no run of theirs can go on any more. To be ended, not to be run.
 */
export async function takeLostTurns(
  sql: Queryable,
  input: { but: string | null; owner: string; leaseMs: number; afterMs: number },
): Promise<Turn[]> {
  const seconds = (ms: number) => sql`make_interval(secs => ${ms / 1000})`;
  return sql<Turn[]>`
    update turns t set lease_owner = ${input.owner}, lease_until = now() + ${seconds(input.leaseMs)}
    where t.id in (
      select t.id from turns t where ${ofAway(sql, input.but)} and t.status in ('dispatched', 'streaming')
        and t.lease_until < now() and t.dispatched_at < now() - ${seconds(input.afterMs)}
      for update skip locked)
    returning ${columns(sql)}`;
}

/** Asks a turn (or all unfinished ones of the assistant) to stop. Returns the turns asked. */
export async function requestStop(
  sql: Queryable,
  input: { userId: string; assistantId: string; turnId: string | null },
): Promise<Turn[]> {
  const rows = await sql<Turn[]>`
    update turns t set stop_requested = true
    where t.assistant_id = ${input.assistantId} and t.user_id = ${input.userId} and t.status in ('queued', 'dispatched', 'streaming')
      and (${input.turnId}::uuid is null or t.id = ${input.turnId})
    returning ${columns(sql)}`;
  if (rows.length > 0) await notify(sql, "stop", input.assistantId);
  return rows;
}

/** Asks every unfinished turn of a user to stop: they may not talk any more. */
export async function requestStopOfUser(sql: Queryable, userId: string): Promise<void> {
  const rows = await sql<{ assistantId: string }[]>`
    update turns set stop_requested = true where id in (
      select id from turns where user_id = ${userId} and status in ('queued', 'dispatched', 'streaming')
      order by id for no key update)
    returning assistant_id`;
  for (const assistantId of new Set(rows.map((row) => row.assistantId))) await notify(sql, "stop", assistantId);
}

/**
 * Ends a turn; false when it had ended before, or when its lease is another process's: then nothing else of the finish
 * may happen. `owner`: who runs it; null ends one that is still queued.
 */
export async function endTurn(
  sql: Queryable,
  input: {
    id: string;
    userId: string;
    owner: string | null;
    status: "done" | "failed" | "stopped";
    errorCode: string | null;
    inputTokens: number | null;
    outputTokens: number | null;
    costMicroUsd: number | null;
  },
): Promise<boolean> {
  const result = await sql`
    update turns set status = ${input.status}, error_code = ${input.errorCode}, finished_at = now(), lease_until = null,
      input_tokens = ${input.inputTokens}, output_tokens = ${input.outputTokens}, cost_micro_usd = ${input.costMicroUsd}
    where id = ${input.id} and user_id = ${input.userId} and (
      (${input.owner}::uuid is null and status = 'queued')
      or (lease_owner = ${input.owner} and status in ('dispatched', 'streaming')))`;
  return result.count === 1;
}

/** The turn that an assistant is answering now, if any. */
export async function findRunningTurn(
  sql: Queryable,
  key: { userId: string; assistantId: string },
): Promise<{ id: string; seq: number } | null> {
  const [row] = await sql<{ id: string; seq: number }[]>`
    select id, seq from turns
    where assistant_id = ${key.assistantId} and user_id = ${key.userId} and status in ('dispatched', 'streaming')`;
  return row ?? null;
}
