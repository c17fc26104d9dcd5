import {
  deleteDeadMails,
  deleteOldAlarms,
  deleteOldAudits,
  deleteOldExports,
  deleteOldIdempotencyKeys,
  deleteOldJobRuns,
  deleteOldSessions,
  deleteOldTokens,
} from "../db/oldRows.ts";
import type { Deps } from "../deps.ts";
import type { JobResult } from "./jobs.ts";

const BATCH = 1_000;
const SESSION_DAYS = 90;
const DEAD_MAIL_DAYS = 30;
const OPERATION_DAYS = 90;

type RemoveDeps = Pick<Deps, "sql" | "config">;
/** Deletes one batch; how many rows it were. */
type Deletion = (limit: number) => Promise<number>;

/**
 * Removes what has run out: links in mails, devices long signed out, kept answers, exports, mails given up. Stripe's
 * events are forgotten by the inbox, sent mails by the sender. Rejects when `signal` aborts; what was done stays done.
 */
export function removeExpired({ sql }: RemoveDeps, signal: AbortSignal, batch = BATCH): Promise<JobResult> {
  return removeAll(signal, batch, {
    one_time_tokens: (limit) => deleteOldTokens(sql, { limit }),
    sessions: (limit) => deleteOldSessions(sql, { limit, days: SESSION_DAYS }),
    idempotency_keys: (limit) => deleteOldIdempotencyKeys(sql, { limit }),
    exports: (limit) => deleteOldExports(sql, { limit }),
    dead_mails: (limit) => deleteDeadMails(sql, { limit, days: DEAD_MAIL_DAYS }),
  });
}

/** Removes old records of the operation: runs of jobs, alarms that are over, and (after AUDIT_KEEP_DAYS) audited acts. */
export function pruneLogs({ sql, config }: RemoveDeps, signal: AbortSignal, batch = BATCH): Promise<JobResult> {
  return removeAll(signal, batch, {
    job_runs: (limit) => deleteOldJobRuns(sql, { limit, days: OPERATION_DAYS }),
    alarms: (limit) => deleteOldAlarms(sql, { limit, days: OPERATION_DAYS }),
    audit_log: (limit) => deleteOldAudits(sql, { limit, days: config.AUDIT_KEEP_DAYS }),
  });
}

async function removeAll(signal: AbortSignal, batch: number, deletions: Record<string, Deletion>): Promise<JobResult> {
  const details: Record<string, number> = {};
  for (const [name, remove] of Object.entries(deletions)) {
    let removed = 0;
    for (let last = batch; last === batch; removed += last) {
      signal.throwIfAborted();
      last = await remove(batch);
    }
    details[name] = removed;
  }
  const parts = Object.entries(details).map(([name, count]) => `${count} ${name}`);
  return { ok: true, summary: `removed ${parts.join(", ")}`, details };
}
