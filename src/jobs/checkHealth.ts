import { createHost } from "../clients/host.ts";
import { checkServer, databaseIsDown } from "../services/healthCheck.ts";
import { runTimer } from "./runTimer.ts";

const help = `Restarts the gateway when it is proven broken, and alarms of what only a person can mend. Every five minutes by
reef-check-health.timer.

  scripts/bun src/jobs/checkHealth.ts

A gateway is broken when three authenticated calls in a row, over half a minute and more, are refused or find it neither
answering nor at work; one that is merely busy is left alone. It is restarted through a file in GATEWAY_RESTART_DIR, at
most 3 times an hour and 6 a day. Told of: API processes that are not ready, Redis, Postgres, disks, answers that nobody
takes up, the age of the newest backup, the certificate; and again what could not be told before.
Exit code: 0 looked at everything, 1 it failed, 75 the database does not answer (the operators were told), 78 misconfigured.`;

const host = createHost();
await runTimer(
  { name: "check-health", scope: "host", limitMs: 270_000, work: (deps, lock) => checkServer(deps, host, lock) },
  help,
  (deps) => databaseIsDown(deps, host),
);
