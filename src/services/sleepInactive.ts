import { countInactive, sleepInactive } from "../db/workingSet.ts";
import type { Deps } from "../deps.ts";
import type { JobResult } from "./jobs.ts";

/**
 * Puts assistants of free plans that nobody has used for SLEEP_INACTIVE_DAYS to sleep, by level: all that are not asleep
 * and have nothing to do. The reconciler takes them out of the gateway's configuration; files and conversation stay, and
 * a message wakes them. It puts the unused to sleep after half an hour by itself (db/workingSet.ts), but only while
 * its gateway is connected: this holds whatever state that is in, and says how many there are.
 */
export async function sleepInactiveAssistants(
  { sql, config }: Pick<Deps, "sql" | "config">,
  signal: AbortSignal,
): Promise<JobResult> {
  const days = config.SLEEP_INACTIVE_DAYS;
  const details = { inactive: 0, put_to_sleep: 0, busy: 0 };
  for (const { gatewayId, inactive } of await countInactive(sql, days)) {
    signal.throwIfAborted();
    const { slept, busy } = await sql.begin((tx) => sleepInactive(tx, { gatewayId, days }));
    details.inactive += inactive;
    details.put_to_sleep += slept;
    details.busy += busy;
  }
  const summary = `${details.inactive} free assistants unused for ${days} days: ${details.put_to_sleep} put to sleep, ${details.busy} busy, the others slept`;
  return { ok: true, summary, details };
}
