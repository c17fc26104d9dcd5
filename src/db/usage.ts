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

interface Day {
  date: string;
  resetAt: Date;
  plan: string;
  limit: number;
}

/**
 * The user's day now: its date, when it ends (the next local midnight, exact across daylight-saving changes), the plan
 * in force and its number of messages.
 */
async function getDay(sql: Queryable, userId: string): Promise<Day> {
  const [row] = await sql<Day[]>`
    select (now() at time zone u.timezone)::date::text as date,
      (((now() at time zone u.timezone)::date + 1)::timestamp at time zone u.timezone) as reset_at,
      p.plan, p.text_messages as "limit"
    from users u, plan_limits p where u.id = ${userId} and p.plan = plan_of(u.id)`;
  return row!;
}

/**
 * Takes one text message out of the day, in the transaction that makes the work durable. One statement adds only where
 * the sum stays within the limit, so N parallel calls at limit L grant exactly min(N, L). Same key: counted once.
 */
export async function reserveTextMessage(sql: Queryable, input: { userId: string; key: string }): Promise<Reservation> {
  const day = await getDay(sql, input.userId);
  const [row] = await sql<{ used: number }[]>`
    insert into daily_usage as d (user_id, date, text_messages)
    select ${input.userId}, ${day.date}, 1 where ${day.limit}::int >= 1
    on conflict (user_id, date) do update set text_messages = d.text_messages + 1
      where d.text_messages + 1 <= ${day.limit}
    returning text_messages as used`;
  if (!row) return { ...day, granted: false, ...(await getUsed(sql, input.userId, day.date)) };
  await sql`
    insert into usage_logs (id, user_id, date, kind, amount, limit_then, idempotency_key)
    values (${newId()}, ${input.userId}, ${day.date}, 'text_messages', 1, ${day.limit}, ${input.key})`;
  return { ...day, granted: true, used: row.used };
}

/**
 * Settles a reservation once: `committed` keeps it (with what the answer cost), `released` gives it back to its day.
 * Null when it was settled before; else the day's total.
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
): Promise<{ date: string; used: number } | null> {
  const [log] = await sql<{ date: string; amount: number }[]>`
    update usage_logs set status = ${input.status}, settled_at = now(), input_tokens = ${input.inputTokens},
      output_tokens = ${input.outputTokens}, cost_micro_usd = ${input.costMicroUsd}
    where idempotency_key = ${input.key} and user_id = ${input.userId} and status = 'reserved'
    returning date::text as date, amount`;
  if (!log) return null;
  const back = input.status === "released" ? log.amount : 0;
  const [row] = await sql<{ used: number }[]>`
    update daily_usage set text_messages = text_messages - ${back}
    where user_id = ${input.userId} and date = ${log.date} returning text_messages as used`;
  return { date: log.date, used: row!.used };
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
