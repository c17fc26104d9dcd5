import type { Queryable } from "../db/connect.ts";
import { notify } from "../db/notify.ts";
import {
  getAssistantUse,
  getUsage,
  insertReservation,
  listDailyUse,
  listExpiredReservations,
  settleReservation,
  USAGE_KINDS,
  type Amounts,
  type DailyUse,
  type ExpiredReservation,
  type Settled,
  type Settlement,
  type Totals,
  type Usage,
  type UsageKind,
} from "../db/usage.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { startLoop } from "../lib/loop.ts";
import type { Identity } from "./accessTokens.ts";
import { findRefusedDay, forgetPlan, keepRefusal, keepReturn } from "./usageCache.ts";

/*
 * The one place that spends a user's day. A reservation is made before any work and settled once: committed, at what was
 * really used, or released. Postgres has the last word; Redis only says a cheap "no" (services/usageCache.ts).
 */

export type UsageDeps = Pick<Deps, "sql" | "redis" | "config" | "clock">;

/** An expected "no": which kind does not fit, and the day as it is. */
export interface Refused {
  kind: UsageKind;
  usage: Usage;
}

const KINDS = Object.keys(USAGE_KINDS) as UsageKind[];
const SWEEP_MS = 5_000;
const SWEEP_AT_ONCE = 100;
/** A plan that changes between two looks at it, each time anew, is no plan. */
const RESERVE_TRIES = 5;

/** Whether Redis knows already that the amounts don't fit; null: ask Postgres. */
export async function findCheapRefusal(
  deps: UsageDeps,
  userId: string,
  amounts: Partial<Amounts>,
): Promise<Refused | null> {
  // Since then more may have been used, and nothing has come back, or Redis would know nothing.
  const usage = await findRefusedDay(deps, userId);
  const kind = usage && findExcess(usage, amounts);
  return kind ? { kind, usage } : null;
}

/**
 * Reserves amounts of the day, all or nothing, in the caller's transaction; `usage` is the day as it was read in it.
 * `key` names the reservation for its settling. Answers the day after it, or what does not fit. At most once in a
 * transaction: Redis would learn of a refusal by what is not committed yet.
 */
export async function reserveUsage(
  deps: UsageDeps,
  sql: Queryable,
  input: { userId: string; key: string; usage: Usage; amounts: Partial<Amounts>; expiresInMs: number | null },
): Promise<Usage | Refused> {
  const { userId, amounts } = input;
  let { usage } = input;
  for (let tries = 0; tries < RESERVE_TRIES; tries++) {
    const totals = await insertReservation(sql, { ...input, day: usage });
    if (totals) return reserved(sql, userId, usage, amounts, totals);
    // The plan may have changed since the day was read: nobody is refused by limits that are not in force any more.
    usage = await getUsage(sql, userId);
    const kind = findExcess(usage, amounts);
    if (!kind) continue;
    await keepRefusal(deps, userId, usage);
    return { kind, usage };
  }
  throw new AppError("service_unavailable", { retry_after: 1 });
}

async function reserved(
  sql: Queryable,
  userId: string,
  usage: Usage,
  amounts: Partial<Amounts>,
  totals: Totals,
): Promise<Usage> {
  const { date: _, version, ...used } = totals;
  if (KINDS.some((kind) => crosses(usage.limits[kind], used[kind] - (amounts[kind] ?? 0), used[kind])))
    await notify(sql, "usage", userId);
  return { ...usage, used, version };
}

export function isRefused(outcome: object): outcome is Refused {
  return "kind" in outcome && "usage" in outcome;
}

/**
 * Settles a reservation once, in the caller's transaction: `committed`, at `actual` where that differs, or `released`.
 * Null when it had been settled, or given back, before.
 */
export async function settleUsage(deps: UsageDeps, sql: Queryable, input: Settlement): Promise<Settled | null> {
  const settled = await settleReservation(sql, input);
  if (!settled?.totals) return settled;
  const { returned, totals } = settled;
  // Before the transaction commits: once it has, nobody may be refused any more because of what came back. Of what it took
  // Redis hears nothing: it might not commit.
  if (KINDS.some((kind) => returned[kind] > 0)) await keepReturn(deps, input.userId, totals);
  await notify(sql, "usage", input.userId);
  return settled;
}

