import { dlopen } from "bun:ffi";
import { randomBytes } from "node:crypto";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { join, resolve } from "node:path";
import { diskFull, StartError } from "./process.ts";

const NEEDED_BYTES = 200_000_000;
const LOCK_EXCLUSIVE_NOW = 2 | 4;

/** The folder that holds everything of one Reef on this machine, locked for as long as this process lives. */
export type DataFolder = { path: string; secrets: Secrets };

export type Secrets = { jwtSecret: string; gatewayToken: string };

/** Makes (when missing) and locks the folder. Throws StartError when it is in use or its disk is full. */
export function openDataFolder(folder: string): DataFolder {
  const path = resolve(folder);
  mkdirSync(join(path, "logs"), { recursive: true, mode: 0o700 });
  // As root the database runs as another user, who must get through; everything inside is closed to others by itself.
  chmodSync(path, process.getuid?.() === 0 ? 0o711 : 0o700);
  lock(path);
  const disk = statfsSync(path);
  if (disk.bavail * disk.bsize < NEEDED_BYTES) throw new StartError(diskFull(path));
  return { path, secrets: readSecrets(path) };
}

/** The kernel frees the lock however we die, so there are no stale ones. The file's text only names the holder. */
function lock(path: string): void {
  const file = join(path, "lock");
  const holder = existsSync(file) ? readFileSync(file, "utf8").trim() : "";
  const descriptor = openSync(file, "a", 0o600);
  const libc = dlopen("libc.so.6", { flock: { args: ["i32", "i32"], returns: "i32" } });
  if (libc.symbols.flock(descriptor, LOCK_EXCLUSIVE_NOW) !== 0) {
    throw new StartError(
      `Another Reef (process ${holder}) runs on ${path}: stop it, or set REEF_DATA_DIR and PORT to run a second one.`,
    );
  }
  writeFileSync(file, `${process.pid}\n`);
}

/** Made once: new secrets would sign everybody out. */
function readSecrets(path: string): Secrets {
  const file = join(path, "secrets.json");
  if (!existsSync(file)) {
    const made: Secrets = { jwtSecret: randomBytes(32).toString("hex"), gatewayToken: randomBytes(32).toString("hex") };
    writeFileSync(`${file}.new`, `${JSON.stringify(made, null, 2)}\n`, { mode: 0o600, flush: true });
    renameSync(`${file}.new`, file);
  }
  try {
    const { jwtSecret, gatewayToken } = JSON.parse(readFileSync(file, "utf8")) as Partial<Secrets>;
    if (jwtSecret !== undefined && gatewayToken !== undefined) return { jwtSecret, gatewayToken };
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  throw new StartError(
    `${file} is damaged: restore it, or delete it to make new secrets (everybody must sign in again).`,
  );
}
