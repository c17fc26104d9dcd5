import { findDeployedAt } from "../db/deployment.ts";
import { listGatewayBackups } from "../db/gateways.ts";
import { findBackupRuns } from "../db/jobRuns.ts";
import type { Deps } from "../deps.ts";
import { renderAge } from "../lib/seconds.ts";

/** How the backups stand, as the runs of their jobs tell: the API can't read their folder. */
export interface BackupState {
  /**
   * What is worst off, of the database and of each gateway's folder (every host backs up its own): when the newest backup
   * of it that is whole on its machine was begun, that is how old what is in it is; `exists` false: there never was one,
   * and it is here since then.
   */
  oldest: { gatewayId: string | null; since: Date; exists: boolean };
  ageMs: number;
  /** Older than BACKUP_MAX_AGE_MS, or as long without one. */
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
  const now = deps.clock.now();
  const since = backup?.startedAt ?? (await findDeployedAt(deps.sql)) ?? new Date(now);
  let oldest: BackupState["oldest"] = { gatewayId: null, since, exists: backup !== null };
  for (const gateway of await listGatewayBackups(deps.sql)) if (gateway.since < oldest.since) oldest = gateway;
  const ageMs = Math.max(0, now - oldest.since.getTime());
  return {
    oldest,
    ageMs,
    tooOld: ageMs > deps.config.BACKUP_MAX_AGE_MS,
    bytes: (backup?.details["bytes"] as number | undefined) ?? null,
    second: (backup?.details["second"] as string | undefined) ?? null,
    verifiedAt: verified?.finishedAt ?? null,
    lastDrill: drill?.finishedAt ? { at: drill.finishedAt, ok: drill.outcome === "ok" } : null,
  };
}

/** "the newest backup of gateway eu is 31 h old", without a full stop. */
export function describeBackupAge({ oldest, ageMs }: Pick<BackupState, "oldest" | "ageMs">): string {
  const whose = oldest.gatewayId === null ? "" : ` of gateway ${oldest.gatewayId}`;
  const age = renderAge(ageMs);
  return oldest.exists
    ? `the newest backup${whose} is ${age} old`
    : `there is no backup${whose}, ${age} after the start`;
}
