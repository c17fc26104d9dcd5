import { findBackupRuns } from "../db/jobRuns.ts";
import type { Deps } from "../deps.ts";
import { endAlarm, raiseAlarm } from "./alarms.ts";

/** How the backups stand, as the runs of their jobs tell: the API can't read their folder. */
export interface BackupState {
  /** When the newest backup that is whole on its machine was begun, that is how old what is in it is; null: there never was one. */
  newestAt: Date | null;
  ageSeconds: number | null;
  /** Older than BACKUP_MAX_AGE_MS, or there is none. */
  tooOld: boolean;
  bytes: number | null;
  /** The second place: "ok", "failed", "none" where none is configured. */
  second: string | null;
  /** The newest drill that restored one. */
  verifiedAt: Date | null;
  /** The newest drill; null: there never was one. */
  lastDrill: { at: Date; ok: boolean } | null;
}

/** Reads how the backups stand. For /metrics (reef_backup_age_seconds) and the doctor. */
export async function readBackupState(deps: Pick<Deps, "sql" | "config" | "clock">): Promise<BackupState> {
  const { backup, verified, drill } = await findBackupRuns(deps.sql);
  const newestAt = backup?.startedAt ?? null;
  const ageMs = newestAt === null ? null : Math.max(0, deps.clock.now() - newestAt.getTime());
  return {
    newestAt,
    ageSeconds: ageMs === null ? null : ageMs / 1000,
    tooOld: ageMs === null || ageMs > deps.config.BACKUP_MAX_AGE_MS,
    bytes: (backup?.details["bytes"] as number | undefined) ?? null,
    second: (backup?.details["second"] as string | undefined) ?? null,
    verifiedAt: verified?.finishedAt ?? null,
    lastDrill: drill?.finishedAt ? { at: drill.finishedAt, ok: drill.outcome === "ok" } : null,
  };
}

/**
 * Raises the alarm `backup:old` when the newest backup is too old, and ends it when one came. For a job that runs often: it
 * tells also when the backup's own timer is dead.
 */
export async function watchBackupAge(
  deps: Pick<Deps, "sql" | "config" | "clock" | "log" | "alarmSender">,
): Promise<BackupState> {
  const state = await readBackupState(deps);
  const key = "backup:old";
  const age =
    state.ageSeconds === null ? "there is none" : `the newest is ${Math.round(state.ageSeconds / 3600)} hours old`;
  if (state.tooOld)
    await raiseAlarm(deps, {
      key,
      severity: "critical",
      summary: `No recent backup: ${age}. systemctl status reef-backup`,
    });
  else await endAlarm(deps, key);
  return state;
}
