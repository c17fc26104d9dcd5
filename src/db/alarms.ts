import type { Queryable } from "./connect.ts";

export type Severity = "warning" | "critical";

/** Something an operator has to know. The same `key` is the same trouble. */
export interface Alarm {
  key: string;
  severity: Severity;
  summary: string;
  host: string;
  count: number;
  firstAt: Date;
  lastAt: Date;
  resolvedAt: Date | null;
}

const fields = (sql: Queryable) => sql`key, severity, summary, host, count::int, first_at, last_at, resolved_at`;

/** Records a sight of the trouble. One that was over begins anew, and nobody was told of it yet. */
export async function upsertAlarm(
  sql: Queryable,
  alarm: Pick<Alarm, "key" | "severity" | "summary" | "host">,
): Promise<void> {
  await sql`
    insert into alarms as a (key, severity, summary, host)
    values (${alarm.key}, ${alarm.severity}, ${alarm.summary}, ${alarm.host})
    on conflict (key) do update set severity = excluded.severity, summary = excluded.summary, host = excluded.host,
      count = case when a.resolved_at is null then a.count + 1 else 1 end,
      first_at = case when a.resolved_at is null then a.first_at else now() end,
      sent_at = case when a.resolved_at is null and a.severity = excluded.severity then a.sent_at end,
      last_at = now(), resolved_at = null, resolution_sent_at = null`;
}

/**
 * The trouble is over. False when there was none, or with `host` when another host saw it last, unless that was two days
 * ago: such a host is gone or has another name, and its alarm would be told for ever.
 */
export async function resolveAlarm(sql: Queryable, key: string, host: string | null): Promise<boolean> {
  const result = await sql`
    update alarms set resolved_at = now()
    where key = ${key} and resolved_at is null and (
      ${host}::text is null or host = ${host} or last_at < now() - interval '2 days')`;
  return result.count > 0;
}

/** Alarms that somebody is to be told of: new ones, ones that last since `repeatMs`, ends of those that were told. */
export async function listUntoldAlarms(sql: Queryable, input: { repeatMs: number }): Promise<Alarm[]> {
  return sql<Alarm[]>`
    select ${fields(sql)} from alarms
    where (resolved_at is null and (sent_at is null or sent_at < now() - make_interval(secs => ${input.repeatMs / 1000})))
      or (resolved_at is not null and sent_at is not null and resolution_sent_at is null)
    order by first_at`;
}

/** Records that somebody was told of the alarm as it was read; a change since then is told, too. Its repeat comes `earlyMs` before its time. */
export async function markAlarmTold(
  sql: Queryable,
  alarm: Pick<Alarm, "key" | "severity" | "resolvedAt">,
  earlyMs = 0,
): Promise<void> {
  if (alarm.resolvedAt) {
    await sql`update alarms set resolution_sent_at = now() where key = ${alarm.key} and resolved_at is not null`;
    return;
  }
  await sql`
    update alarms set sent_at = now() - make_interval(secs => ${earlyMs / 1000})
    where key = ${alarm.key} and severity = ${alarm.severity}`;
}

/** What is wrong now, the oldest first. */
export async function listOpenAlarms(sql: Queryable): Promise<Alarm[]> {
  return sql<Alarm[]>`select ${fields(sql)} from alarms where resolved_at is null order by first_at`;
}
