import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import type { Queryable } from "./connect.ts";

/** What a plan gives by the day, one number of each kind. */
export interface Amounts {
  textMessages: number;
  voiceInputSeconds: number;
  voiceOutputSeconds: number;
  ttsCharacters: number;
}
export type UsageKind = keyof Amounts;

/** The kinds as columns of `daily_usage` and as `usage_logs.kind`. */
export const USAGE_KINDS = {
  textMessages: "text_messages",
  voiceInputSeconds: "voice_input_seconds",
  voiceOutputSeconds: "voice_output_seconds",
  ttsCharacters: "tts_characters",
} as const satisfies Record<UsageKind, string>;
const KINDS = Object.keys(USAGE_KINDS) as UsageKind[];

/** A user's own day now: what the plan in force gives, and what is used of it. */
export interface Usage {
  /** The day's name, e.g. 2026-11-26, in the user's time zone. */
  date: string;
  timezone: string;
  /** When the day ends: the next local midnight, exact across daylight-saving changes. */
  resetAt: Date;
  plan: string;
  /** The next larger plan; null for the largest. */
  upgradeTo: string | null;
  /** Whether the user may use it: neither suspended nor leaving. */
  active: boolean;
  voices: string[];
  ttsModel: string;
  limits: Amounts;
  used: Amounts;
  /** The number of the totals' last change in this day. */
  version: number;
}

/** The totals of a day after a change. */
export interface Totals extends Amounts {
  date: string;
  version: number;
}

const totals = (sql: Queryable) =>
  sql`d.date::text, d.version, d.text_messages, d.voice_input_seconds, d.voice_output_seconds, d.tts_characters`;

/** Throws `unauthorized` for somebody whose rows are gone since the token was checked. */
export async function getUsage(sql: Queryable, userId: string): Promise<Usage> {
  const [row] = await sql<Usage[]>`
    select day.date::text, u.timezone, day.reset_at, p.plan, u.status = 'active' as active, p.voices, p.tts_model,
      (select n.plan from plan_limits n where n.rank > p.rank order by n.rank limit 1) as upgrade_to,
      json_build_object('textMessages', p.text_messages, 'voiceInputSeconds', p.voice_input_seconds,
        'voiceOutputSeconds', p.voice_output_seconds, 'ttsCharacters', p.tts_characters) as limits,
      json_build_object('textMessages', coalesce(d.text_messages, 0),
        'voiceInputSeconds', coalesce(d.voice_input_seconds, 0),
        'voiceOutputSeconds', coalesce(d.voice_output_seconds, 0),
        'ttsCharacters', coalesce(d.tts_characters, 0)) as used,
      coalesce(d.version, 0) as version
    from users u
    cross join lateral day_of(u, now()) day
    join plan_limits p on p.plan = plan_of(u.id)
    left join daily_usage d on d.user_id = u.id and d.date = day.date
    where u.id = ${userId}`;
  if (!row) throw new AppError("unauthorized");
  return row;
}

/**
 * Takes amounts out of the day, all or nothing, in the transaction that makes the work durable. One statement adds only
 * where each sum stays within its limit, so N parallel calls of 1 at limit L grant exactly min(N, L), and writes the
 * ledger with it. Null: it does not fit, nothing changed. `expiresInMs`: after it the work can't be going on any more and
 * whoever finds the reservation gives it back; null where something else settles it for sure.
 */
