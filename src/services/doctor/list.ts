import { hostname } from "node:os";
import { BILLING } from "./billings.ts";
import { CHAT } from "./chats.ts";
import { bad, ok, onSystem, skip, warn, type Check, type Result, type SystemScene } from "./check.ts";
import { DATABASE } from "./database.ts";
import { GATEWAY } from "./gateways.ts";
import { BACKUP, JOB_CHECKS } from "./jobs.ts";
import { MACHINE } from "./machine.ts";
import { NETWORK } from "./network.ts";
import { PERMISSIONS } from "./permissions.ts";
import { REDIS } from "./redis.ts";
import { SETTINGS } from "./settings.ts";
import { VERSIONS } from "./versions.ts";
import { VOICE } from "./voices.ts";

async function checkWays({ deps: { alarmSender, config }, place, options }: SystemScene): Promise<Result> {
  const fix = "ALARM_WEBHOOK_URL or ALARM_EMAIL in /etc/reef/reef.env";
  if (!alarmSender.isConfigured)
    return place.isTrial ? skip("a trial wakes nobody") : bad("nobody is told of alarms", fix);
  const ways = [...(config.ALARM_WEBHOOK_URL ? ["webhook"] : []), ...(config.ALARM_EMAIL ? ["mail"] : [])].join(
    " and ",
  );
  if (!options.alarm) return ok(`by ${ways}; --alarm sends one to try`);
  const message = {
    key: "doctor:test",
    severity: "warning" as const,
    host: hostname(),
    since: new Date().toISOString(),
    count: 1,
  };
  try {
    await alarmSender.send({ ...message, status: "firing", summary: "this is only a test by reef doctor --alarm" });
    return ok(`a test alarm was taken by ${ways}`);
  } catch (error) {
    return bad(`a test alarm was not taken by ${ways}: ${error instanceof Error ? error.message : "it failed"}`, fix);
  }
}

async function checkCopies({ deps: { config }, place }: SystemScene): Promise<Result> {
  if (place.isTrial) return skip("a trial makes no backups");
  const file = "in /etc/reef/backup.env";
  // The backup's own settings are in a file that only root and its unit read.
  if (config.BACKUP_AGE_RECIPIENTS.length === 0)
    return warn("no BACKUP_AGE_RECIPIENTS here: secrets can't be in a backup", `an age1… key ${file}`);
  if (config.RESTIC_REPOSITORY === undefined)
    return warn("only on this machine: it burns with it", `RESTIC_REPOSITORY ${file}`);
  return ok("here and in a second place, secrets encrypted");
}

/** The deployment checklist. */
export const CHECKS: readonly Check[] = [
  ...VERSIONS,
  ...SETTINGS,
  ...NETWORK,
  ...PERMISSIONS,
  ...DATABASE,
  ...REDIS,
  ...GATEWAY,
  ...CHAT,
  ...VOICE,
  ...BILLING,
  ...JOB_CHECKS,
  ...BACKUP,
  onSystem("backup.copies", checkCopies),
  ...MACHINE,
  onSystem("alarms.ways", checkWays, { limitMs: 30_000 }),
];
