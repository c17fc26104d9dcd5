import type { Queryable } from "./connect.ts";
import type { Amounts } from "./usage.ts";

/** What was used, as far as it was charged, and what it has cost us, charged or not. */
export interface Costs extends Amounts {
  inputTokens: number;
  outputTokens: number;
  costMicroUsd: number;
  /** Charged rows of the ledger whose cost is not known. */
  unpriced: number;
}

/** From and to, both included: days of the people's own. */
export interface Period {
  from: string;
  to: string;
}

/** Sums of a plan's or a user's; `group` is null for what can't be told any more (users that have left, by user). */
export interface CostGroup extends Costs {
  group: string | null;
}

/** The last one of a page. */
export interface CostCursor {
  costMicroUsd: number;
  group: string | null;
}

const sums = (sql: Queryable) => sql`
  coalesce(sum(text_messages), 0)::bigint as text_messages,
  coalesce(sum(voice_input_seconds), 0)::bigint as voice_input_seconds,
  coalesce(sum(voice_output_seconds), 0)::bigint as voice_output_seconds,
  coalesce(sum(tts_characters), 0)::bigint as tts_characters,
  coalesce(sum(input_tokens), 0)::bigint as input_tokens, coalesce(sum(output_tokens), 0)::bigint as output_tokens,
  coalesce(sum(cost_micro_usd), 0)::bigint as cost_micro_usd, coalesce(sum(unpriced), 0)::bigint as unpriced`;

/** The ledger as columns to be summed up. */
const spent = (sql: Queryable) => sql`
  date, coalesce(plan, 'unknown') as plan, user_id, input_tokens, output_tokens, cost_micro_usd,
  case when status = 'committed' and kind = 'text_messages' then amount end as text_messages,
  case when status = 'committed' and kind = 'voice_input_seconds' then amount end as voice_input_seconds,
  case when status = 'committed' and kind = 'voice_output_seconds' then amount end as voice_output_seconds,
  case when status = 'committed' and kind = 'tts_characters' then amount end as tts_characters,
  case when status = 'committed' and cost_micro_usd is null then 1 end as unpriced`;

const everything = (sql: Queryable, { from, to }: Period) => sql`
  select ${spent(sql)} from usage_logs where date between ${from}::date and ${to}::date
  union all
  select date, plan, null, input_tokens, output_tokens, cost_micro_usd, text_messages, voice_input_seconds,
    voice_output_seconds, tts_characters, unpriced
  from departed_usage where date between ${from}::date and ${to}::date`;

/** A page of the groups of a period, most expensive first. */
export async function listCosts(
  sql: Queryable,
  input: Period & { by: "plan" | "user"; after: CostCursor | null; limit: number },
): Promise<CostGroup[]> {
  const group = input.by === "plan" ? sql`plan` : sql`user_id::text`;
  const { costMicroUsd = null, group: last = null } = input.after ?? {};
  return sql<CostGroup[]>`
    select * from (select ${group} as "group", ${sums(sql)} from (${everything(sql, input)}) l group by 1) g
    where ${costMicroUsd}::bigint is null or cost_micro_usd < ${costMicroUsd}
      or (cost_micro_usd = ${costMicroUsd} and coalesce("group", '') > coalesce(${last}::text, ''))
    order by cost_micro_usd desc, coalesce("group", '') limit ${input.limit}`;
}

export async function sumCosts(sql: Queryable, period: Period): Promise<Costs> {
  const [row] = await sql<Costs[]>`select ${sums(sql)} from (${everything(sql, period)}) l`;
  return row!;
}

/** What one user has cost in the last `days` days of theirs. */
export async function sumCostsOfUser(sql: Queryable, input: { userId: string; days: number }): Promise<Costs> {
  const [row] = await sql<Costs[]>`
    select ${sums(sql)} from (
      select ${spent(sql)} from usage_logs where user_id = ${input.userId}
        and date > (select day.date from users u cross join lateral day_of(u, now()) day where u.id = ${input.userId}) - ${input.days}::int
    ) l`;
  return row!;
}

/**
 * Keeps what a user who leaves has used and cost as a part of their plans' sums by day, without the user. Call it before
 * their ledger is erased.
 */
export async function keepDepartedUsage(sql: Queryable, userId: string): Promise<void> {
  await sql`
    insert into departed_usage as d (date, plan, text_messages, voice_input_seconds, voice_output_seconds, tts_characters,
      input_tokens, output_tokens, cost_micro_usd, unpriced)
    select date, plan, ${sums(sql)} from (select ${spent(sql)} from usage_logs where user_id = ${userId}) l
    group by date, plan order by date, plan
    on conflict (date, plan) do update set
      text_messages = d.text_messages + excluded.text_messages,
      voice_input_seconds = d.voice_input_seconds + excluded.voice_input_seconds,
      voice_output_seconds = d.voice_output_seconds + excluded.voice_output_seconds,
      tts_characters = d.tts_characters + excluded.tts_characters,
      input_tokens = d.input_tokens + excluded.input_tokens, output_tokens = d.output_tokens + excluded.output_tokens,
      cost_micro_usd = d.cost_micro_usd + excluded.cost_micro_usd, unpriced = d.unpriced + excluded.unpriced`;
}

/** The newest date that has begun anywhere on earth. */
export async function findNewestDate(sql: Queryable): Promise<string> {
  const [row] = await sql<{ date: string }[]>`select (now() at time zone 'Etc/GMT-14')::date::text as date`;
  return row!.date;
}