export async function insertReservation(
  sql: Queryable,
  input: {
    userId: string;
    key: string;
    day: Pick<Usage, "date" | "limits" | "plan">;
    amounts: Partial<Amounts>;
    expiresInMs: number | null;
  },
): Promise<Totals | null> {
  const { day, userId } = input;
  const { textMessages = 0, voiceInputSeconds = 0, voiceOutputSeconds = 0, ttsCharacters = 0 } = input.amounts;
  const { limits } = day;
  const taken = KINDS.filter((kind) => (input.amounts[kind] ?? 0) > 0);
  if (taken.some((kind) => input.amounts[kind]! > limits[kind])) {
    // More than a whole day may be more than a column holds. Only the day is locked, as by any refusal, so that what Redis
    // hears of it is in order.
    await sql`select 1 from daily_usage where user_id = ${userId} and date = ${day.date} for no key update`;
    return null;
  }
  const expires = input.expiresInMs === null ? null : input.expiresInMs / 1000;
  const [row] = await sql<Totals[]>`
    with taken as (
      insert into daily_usage as d
        (user_id, date, text_messages, voice_input_seconds, voice_output_seconds, tts_characters)
      values (${userId}, ${day.date}, ${textMessages}, ${voiceInputSeconds}, ${voiceOutputSeconds}, ${ttsCharacters})
      on conflict (user_id, date) do update set version = d.version + 1,
        text_messages = d.text_messages + excluded.text_messages,
        voice_input_seconds = d.voice_input_seconds + excluded.voice_input_seconds,
        voice_output_seconds = d.voice_output_seconds + excluded.voice_output_seconds,
        tts_characters = d.tts_characters + excluded.tts_characters
        where (excluded.text_messages = 0 or d.text_messages + excluded.text_messages <= ${limits.textMessages})
          and (excluded.voice_input_seconds = 0
            or d.voice_input_seconds + excluded.voice_input_seconds <= ${limits.voiceInputSeconds})
          and (excluded.voice_output_seconds = 0
            or d.voice_output_seconds + excluded.voice_output_seconds <= ${limits.voiceOutputSeconds})
          and (excluded.tts_characters = 0 or d.tts_characters + excluded.tts_characters <= ${limits.ttsCharacters})
      returning ${totals(sql)}
    ), logged as (
      insert into usage_logs (id, user_id, date, kind, amount, limit_then, plan, idempotency_key, expires_at)
      select k.id, ${userId}, ${day.date}, k.kind, k.amount, k.limit_then, ${day.plan}, ${input.key},
        now() + make_interval(secs => ${expires}::float8)
      from taken, unnest(${taken.map(() => newId())}::uuid[], ${taken.map((kind) => USAGE_KINDS[kind])}::text[],
        ${taken.map((kind) => input.amounts[kind]!)}::int[], ${taken.map((kind) => limits[kind])}::int[])
        k(id, kind, amount, limit_then)
    )
    select * from taken`;
  return row ?? null;
}

/** What settling a reservation changed. */
export interface Settled {
  /** What came back to the day of each kind; negative where the work took more than was reserved. */
  returned: Amounts;
  /** The day after it; null where its totals stayed as they were. */
  totals: Totals | null;
}

/** What work has cost us, where it is known. */
export interface Cost {
  model: string | null;
  inputTokens: number | null;
  outputTokens: number | null;
  costMicroUsd: number | null;
}

/** How a reservation ends. `actual`: what was really used, of the kinds where that differs from what was reserved. */
export interface Settlement {
  userId: string;
  key: string;
  status: "committed" | "released";
  actual?: Partial<Amounts>;
  cost?: Cost;
}

/**
 * Settles a reservation once. `committed` keeps it, at what was really used where `actual` says so: less comes back, more
 * is taken only as far as the day's limit goes. `released`, or nothing used, gives it back to its day. Null when nothing
 * was reserved under this key any more: what was settled before stays as it is.
 */
export async function settleReservation(sql: Queryable, input: Settlement): Promise<Settled | null> {
  const { userId, key, actual = {}, cost } = input;
  const counted = KINDS.filter((kind) => actual[kind] !== undefined);
  // The day is locked before the ledger, here as where the reservation was made.
  const lock = input.status === "released" || counted.length > 0 ? sql`for no key update` : sql``;
  const [row] = await sql<(Totals & { returned: Amounts; version: number | null })[]>`
    with day as (
      select d.* from daily_usage d where d.user_id = ${userId}
        and d.date = (select date from usage_logs where idempotency_key = ${key} and user_id = ${userId} limit 1)
      ${lock}
    ), wanted as (
      select l.id, l.kind, l.amount as before, case
        when ${input.status} = 'released' or a.actual = 0 then 0
        when a.actual is null then l.amount
        else least(a.actual, l.amount + greatest(0, l.limit_then - case l.kind
          when 'text_messages' then d.text_messages when 'voice_input_seconds' then d.voice_input_seconds
          when 'voice_output_seconds' then d.voice_output_seconds else d.tts_characters end)) end as after
      from usage_logs l cross join day d
      left join unnest(${counted.map((kind) => USAGE_KINDS[kind])}::text[], ${counted.map((kind) => actual[kind]!)}::int[])
        a(kind, actual) on a.kind = l.kind
      where l.idempotency_key = ${key} and l.user_id = ${userId} and l.status = 'reserved'
      -- Two who settle the same would else wait for each other.
      order by l.kind for no key update of l
    ), settled as (
      update usage_logs l set settled_at = now(), amount = case when w.after = 0 then l.amount else w.after end,
        status = case when w.after = 0 then 'released' else 'committed' end, model = ${cost?.model ?? null},
        -- Once for the whole reservation, or a sum over rows would count it twice. Null: not known.
        input_tokens = case when f.id is not null then ${cost?.inputTokens ?? null}::int end,
        output_tokens = case when f.id is not null then ${cost?.outputTokens ?? null}::int end,
        cost_micro_usd = case when f.id is not null then 1 else 0 end * ${cost?.costMicroUsd ?? null}::bigint
      from wanted w left join (select id from wanted order by id limit 1) f on f.id = w.id
      where l.id = w.id and l.status = 'reserved'
      returning l.kind, w.before - w.after as returned
    ), returned as (
      select coalesce(sum(returned) filter (where kind = 'text_messages'), 0)::int as text_messages,
        coalesce(sum(returned) filter (where kind = 'voice_input_seconds'), 0)::int as voice_input_seconds,
        coalesce(sum(returned) filter (where kind = 'voice_output_seconds'), 0)::int as voice_output_seconds,
        coalesce(sum(returned) filter (where kind = 'tts_characters'), 0)::int as tts_characters
      from settled having count(*) > 0
    ), changed as (
      update daily_usage d set version = d.version + 1,
        text_messages = d.text_messages - r.text_messages,
        voice_input_seconds = d.voice_input_seconds - r.voice_input_seconds,
        voice_output_seconds = d.voice_output_seconds - r.voice_output_seconds,
        tts_characters = d.tts_characters - r.tts_characters
      from returned r, day where d.user_id = ${userId} and d.date = day.date
        and (r.text_messages, r.voice_input_seconds, r.voice_output_seconds, r.tts_characters) <> (0, 0, 0, 0)
      returning ${totals(sql)}
    )
    select changed.*, json_build_object('textMessages', r.text_messages,
      'voiceInputSeconds', r.voice_input_seconds, 'voiceOutputSeconds', r.voice_output_seconds,
      'ttsCharacters', r.tts_characters) as returned
    from returned r left join changed on true`;
  if (!row) return null;
  const { returned, ...after } = row;
  return { returned, totals: after.version === null ? null : after };
}

