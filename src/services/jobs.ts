import { hostname } from "node:os";
import { finishJobRun, insertJobRun, type JobDetails, type JobOutcome } from "../db/jobRuns.ts";
import { withAdvisoryLock, type HeldLock } from "../db/locks.ts";
import type { Deps } from "../deps.ts";
import { describeError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import { endAlarm, raiseAlarm } from "./alarms.ts";

/** What a job's work came to: `summary` is one line for the journal and `job_runs`, without any person's text. */
export interface JobResult {
  ok: boolean;
  summary: string;
  details?: JobDetails;
}

/** One job of a timer. */
export interface Job {
  /** As its timer is called without "reef-": "remove-expired". */
  name: string;
  /** "deployment": one at a time anywhere. "host": one at a time on each machine, since it works at the machine's files. */
  scope: "deployment" | "host";
  /** The longest it may take, in milliseconds: then its lock is lost and `signal` aborts. */
  limitMs: number;
  work(deps: Deps, lock: HeldLock): Promise<JobResult>;
}

/**
 * Runs a job under its lock and records the run in `job_runs`. "skipped": it is at work already. A failure raises the
 * alarm `job:<name>`, a success ends it. Rejects only when the database does not answer.
 */
export async function runJob(deps: Deps, job: Job): Promise<{ outcome: JobOutcome; summary: string }> {
  const host = hostname();
  const id = newId();
  const key = job.scope === "host" ? `job:${job.name}:${host}` : `job:${job.name}`;
  let hasBegun = false;
  const run = async (lock: HeldLock): Promise<JobResult> => {
    await insertJobRun(deps.sql, { id, job: job.name, host });
    hasBegun = true;
    return job.work(deps, lock).catch((err: unknown) => {
      deps.log.error({ err, job: job.name }, "a job failed");
      return { ok: false, summary: sayFailure(err) };
    });
  };
  const result = await withAdvisoryLock(deps.sql, key, run, { workMs: job.limitMs }).catch(
    (err: unknown): JobResult => {
      if (!hasBegun) throw err;
      // What was done is done, but another run may have begun beside it.
      deps.log.error({ err, job: job.name }, "a job lost its lock");
      return {
        ok: false,
        summary: `it lost its lock: it may take ${job.limitMs / 60_000} min, and Postgres must answer`,
      };
    },
  );
  if (!result) return { outcome: "skipped", summary: "it is at work already" };
  const outcome = result.ok ? "ok" : "failed";
  await finishJobRun(deps.sql, { id, outcome, summary: result.summary, details: result.details ?? {} });
  const alarm = `job:${job.name}`;
  if (result.ok) await endAlarm(deps, alarm, job.scope === "host" ? "here" : "anywhere");
  else await raiseAlarm(deps, { key: alarm, severity: "warning", summary: `${job.name} failed: ${result.summary}` });
  return { outcome, summary: result.summary };
}

/** Our own sentences are for operators; those of Postgres or of a file system may quote a person's text or file. */
function sayFailure(error: unknown): string {
  const isOurs = error instanceof Error && error.constructor === Error && !("code" in error);
  return isOurs ? error.message.slice(0, 300) : `${describeError(error) || "it failed"} (the log says more)`;
}
