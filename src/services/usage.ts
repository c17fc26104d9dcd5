import { getUsageToday, listDailyUse, type DailyUse, type UsageToday } from "../db/usage.ts";
import type { Deps } from "../deps.ts";
import type { Identity } from "./accessTokens.ts";

/** What the user has used today of what the plan gives; with `days`, also the days before, newest first. */
export async function readUsage(
  deps: Pick<Deps, "sql">,
  actor: Identity,
  input: { days: number | null },
): Promise<{ today: UsageToday; history: DailyUse[] | null }> {
  const today = await getUsageToday(deps.sql, actor.userId);
  if (input.days === null) return { today, history: null };
  return { today, history: await listDailyUse(deps.sql, { userId: actor.userId, date: today.date, days: input.days }) };
}
