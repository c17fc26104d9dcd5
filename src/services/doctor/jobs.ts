import { listOpenAlarms } from "../../db/alarms.ts";
import { findDeployedAt } from "../../db/deployment.ts";
import { listNewestRuns } from "../../db/jobRuns.ts";
import { renderAge } from "../../lib/seconds.ts";
import { describeBackupAge, readBackupState } from "../backupState.ts";
import { readUnit } from "../unitState.ts";
import {
  bad,
  NO_SYSTEMD,
  ok,
  onHost,
  onSystem,
  skip,
  warn,
  type Check,
  type Result,
  type Scene,
  type SystemScene,
} from "./check.ts";

const HOUR_MS = 3_600_000;
/** Every timer's job, and how old its last success may be: its interval and a little for one that was delayed. */
export const JOBS: Record<string, number> = {
  backup: 26 * HOUR_MS,
  "verify-backup": 8 * 24 * HOUR_MS,
  "check-health": HOUR_MS / 2,
  "sleep-inactive": 8 * 24 * HOUR_MS,
  "remove-expired": 26 * HOUR_MS,
  "reconcile-billing": 13 * HOUR_MS,
  "run-canary": 3 * HOUR_MS,
  "prune-logs": 26 * HOUR_MS,
};
const NO_TIMERS = "a trial runs no timers";

async function checkTimer({ host, place }: Scene, job: string): Promise<Result> {
  if (!place.hasSystemd) return skip(NO_SYSTEMD);
  if (!place.isInstalled) return skip(NO_TIMERS);
  const unit = `reef-${job}.timer`;
  const state = await readUnit(host, unit, ["ActiveState", "UnitFileState", "NextElapseUSecRealtime"]);
  if (!state) return bad(`there is no ${unit}`, "sudo scripts/setup.sh installs it");
  const command = `systemctl enable --now ${unit}`;
  const enable = { does: command, apply: () => systemctl(host, ["enable", "--now", unit]) };
  if (state.UnitFileState !== "enabled") return bad(`${state.UnitFileState || "not enabled"}`, command, enable);
  if (state.ActiveState !== "active") return bad(`enabled, but ${state.ActiveState}`, command, enable);
  return ok(`next ${state.NextElapseUSecRealtime || "when the one that runs has ended"}`);
}

async function systemctl(host: Scene["host"], args: string[]): Promise<void> {
  const ran = await host.run(["systemctl", ...args], { ms: 30_000 });
  if (ran?.code !== 0) throw new Error(ran ? ran.err.trim().slice(0, 200) : "there is no systemctl");
}

async function checkJob({ deps, place }: SystemScene, job: string, maxAgeMs: number): Promise<Result> {
  if (place.isTrial) return skip(NO_TIMERS);
  const newest = (await listNewestRuns(deps.sql)).find((run) => run.job === job);
  const start = `systemctl start reef-${job}.service; journalctl -u reef-${job} -n 50`;
  if (!newest?.lastOkAt) {
    const since = (await findDeployedAt(deps.sql)) ?? new Date();
    const age = Date.now() - since.getTime();
    if (newest) return bad(`never went well: ${newest.last.summary ?? newest.last.outcome}`, start);
    return age > maxAgeMs ? bad(`has never run, ${renderAge(age)} after the start`, start) : ok("not due yet");
  }
  const age = Date.now() - newest.lastOkAt.getTime();
  const found = `went well ${renderAge(age)} ago`;
  if (age > maxAgeMs) return bad(`${found}, more than ${renderAge(maxAgeMs)}`, start);
  return newest.last.outcome === "failed"
    ? warn(`${found}, failed since: ${newest.last.summary ?? ""}`, start)
    : ok(found);
}

async function checkFailedUnits({ host, place }: Scene): Promise<Result> {
  if (!place.hasSystemd) return skip(NO_SYSTEMD);
  const ran = await host.run(["systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "reef-*"]);
  if (ran?.code !== 0) throw new Error("systemctl does not tell");
  const units = ran.out.split("\n").flatMap((line) => line.trim().split(/\s+/)[0] || []);
  if (units.length === 0) return ok("none");
  const command = `systemctl reset-failed ${units.join(" ")}`;
  const fix = `journalctl -u ${units[0]} -n 50; then ${command}`;
  return bad(`failed: ${units.join(", ")}`, fix, {
    does: command,
    apply: () => systemctl(host, ["reset-failed", ...units]),
  });
}

async function checkOpenAlarms({ deps }: SystemScene): Promise<Result> {
  const open = await listOpenAlarms(deps.sql);
  if (open.length === 0) return ok("none");
  const critical = open.filter(({ severity }) => severity === "critical");
  const found = open.map(({ summary }) => summary).join("; ");
  const fix = "each names what to do; it ends by itself when its cause has";
  return critical.length > 0 ? bad(found, fix) : warn(found, fix);
}

export const JOB_CHECKS: readonly Check[] = [
  ...Object.keys(JOBS).map((job) =>
    onHost(`jobs.timer_${job.replaceAll("-", "_")}`, (scene) => checkTimer(scene, job)),
  ),
  // The newest backup and drill have checks of their own.
  ...Object.entries(JOBS)
    .filter(([job]) => job !== "backup" && job !== "verify-backup")
    .map(([job, maxAgeMs]) => onSystem(`jobs.${job.replaceAll("-", "_")}`, (scene) => checkJob(scene, job, maxAgeMs))),
  onHost("jobs.failed_units", checkFailedUnits),
  onSystem("jobs.alarms", checkOpenAlarms),
];

async function checkBackup({ deps, place }: SystemScene): Promise<Result> {
  if (place.isTrial) return skip(NO_TIMERS);
  const state = await readBackupState(deps);
  const fix = "reef backup makes one, on the host that has the gateway; docs/runbooks/backup-old.md";
  if (state.tooOld) return bad(describeBackupAge(state), fix);
  if (state.second === "failed") return warn("the newest backup did not come to the second place", fix);
  return ok(state.oldest.exists ? describeBackupAge(state) : "not due yet");
}

export const BACKUP: readonly Check[] = [
  onSystem("backup.age", checkBackup),
  onSystem("backup.drill", async (scene) => checkJob(scene, "verify-backup", JOBS["verify-backup"]!)),
];
