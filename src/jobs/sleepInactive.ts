import { sleepInactiveAssistants } from "../services/sleepInactive.ts";
import { runTimer } from "./runTimer.ts";

const help = `Puts assistants of free plans that were unused for SLEEP_INACTIVE_DAYS to sleep. A message wakes them. By reef-sleep-inactive.timer.

  scripts/bun src/jobs/sleepInactive.ts

Exit code: 0 done (or at work already), 1 failed, 75 the database does not answer, 78 misconfigured.`;

await runTimer(
  {
    name: "sleep-inactive",
    scope: "deployment",
    limitMs: 600_000,
    work: (deps, lock) => sleepInactiveAssistants(deps, lock.signal),
  },
  help,
);
