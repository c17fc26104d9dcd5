import type { Host } from "../clients/host.ts";
import { readCertificate } from "../clients/hostNetwork.ts";
import type { Severity } from "../db/alarms.ts";
import { countStaleLeases } from "../db/deployment.ts";
import type { Deps } from "../deps.ts";
import { sleep, withDeadline } from "../lib/retry.ts";
import { endAlarm, raiseAlarm } from "./alarms.ts";
import { describeBackupAge, readBackupState } from "./backupState.ts";
import type { Place } from "./doctor/place.ts";

/*
 * What the health check only tells of, since nothing here could prove or mend it: each has an alarm of its own, which
 * begins and ends with what is seen. What can't be looked at leaves its alarm as it is.
 */

type WatchDeps = Pick<Deps, "sql" | "redis" | "config" | "log" | "clock" | "alarmSender">;

/** What is wrong; null: nothing; undefined: it can't be looked at. */
type Trouble = { severity: Severity; summary: string } | null | undefined;
interface Watch {
  key: string;
  look: () => Promise<Trouble>;
}

const LOOK_MS = 45_000;
const DAY_MS = 86_400_000;
export const CERTIFICATE_DAYS = 14;
/** Of what a disk has; beyond the second it is a matter of hours. */
export const ROOM = { warn: 0.1, bad: 0.04 };
const LEASE_GRACE_MS = 120_000;
const READY_TRIES = 3;

/** Folders that must not run full, by what lies there. */
export function listFolders(config: Pick<Deps["config"], "OPENCLAW_GATEWAY_DIR" | "BACKUP_DIR">): string[] {
  return ["/", "/var/log", "/tmp", config.OPENCLAW_GATEWAY_DIR, config.BACKUP_DIR];
}

/** Looks at all of it at once. Returns how many are in trouble and what the alarms say, in the order of their keys. */
export async function watchAll(
  deps: WatchDeps,
  host: Host,
  place: Place,
  options: { pauseMs?: number; tlsPort?: number } = {},
): Promise<string[]> {
  const watches = [
    { key: "redis", look: () => lookAtRedis(deps) },
    { key: "leases", look: () => lookAtLeases(deps) },
    ...(place.isTrial ? [] : [{ key: "backup:age", look: () => lookAtBackup(deps) }]),
    ...(place.domain === null || !place.hasNginx
      ? []
      : [{ key: "certificate", look: () => lookAtCertificate(place.domain!, options.tlsPort ?? 443) }]),
    ...place.api.map(({ name, url }) => ({
      key: `api:${name}`,
      look: () => lookAtApi(name, url, options.pauseMs ?? 10_000),
    })),
    ...listFolders(deps.config).map((folder) => ({ key: `disk:${folder}`, look: () => lookAtDisk(host, folder) })),
  ];
  const said = await Promise.all(watches.map((watch) => settle(deps, watch)));
  return said.filter((line) => line !== null);
}

async function settle(deps: WatchDeps, { key, look }: Watch): Promise<string | null> {
  let trouble: Trouble;
  try {
    trouble = await withDeadline(look(), LOOK_MS, key);
  } catch (err) {
    deps.log.warn({ err, watch: key }, "could not be looked at");
    return `${key} could not be looked at`;
  }
  if (trouble === null) await endAlarm(deps, key, "here");
  if (trouble) await raiseAlarm(deps, { key, ...trouble });
  return trouble?.summary ?? null;
}

async function lookAtRedis({ redis }: WatchDeps): Promise<Trouble> {
  // The client fails fast; it may just be connecting.
  for (let tries = 0; tries < 10; tries++) {
    if (
      await redis.ping().then(
        () => true,
        () => false,
      )
    )
      return null;
    await sleep(500);
  }
  return { severity: "critical", summary: "Redis does not answer: chats go on, slower; limits count per process" };
}

async function lookAtLeases({ sql }: WatchDeps): Promise<Trouble> {
  const stale = await countStaleLeases(sql, LEASE_GRACE_MS);
  if (stale === 0) return null;
  const summary = `${stale} running answer(s) belong to nobody: no API process takes them up (docs/runbooks/api-down.md)`;
  return { severity: "critical", summary };
}

async function lookAtBackup(deps: WatchDeps): Promise<Trouble> {
  const state = await readBackupState(deps);
  if (!state.tooOld) return null;
  const what = describeBackupAge(state);
  return { severity: "critical", summary: `${what}: reef backup makes one (docs/runbooks/backup-old.md)` };
}

async function lookAtCertificate(name: string, port: number): Promise<Trouble> {
  const shown = await readCertificate({ address: "127.0.0.1", port, name });
  if (shown === null)
    return { severity: "critical", summary: `nobody speaks TLS on port ${port}: systemctl status nginx says why` };
  const days = Math.floor((shown.validTo.getTime() - Date.now()) / DAY_MS);
  if (days >= CERTIFICATE_DAYS) return null;
  const summary = `the certificate of ${name} ends in ${days} day(s): certbot renew (docs/runbooks/certificate.md)`;
  return { severity: days < 3 ? "critical" : "warning", summary };
}

/** A process that waits for the database or the gateway only is not what is broken. */
async function lookAtApi(name: string, url: string, pauseMs: number): Promise<Trouble> {
  let why = "";
  for (let tries = 0; tries < READY_TRIES; tries++) {
    if (tries > 0) await sleep(pauseMs);
    try {
      const answer = await fetch(`${url}/readyz`, { signal: AbortSignal.timeout(5_000) });
      const { waiting_for: waiting = [] } = (await answer.json().catch(() => ({}))) as { waiting_for?: string[] };
      if (answer.ok || (waiting.length > 0 && waiting.every((one) => one === "db" || one.startsWith("gateway"))))
        return null;
      why = waiting.length > 0 ? `waits for ${waiting.join(", ")}` : `answers ${answer.status}`;
    } catch {
      why = "does not answer";
    }
  }
  return { severity: "critical", summary: `${name} ${why} (docs/runbooks/api-down.md)` };
}

async function lookAtDisk(host: Host, folder: string): Promise<Trouble> {
  const room = await host.room(folder);
  // A folder that is gone is no disk that runs full.
  if (room === null) return (await host.stand(folder)) === null ? null : undefined;
  const left = leftOf(room);
  if (left >= ROOM.warn) return null;
  const summary = `the disk of ${folder} has ${Math.floor(left * 100)} % left (docs/runbooks/disk-full.md)`;
  return { severity: left < ROOM.bad ? "critical" : "warning", summary };
}

/** What is left of a disk, 0 to 1: of its bytes or of its inodes, whichever is less. */
export function leftOf(room: { bytes: number; freeBytes: number; inodes: number; freeInodes: number }): number {
  const share = (free: number, all: number) => (all > 0 ? free / all : 1);
  return Math.min(share(room.freeBytes, room.bytes), share(room.freeInodes, room.inodes));
}