/** The refusal as the caller is told, and counted: what was used of what, when it comes back, which plan has more. */
export function renderRefusal({ metrics }: Pick<Deps, "metrics">, { kind, usage }: Refused): AppError {
  metrics.quotaRefusals.inc({ kind: USAGE_KINDS[kind] });
  return new AppError(kind === "textMessages" ? "RATE_LIMITED" : "voice_limit_reached", {
    kind: USAGE_KINDS[kind],
    limit: usage.limits[kind],
    used: usage.used[kind],
    reset_at: usage.resetAt.toISOString(),
    retry_after: Math.max(1, Math.ceil((usage.resetAt.getTime() - Date.now()) / 1000)),
    upgrade_to: usage.upgradeTo,
  });
}

/** A user's day as a device is told of it. */
export function renderUsageFrame({ used, limits, resetAt }: Usage) {
  const amount = (kind: UsageKind) => ({ used: used[kind], limit: limits[kind] });
  return {
    type: "usage" as const,
    text_messages: amount("textMessages"),
    voice_input_seconds: amount("voiceInputSeconds"),
    voice_output_seconds: amount("voiceOutputSeconds"),
    tts_characters: amount("ttsCharacters"),
    reset_at: resetAt.toISOString(),
  };
}

/** What a plan gives, as a device is told of it. */
export function renderPlanFrame({ plan, upgradeTo, limits, voices }: Usage, assistants: number) {
  return {
    type: "plan" as const,
    plan,
    upgrade_to: upgradeTo,
    limits: {
      assistants,
      text_messages: limits.textMessages,
      voice_input_seconds: limits.voiceInputSeconds,
      voice_output_seconds: limits.voiceOutputSeconds,
      tts_characters: limits.ttsCharacters,
    },
    voices,
  };
}

/** What the user has used today of what the plan gives; with `days`, also the days before, newest first. */
export async function readUsage(
  deps: Pick<Deps, "sql">,
  actor: Identity,
  input: { days: number | null },
): Promise<{ today: Usage; assistants: { used: number; limit: number }; history: DailyUse[] | null }> {
  const [today, assistants] = await Promise.all([
    getUsage(deps.sql, actor.userId),
    getAssistantUse(deps.sql, actor.userId),
  ]);
  const { userId } = actor;
  const history =
    input.days === null ? null : await listDailyUse(deps.sql, { userId, date: today.date, days: input.days });
  return { today, assistants, history };
}

/** A user's plan has changed, on whatever process; or everybody's may have (`EVERYONE`). */
export async function planChanged(deps: Pick<Deps, "redis">, userId: string): Promise<void> {
  await forgetPlan(deps.redis, userId);
}

/** Gives back what was reserved for work that can't be going on any more: its process died. Every process does it. */
export function startUsageSweeper(deps: UsageDeps & Pick<Deps, "log">) {
  return startLoop({
    name: "usage sweeper",
    debounceMs: 10,
    maxWaitMs: 100,
    resyncMs: SWEEP_MS,
    backoffMs: 1_000,
    log: deps.log,
    run: (signal) => sweepReservations(deps, signal),
  });
}

/** One that can't be given back must not keep the others from it. Throws after all the others. */
export async function sweepReservations(
  deps: UsageDeps & Pick<Deps, "log">,
  signal = new AbortController().signal,
): Promise<void> {
  let failure: unknown;
  let after: ExpiredReservation | null = null;
  while (!signal.aborted) {
    const found: ExpiredReservation[] = await listExpiredReservations(deps.sql, { after, limit: SWEEP_AT_ONCE });
    for (const { userId, key } of found) {
      try {
        const settled = await deps.sql.begin((sql) => settleUsage(deps, sql, { userId, key, status: "released" }));
        if (settled) deps.log.info({ user_id: userId }, "gave back what was reserved for lost work");
      } catch (error) {
        failure ??= error;
      }
    }
    after = found.at(-1) ?? null;
    if (found.length < SWEEP_AT_ONCE) break;
  }
  if (failure !== undefined) throw failure;
}

function findExcess({ used, limits }: Usage, amounts: Partial<Amounts>): UsageKind | undefined {
  return KINDS.find((kind) => used[kind] + (amounts[kind] ?? 0) > limits[kind] && (amounts[kind] ?? 0) > 0);
}

/** Whether a total has come to four fifths of its limit, or to the limit, just now. */
function crosses(limit: number, before: number, after: number): boolean {
  return [Math.ceil(limit * 0.8), limit].some((mark) => before < mark && after >= mark);
}
