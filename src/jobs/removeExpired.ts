import { removeExpired } from "../services/removeOld.ts";
import { runTimer } from "./runTimer.ts";

const help = `Removes what has run out: links in mails, devices long signed out, kept answers, exports, mails given up. By
reef-remove-expired.timer.

  scripts/bun src/jobs/removeExpired.ts

Exit code: 0 done (or at work already), 1 failed, 75 the database does not answer, 78 misconfigured.`;

await runTimer(
  {
    name: "remove-expired",
    scope: "deployment",
    limitMs: 1_800_000,
    work: (deps, lock) => removeExpired(deps, lock.signal),
  },
  help,
);
