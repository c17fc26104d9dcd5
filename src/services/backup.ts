import { join } from "node:path";
import { z } from "zod";
import { encryptFolder, packFolders } from "../clients/archives.ts";
import { createBackupFolder, nameBackup, sumFiles, type BackupFolder } from "../clients/backupFolder.ts";
import { copyGateway } from "../clients/gatewayCopy.ts";
import { dumpDatabase } from "../clients/postgresTools.ts";
import { createRestic } from "../clients/restic.ts";
import { isFile, isFolder, makeFolder, writeText } from "../clients/ownFiles.ts";
import type { HeldLock } from "../db/locks.ts";
import { withSnapshot } from "../db/snapshot.ts";
import type { Deps } from "../deps.ts";
import { newId } from "../lib/ids.ts";
import { chooseDoomed } from "../lib/retention.ts";
import { recordErasures } from "./erasures.ts";
import { hasGatewayHere } from "./gatewayCare.ts";
import type { JobResult } from "./jobs.ts";

type BackupDeps = Pick<Deps, "sql" | "config" | "log" | "clock">;

/*
 * One backup is a folder `<BACKUP_DIR>/<time>-<id>/`, written as `….partial` and renamed when it is whole and on the disk.
 * The database comes first, then the files: what an assistant knows is then never less than what its conversation shows, an
 * answer that was being written is finished from the gateway's history, and files without a row are not restored. The
 * other way round people would read answers that their assistant has forgotten. Who is erased is listed last of all.
 */

export const manifestSchema = z.object({
  format: z.literal(1),
  name: z.string(),
  startedAt: z.string(),
  finishedAt: z.string(),
  release: z.string(),
  /** The newest migration in it. */
  schema: z.string(),
  /** The server's version, 150020 for 15.20. */
  postgres: z.number(),
  /** Rows by table, in the very snapshot of database.dump. */
  rows: z.record(z.string(), z.number()),
  gateways: z.array(
    z.object({
      id: z.string(),
      /** Hash of each agent's workspace (clients/gatewayCopy.ts). */
      workspaces: z.record(z.string(), z.string()),
      /** Databases of agents that SQLite could not read; copied as they are. */
      damaged: z.array(z.string()),
      /** Files of workspaces that are not in it, with the reason (clients/workspaceFiles.ts). */
      leftOut: z.array(z.string()).default([]),
    }),
  ),
  secrets: z.string(),
  /** What an operator should know of it. */
  warnings: z.array(z.string()),
  files: z.array(z.object({ path: z.string(), bytes: z.number(), sha256: z.string() })),
});
export type Manifest = z.infer<typeof manifestSchema>;

/** Makes a backup here, sends it to the second place, and lets go of old ones in both. */
export async function makeBackup(deps: BackupDeps, lock: HeldLock): Promise<JobResult> {
  const { config, clock } = deps;
  const began = new Date(clock.now());
  const folder = createBackupFolder(config.BACKUP_DIR);
  const restic = createRestic(config);
  const name = nameBackup(began, newId().slice(-8));
  const manifest = await makeLocal(deps, { folder, name, began, signal: lock.signal });
  await lock.requireHeld();
  await removeOld(folder);
  const bytes = manifest.files.reduce((sum, file) => sum + file.bytes, 0);
  const details = {
    name,
    bytes,
    local: true,
    gateways: manifest.gateways.map(({ id }) => id),
    secrets: manifest.secrets === "encrypted",
    warnings: manifest.warnings.length,
    second: restic ? "ok" : "none",
  };
  const seconds = () => Math.round((clock.now() - began.getTime()) / 1000);
  const said = [`${name}, ${Math.ceil(bytes / 1e6)} MB`, ...manifest.warnings].join(", ");
  try {
    const paths = [folder.pathOf(name), folder.erasedFile];
    await restic?.send({ paths, at: began, gatewayId: manifest.gateways[0]?.id, signal: lock.signal });
    await restic?.forget(lock.signal);
  } catch (error) {
    const summary = `${said}; the second place failed: ${error instanceof Error ? error.message : String(error)}`;
    return { ok: false, summary, details: { ...details, second: "failed", seconds: seconds() } };
  }
  const second = restic ? ", also in the second place" : ", in one place only (RESTIC_REPOSITORY is not set)";
  return { ok: true, summary: `${said} in ${seconds()} s${second}`, details: { ...details, seconds: seconds() } };
}

interface Making {
  folder: BackupFolder;
  name: string;
  began: Date;
  signal: AbortSignal;
}