/** A reservation whose work can't be going on any more. */
export interface ExpiredReservation {
  userId: string;
  key: string;
  /** Since when, exact to the microsecond. */
  expired: string;
}

/** Expired reservations, oldest first, a page of them: `after` is the last one of the page before. */
export async function listExpiredReservations(
  sql: Queryable,
  input: { after: ExpiredReservation | null; limit: number },
): Promise<ExpiredReservation[]> {
  const { expired = "-infinity", key = "" } = input.after ?? {};
  return sql<ExpiredReservation[]>`
    select distinct on (expires_at, idempotency_key) user_id, idempotency_key as key, expires_at::text as expired
    from usage_logs
    where status = 'reserved' and expires_at < now()
      and (expires_at, idempotency_key) > (${expired}::text::timestamptz, ${key})
    order by expires_at, idempotency_key limit ${input.limit}`;
}

/** What an answer cost, whole or stopped, learned after it was given. */
export async function recordTurnCost(
  sql: Queryable,
  input: { id: string; userId: string; inputTokens: number; outputTokens: number; costMicroUsd: number },
): Promise<void> {
  await sql`
    with turn as (
      update turns set input_tokens = ${input.inputTokens}, output_tokens = ${input.outputTokens},
        cost_micro_usd = ${input.costMicroUsd}
      where id = ${input.id} and user_id = ${input.userId} and status in ('done', 'stopped')
    )
    update usage_logs set input_tokens = ${input.inputTokens}, output_tokens = ${input.outputTokens},
      cost_micro_usd = ${input.costMicroUsd}
    where idempotency_key = ${input.id}::text and kind = 'text_messages' and user_id = ${input.userId}`;
}

/** How many assistants the user has, of how many. */
export async function getAssistantUse(sql: Queryable, userId: string): Promise<{ used: number; limit: number }> {
  const [row] = await sql<{ used: number; limit: number }[]>`
    select (select count(*)::int from assistants a where a.user_id = ${userId} and a.status <> 'deleted') as used,
      p.assistants as "limit"
    from plan_limits p where p.plan = plan_of(${userId})`;
  return row!;
}

/** What a user has used on a day of their own. */
export interface DailyUse extends Amounts {
  date: string;
}

/** The last `days` days up to `date`, newest first; one without use has zeros. */
export async function listDailyUse(
  sql: Queryable,
  input: { userId: string; date: string; days: number },
): Promise<DailyUse[]> {
  return sql<DailyUse[]>`
    select (${input.date}::date - n)::text as date, coalesce(d.text_messages, 0) as text_messages,
      coalesce(d.voice_input_seconds, 0) as voice_input_seconds,
      coalesce(d.voice_output_seconds, 0) as voice_output_seconds, coalesce(d.tts_characters, 0) as tts_characters
    from generate_series(0, ${input.days}::int - 1) n
    left join daily_usage d on d.user_id = ${input.userId} and d.date = ${input.date}::date - n
    order by n`;
}
