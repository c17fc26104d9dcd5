import { hostname } from "node:os";
import { createAlarmSender } from "../clients/alarmSender.ts";
import { createMailer } from "../clients/mailer.ts";
import { ConfigError, loadConfig, type Config } from "../config.ts";
import { createDeps } from "../deps.ts";
import { createLog } from "../lib/log.ts";
import { withDeadline } from "../lib/retry.ts";
import { raiseAlarm } from "../services/alarms.ts";

const help = `Raises the alarm that a systemd unit has failed. Called by OnFailure=reef-alarm@%n.service.

  scripts/bun src/jobs/alarm.ts reef-backup.service

A job that has told of its failure itself is not told of twice. Without a database the operators are told all the same.
Exit code: 0 recorded or told, 1 neither, 78 misconfigured.`;

/** A job's own alarm has the same key, so that one failure is one alarm. */
function keyOf(unit: string): string {
  const job = /^reef-([a-z-]+)\.service$/.exec(unit)?.[1];
  return job === undefined ? `unit:${unit.replace(/\.service$/, "")}` : `job:${job}`;
}

async function main(): Promise<number> {
  const [unit = "--help"] = process.argv.slice(2);
  if (unit === "--help" || unit === "-h") {
    console.log(help);
    return 0;
  }
  const config = readConfig();
  const log = createLog(config.LOG_LEVEL);
  const alarm = {
    key: keyOf(unit),
    severity: unit.includes("@") ? ("critical" as const) : ("warning" as const),
    summary: `${unit} has failed on ${hostname()}: journalctl -u ${unit} says why`,
  };
  const deps = createDeps({ ...config, DATABASE_POOL: 2 }, log);
  try {
    await withDeadline(raiseAlarm(deps, alarm), 20_000, "recording the alarm");
    return 0;
  } catch {
    // The database may be what has failed.
    const sender = createAlarmSender(config, createMailer(config, log));
    const now = new Date().toISOString();
    await sender.send({ ...alarm, status: "firing", host: hostname(), since: now, count: 1 });
    return sender.isConfigured ? 0 : 1;
  } finally {
    await deps.close();
  }
}

function readConfig(): Config {
  try {
    return loadConfig(process.env);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    console.error(`alarm: ${error.message}`);
    process.exit(78);
  }
}

process.exit(await main().catch(() => 1));
