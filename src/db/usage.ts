import { newId } from "../lib/ids.ts";
import type { Queryable } from "./connect.ts";

/** What a reservation answers: the day's total after it (`used`), or, refused, as it is. `date` is the user's own day. */
export interface Reservation {
  granted: boolean;
  date: string;
  used: number;
  limit: number;
  resetAt: Date;
  plan: string;
}

/** A user's own day. */
export interface Day {
  date: string;
  resetAt: Date;
  plan: string;
  limit: number;
  /** Whether the user may use it: neither suspended nor leaving. */
  active: boolean;
}

/**
 * The user's day now: its date, when it ends (the next local midnight, exact across daylight-saving changes), the plan
 * in force and its number of messages.
 */
export async function getDay(sql: Queryable, userId: string): Promise<Day> {
  const [row] = await sql<Day[]>`
    select (now() at time zone u.timezone)::date::text as date,
      (((now() at time zone u.timezone)::date + 1)::timestamp at time zone u.timezone) as reset_at,
      p.plan, p.text_messages as "limit", u.status = 'active' as active
    from users u, plan_limits p where u.id = ${userId} and p.plan = plan_of(u.id)`;
  return row!;
}

/**
 * Takes one text message out of the day, in the transaction that makes the work durable. One statement adds only where
 * the sum stays within the limit, so N parallel calls at limit L grant exactly min(N, L), and writes the ledger with it.
 */
export async function reserveTextMessage(
  sql: Queryable,
  input: { userId: string; key: string; day: Day },
): Promise<Reservation> {
  const { day } = input;
  const [row] = await sql<{ used: number }[]>`
    with taken as (
      insert into daily_usage as d (user_id, date, text_messages)
      select ${input.userId}, ${day.date}, 1 where ${day.limit}::int >= 1
      on conflict (user_id, date) do update set text_messages = d.text_messages + 1
        where d.text_messages + 1 <= ${day.limit}
      returning text_messages as used
    ), logged as (
      insert into usage_logs (id, user_id, date, kind, amount, limit_then, idempotency_key)
      select ${newId()}, ${input.userId}, ${day.date}, 'text_messages', 1, ${day.limit}, ${input.key} from taken
    )
    select used from taken`;
  if (!row) return { ...day, granted: false, ...(await getUsed(sql, input.userId, day.date)) };
  return { ...day, granted: true, used: row.used };
}

/**
 * Settles a reservation once: `committed` keeps it (with what the answer cost), `released` gives it back to its day.
 * What was settled before stays as it is.
 */
export async function settleReservation(
  sql: Queryable,
  input: {
    userId: string;
    key: string;
    status: "committed" | "released";
    inputTokens: number | null;
    outputTokens: number | null;
    costMicroUsd: number | null;
  },
): Promise<void> {
  await sql`
    with settled as (
      update usage_logs set status = ${input.status}, settled_at = now(), input_tokens = ${input.inputTokens},
        output_tokens = ${input.outputTokens}, cost_micro_usd = ${input.costMicroUsd}
      where idempotency_key = ${input.key} and user_id = ${input.userId} and status = 'reserved'
      returning date, amount
    )
    update daily_usage d set text_messages = d.text_messages - settled.amount
    from settled where d.user_id = ${input.userId} and d.date = settled.date and ${input.status} = 'released'`;
}

/** What an answer cost, learned after it was given. */
export async function recordTurnCost(
  sql: Queryable,
  input: { id: string; userId: string; inputTokens: number; outputTokens: number; costMicroUsd: number },
): Promise<void> {
  await sql`
    with turn as (
      update turns set input_tokens = ${input.inputTokens}, output_tokens = ${input.outputTokens},
        cost_micro_usd = ${input.costMicroUsd}
      where id = ${input.id} and user_id = ${input.userId} and status = 'done'
    )
    update usage_logs set input_tokens = ${input.inputTokens}, output_tokens = ${input.outputTokens},
      cost_micro_usd = ${input.costMicroUsd}
    where idempotency_key = ${input.id}::text and user_id = ${input.userId}`;
}

/** What the user has used today, with limit and reset. */
export async function getTextUsage(sql: Queryable, userId: string): Promise<Omit<Reservation, "granted">> {
  const day = await getDay(sql, userId);
  return { ...day, ...(await getUsed(sql, userId, day.date)) };
}

async function getUsed(sql: Queryable, userId: string, date: string): Promise<{ used: number }> {
  const [row] = await sql<{ used: number }[]>`
    select text_messages as used from daily_usage where user_id = ${userId} and date = ${date}`;
  return row ?? { used: 0 };
}

/** What a user has used on a day of their own. */
export interface DailyUse {
  date: string;
  textMessages: number;
  voiceInputSeconds: number;
  voiceOutputSeconds: number;
  ttsCharacters: number;
}

/** Today's use beside the limits of the plan in force. */
export interface UsageToday extends DailyUse {
  timezone: string;
  resetAt: Date;
  plan: string;
  assistants: number;
  limits: Omit<DailyUse, "date"> & { assistants: number };
}

export async function getUsageToday(sql: Queryable, userId: string): Promise<UsageToday> {
  const [row] = await sql<UsageToday[]>`
    select u.timezone, day.date::text, ((day.date + 1)::timestamp at time zone u.timezone) as reset_at, p.plan,
      ${uses(sql)},
      (select count(*)::int from assistants a where a.user_id = u.id and a.status <> 'deleted') as assistants,
      json_build_object('textMessages', p.text_messages, 'voiceInputSeconds', p.voice_input_seconds,
        'voiceOutputSeconds', p.voice_output_seconds, 'ttsCharacters', p.tts_characters, 'assistants', p.assistants) as limits
    from users u
    cross join lateral (select (now() at time zone u.timezone)::date as date) day
    join plan_limits p on p.plan = plan_of(u.id)
    left join daily_usage d on d.user_id = u.id and d.date = day.date
    where u.id = ${userId}`;
  return row!;
}

/** The last `days` days up to `date`, newest first; one without use has zeros. */
export async function listDailyUse(
  sql: Queryable,
  input: { userId: string; date: string; days: number },
): Promise<DailyUse[]> {
  return sql<DailyUse[]>`
    select (${input.date}::date - n)::text as date, ${uses(sql)}
    from generate_series(0, ${input.days}::int - 1) n
    left join daily_usage d on d.user_id = ${input.userId} and d.date = ${input.date}::date - n
    order by n`;
}

const uses = (sql: Queryable) => sql`coalesce(d.text_messages, 0) as text_messages,
  coalesce(d.voice_input_seconds, 0) as voice_input_seconds,
  coalesce(d.voice_output_seconds, 0) as voice_output_seconds, coalesce(d.tts_characters, 0) as tts_characters`;