async function makeLocal(deps: BackupDeps, making: Making): Promise<Manifest> {
  const { folder, name } = making;
  try {
    const half = await folder.begin(name);
    const manifest = await fill(deps, making, half);
    await writeText(join(half, "manifest.json"), `${JSON.stringify(manifest, null, 2)}\n`);
    await folder.finish(name, manifest.files);
    return manifest;
  } catch (error) {
    await folder.abandon(name).catch((err: unknown) => deps.log.warn({ err }, "a half backup was left"));
    throw isFull(error)
      ? new Error(`the disk of ${deps.config.BACKUP_DIR} is full; older backups are untouched: free some space`)
      : error;
  }
}

async function fill(deps: BackupDeps, { folder, name, began, signal }: Making, half: string): Promise<Manifest> {
  const { config, sql } = deps;
  const { version, schema, rows, warning } = await withSnapshot(sql, async (snapshot) => {
    const input = { snapshot: snapshot.id, version: snapshot.version, output: join(half, "database.dump"), signal };
    return { ...snapshot, warning: await dumpDatabase(config, input) };
  });
  const gateway = await copyFiles(config, half, signal);
  const secrets = await encryptSecrets(config, half, signal);
  await writeText(join(half, "settings.json"), `${JSON.stringify(openSettings(config), null, 2)}\n`);
  await writeText(join(half, "erased.json"), JSON.stringify(await recordErasures(deps, folder)));
  return {
    format: 1,
    name,
    startedAt: began.toISOString(),
    finishedAt: new Date(deps.clock.now()).toISOString(),
    release: releaseName(),
    schema,
    postgres: version,
    rows,
    gateways: gateway ? [gateway] : [],
    secrets,
    warnings: [
      warning,
      secrets === "encrypted" ? null : `without secrets (${secrets})`,
      gateway ? null : "without the gateway's files: they are on another host, run this there, too",
      gateway && gateway.damaged.length > 0 ? `${gateway.damaged.length} agents' databases are damaged` : null,
      gateway && gateway.leftOut.length > 0
        ? `without ${gateway.leftOut.length} files of assistants (in manifest.json)`
        : null,
    ].filter((one) => one !== null),
    files: await sumFiles(half),
  };
}

/** Null: the gateway is another host's. Rejects when its folder should be here. */
async function copyFiles(config: Deps["config"], half: string, signal: AbortSignal) {
  const { GATEWAY_ID: id, OPENCLAW_GATEWAY_DIR: dir } = config;
  // Not by GATEWAY_FILES_URL: every server of setup.sh has one, for its own files process. And an empty folder, too.
  const isOurs = hasGatewayHere(config);
  if (!(await isFolder(dir))) {
    if (!isOurs) return null;
    throw new Error(`the gateway's folder ${dir} (OPENCLAW_GATEWAY_DIR) is not there`);
  }
  // The point where its disk is to be mounted is a folder, too.
  if (!(await isFile(join(dir, "openclaw.json")))) {
    if (!isOurs) return null;
    throw new Error(`there is no openclaw.json in the gateway's folder ${dir}: is its disk mounted?`);
  }
  const to = join(half, "gateways", id);
  await makeFolder(to);
  await makeFolder(join(to, "workspaces"));
  const copied = await copyGateway(dir, to, signal);
  await packFolders(to, ["workspaces"], join(to, "workspaces.tar"), signal);
  await packFolders(to, ["state", "parked"], join(to, "state.tar"), signal);
  return { id, ...copied };
}

/** "encrypted", or why there are none. */
async function encryptSecrets(config: Deps["config"], half: string, signal: AbortSignal): Promise<string> {
  const recipients = config.BACKUP_AGE_RECIPIENTS;
  if (recipients.length === 0) return "BACKUP_AGE_RECIPIENTS is not set";
  await encryptFolder(config.BACKUP_SECRETS_DIR, { recipients, output: join(half, "secrets.tar.age"), signal });
  return "encrypted";
}

/** Texts that are no secret; what is not named here, and no number, stays out: a URL may hold a password. */
const OPEN = ["NODE_ENV", "HOST", "LOG_LEVEL", "MAIL_FROM", "APP_URL", "GATEWAY_ID", "OPENCLAW_GATEWAY_DIR"];

function openSettings(config: Deps["config"]): object {
  const entries = Object.entries(config).filter(([name, value]) => typeof value !== "string" || OPEN.includes(name));
  return Object.fromEntries(entries.filter(([, value]) => !Array.isArray(value)));
}

async function removeOld(folder: BackupFolder): Promise<void> {
  for (const name of chooseDoomed(await folder.list())) await folder.remove(name);
}

/** A release lies in a folder of its version. */
function releaseName(): string {
  return join(import.meta.dir, "../..")
    .split("/")
    .findLast((part) => part !== "")!;
}

function isFull(error: unknown): boolean {
  const { code, message } = error as { code?: string; message?: string };
  return code === "ENOSPC" || code === "EDQUOT" || /no space left|disk is full/i.test(message ?? "");
}
