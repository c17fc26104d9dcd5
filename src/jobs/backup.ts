import { makeBackup } from "../services/backup.ts";
import { runTimer } from "./runTimer.ts";

const help = `Backs up the database, the gateway's files and the secrets of this machine (docs/backups.md).

  scripts/bun src/jobs/backup.ts

Writes a folder into BACKUP_DIR (${"/var/backups/reef"}), sends it to RESTIC_REPOSITORY, and removes what the retention
(7 daily, 4 weekly, 6 monthly) no longer keeps. Exit code: 0 done, 1 failed (a backup here may be whole all the same: the
line says so), 75 the database does not answer, 78 misconfigured.`;

const HOURS_4 = 4 * 3_600_000;

await runTimer({ name: "backup", scope: "host", limitMs: HOURS_4, work: makeBackup }, help);
