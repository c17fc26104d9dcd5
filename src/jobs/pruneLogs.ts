import { pruneLogs } from "../services/removeOld.ts";
import { runTimer } from "./runTimer.ts";

const help = `Removes old records of the operation: runs of jobs and alarms that were over for 90 days, audited acts after
AUDIT_KEEP_DAYS. By reef-prune-logs.timer.

  scripts/bun src/jobs/pruneLogs.ts

Exit code: 0 done (or at work already), 1 failed, 75 the database does not answer, 78 misconfigured.`;

await runTimer(
  {
    name: "prune-logs",
    scope: "deployment",
    limitMs: 1_800_000,
    work: (deps, lock) => pruneLogs(deps, lock.signal),
  },
  help,
);
