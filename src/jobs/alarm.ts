import { hostname } from "node:os";
import { createAlarmSender, PartlyTold } from "../clients/alarmSender.ts";
import { createMailer } from "../clients/mailer.ts";
import { ConfigError, environmentSchema, loadConfig, parse, type Config } from "../config.ts";
import { createDeps } from "../deps.ts";
import { createLog } from "../lib/log.ts";
import { withDeadline } from "../lib/retry.ts";
import { endAlarm, raiseUnitAlarm, renderUnitAlarm } from "../services/alarms.ts";

const help = `Raises the alarm that a systemd unit has failed, or ends it. Called by the units reef-alarm@ and reef-recovered@.

  scripts/bun src/jobs/alarm.ts reef-backup.service            it has failed
  scripts/bun src/jobs/alarm.ts --over reef-api@1.service      it serves again

A job that has told of its failure itself is not told of twice. Without a database, or with a configuration that is
refused, the operators are told all the same.
Exit code: 0 recorded or told, 1 neither, 2 no unit given.`;

/** Longer than a database that answers takes, and shorter than systemd waits (reef-alarm@.service). */
const RECORD_MS = 20_000;

/** What telling needs, where the rest of the configuration is refused: that may be what the alarm is about. */
const wayOut = environmentSchema.pick({
  ALARM_WEBHOOK_URL: true,
  ALARM_EMAIL: true,
  SMTP_URL: true,
  MAIL_DIR: true,
  MAIL_FROM: true,
  NODE_ENV: true,
});

async function main(words: string[]): Promise<number> {
  if (words.includes("--help") || words.includes("-h")) {
    console.log(help);
    return 0;
  }
  const over = words[0] === "--over";
  const unit = words[over ? 1 : 0];
  if (unit === undefined) {
    console.error("alarm: which unit? See --help.");
    return 2;
  }
  const config = readConfig();
  if (config !== null && (await record(config, unit, over))) return 0;
  return over ? 1 : tellUnrecorded(unit);
}

/** False: the database does not answer. */
async function record(config: Config, unit: string, over: boolean): Promise<boolean> {
  const deps = createDeps({ ...config, DATABASE_POOL: 2 }, createLog(config.LOG_LEVEL));
  try {
    const recorded = over ? endAlarm(deps, renderUnitAlarm(unit).key, "here") : raiseUnitAlarm(deps, unit);
    await withDeadline(recorded, RECORD_MS, "recording the alarm");
    return true;
  } catch (err) {
    deps.log.error({ err, unit }, "an alarm could not be recorded");
    return false;
  } finally {
    await deps.close();
  }
}

async function tellUnrecorded(unit: string): Promise<number> {
  const config = parse(wayOut, process.env);
  const sender = createAlarmSender(config, createMailer(config, createLog("error")));
  const since = new Date().toISOString();
  const alarm = { ...renderUnitAlarm(unit), status: "firing" as const, host: hostname(), since, count: 1 };
  await sender.send(alarm).catch((error: unknown) => {
    if (!(error instanceof PartlyTold)) throw error;
    console.error(`alarm: one way of telling is broken: ${error.message}`);
  });
  return sender.isConfigured ? 0 : 1;
}

function readConfig(): Config | null {
  try {
    return loadConfig(process.env);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    console.error(`alarm: ${error.message}`);
    return null;
  }
}

process.exit(
  await main(process.argv.slice(2)).catch((error: unknown) => {
    console.error(`alarm: nobody could be told: ${error instanceof Error ? error.message : String(error)}`);
    return 1;
  }),
);
