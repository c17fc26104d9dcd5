import { verifyNewestBackup } from "../services/verifyBackup.ts";
import { runTimer } from "./runTimer.ts";

const help = `Restores the newest backup for real, into a Postgres and a gateway of its own, and writes a receipt (docs/backups.md).

  scripts/bun src/jobs/verifyBackup.ts

By hand, with what it does line by line: scripts/bun scripts/drill.ts
Exit code: 0 it is good, 1 it is not or could not be tried, 75 the database does not answer, 78 misconfigured.`;

const HOURS_4 = 4 * 3_600_000;

await runTimer({ name: "verify-backup", scope: "host", limitMs: HOURS_4, work: verifyNewestBackup }, help);
