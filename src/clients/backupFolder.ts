import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { access, mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { KeptBackup } from "../lib/retention.ts";

/** `20261126T020000Z-0197a1b2`: when it was begun (UTC), and what tells two of one second apart. */
const NAME = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z-[a-z0-9]{8}$/;
/** Not whole yet, or being removed. */
const HALF = ".partial";
const SUMS = "SHA256SUMS";
const ERASED = "erased.json";

interface FileSum {
  path: string;
  bytes: number;
  sha256: string;
}

export type BackupFolder = ReturnType<typeof createBackupFolder>;

/**
 * The folder of the backups: `<name>/` is whole, `<name>.partial/` is not, `receipts/<name>.json` tells whether the drill
 * could restore it, `in-use/<name>.<pid>` that a process reads it, `erased.json` who must not come back. What it does
 * not know it leaves alone.
 */
export function createBackupFolder(dir: string) {
  const at = (name: string) => join(dir, name);
  return {
    pathOf: at,
    erasedFile: at(ERASED),

    /** Removes what killed runs have left (one run at a time: the caller has the lock) and makes the folder of a new backup. */
    async begin(name: string): Promise<string> {
      await mkdir(dir, { recursive: true, mode: 0o700 });
      for (const left of await listNames(dir))
        if (left.endsWith(HALF) && NAME.test(left.slice(0, -HALF.length))) await rm(at(left), { recursive: true });
      await mkdir(at(name + HALF), { mode: 0o700 });
      return at(name + HALF);
    },

    /**
     * Writes the sums of all files (`files`, and its manifest), everything to the disk, and gives the folder its name:
     * from then on it is whole.
     */
    async finish(name: string, files: FileSum[]): Promise<void> {
      const half = at(name + HALF);
      const sums = [...files, { path: "manifest.json", sha256: await hashFile(join(half, "manifest.json")) }];
      await writeFile(join(half, SUMS), sums.map(({ sha256, path }) => `${sha256}  ${path}\n`).join(""), {
        mode: 0o600,
      });
      await syncTree(half);
      await rename(half, at(name));
      await sync(dir);
    },

    /** A backup that will not become whole. */
    async abandon(name: string): Promise<void> {
      await rm(at(name + HALF), { recursive: true, force: true });
    },

    /** Half removed it is no backup any more, and the next run ends it. */
    async remove(name: string): Promise<void> {
      await rename(at(name), at(name + HALF));
      await rm(at(name + HALF), { recursive: true });
      await rm(join(dir, "receipts", `${name}.json`), { force: true });
    },

    /** Those that are whole, newest first. */
    async list(): Promise<KeptBackup[]> {
      const names = (await listNames(dir))
        .filter((name) => NAME.test(name))
        .sort()
        .reverse();
      const used = await listUsed(join(dir, "in-use"));
      const found: KeptBackup[] = [];
      for (const name of names) {
        if (!(await exists(join(at(name), SUMS)))) continue;
        found.push({ name, at: timeOf(name), proof: await readProof(dir, name), inUse: used.has(name) });
      }
      return found;
    },

    /** Marks it as being read, so that nobody removes it; returns the end of that. Ends with the process in any case. */
    async use(name: string): Promise<() => Promise<void>> {
      await mkdir(join(dir, "in-use"), { recursive: true, mode: 0o700 });
      const mark = join(dir, "in-use", `${name}.${process.pid}`);
      await writeFile(mark, "", { mode: 0o600 });
      return () => rm(mark, { force: true });
    },

    /** Names of files that are not what they were when the backup was made, or that it has and should not have. */
    async check(name: string): Promise<string[]> {
      const lines = (await readFile(join(at(name), SUMS), "utf8")).trim().split("\n");
      const wanted = new Map(lines.map((line) => [line.slice(66), line.slice(0, 64)]));
      const found = await sumFiles(at(name));
      const wrong = found.filter(({ path, sha256 }) => wanted.get(path) !== sha256).map(({ path }) => path);
      const there = new Set(found.map(({ path }) => path));
      return [...wrong, ...[...wanted.keys()].filter((path) => !there.has(path))];
    },

    async readJson(name: string, file: string): Promise<unknown> {
      return JSON.parse(await readFile(join(at(name), file), "utf8"));
    },

    /** Every list of the erased that lies here: the common one, what scripts/restore.sh fetched, and each backup's own. */
    async readErased(): Promise<unknown[]> {
      const names = await listNames(dir);
      const own = names.filter((name) => NAME.test(name)).map((name) => join(at(name), ERASED));
      const files = [at(ERASED), at("erased-second.json"), ...own];
      const texts = await Promise.all(files.map((file) => readFile(file, "utf8").catch(() => null)));
      return texts.filter((text) => text !== null).map((text) => JSON.parse(text) as unknown);
    },

    /** In one step: it must not be lost. */
    async writeErased(list: object): Promise<void> {
      await writeWhole(at(ERASED), JSON.stringify(list));
    },

    async writeReceipt(name: string, receipt: object): Promise<void> {
      await mkdir(join(dir, "receipts"), { recursive: true, mode: 0o700 });
      await writeWhole(join(dir, "receipts", `${name}.json`), `${JSON.stringify(receipt, null, 2)}\n`);
    },
  };
}

/** What a backup begun now is called. `id`: eight letters and digits. */
export function nameBackup(at: Date, id: string): string {
  return `${at.toISOString().replace(/[-:]|\.\d+/g, "")}-${id}`;
}

export function timeOf(name: string): Date {
  const [, year, month, day, hour, minute, second] = NAME.exec(name) ?? [];
  return new Date(`${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
}

/** All files below a folder but the sums themselves, sorted. */
export async function sumFiles(folder: string): Promise<FileSum[]> {
  const entries = await readdir(folder, { withFileTypes: true, recursive: true });
  const paths = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  const sums: FileSum[] = [];
  for (const path of paths.sort()) {
    const name = path.slice(folder.length + 1);
    if (name !== SUMS) sums.push({ path: name, bytes: (await stat(path)).size, sha256: await hashFile(path) });
  }
  return sums;
}

async function hashFile(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const piece of createReadStream(path)) hash.update(piece as Buffer);
  return hash.digest("hex");
}

async function writeWhole(path: string, text: string): Promise<void> {
  const file = await open(`${path}.new`, "w", 0o600);
  await file.writeFile(text);
  await file.sync();
  await file.close();
  await rename(`${path}.new`, path);
}

async function syncTree(folder: string): Promise<void> {
  const entries = await readdir(folder, { withFileTypes: true, recursive: true });
  for (const entry of entries) await sync(join(entry.parentPath, entry.name));
  await sync(folder);
}

async function sync(path: string): Promise<void> {
  const file = await open(path, "r");
  await file.sync();
  await file.close();
}

async function readProof(dir: string, name: string): Promise<KeptBackup["proof"]> {
  const text = await readFile(join(dir, "receipts", `${name}.json`), "utf8").catch(() => null);
  if (text === null) return "unknown";
  return (JSON.parse(text) as { proof: KeptBackup["proof"] }).proof;
}

/** Marks of processes that are no more are removed. */
async function listUsed(folder: string): Promise<Set<string>> {
  const used = new Set<string>();
  for (const mark of await listNames(folder)) {
    const [name = "", pid = ""] = mark.split(".");
    if (isRunning(Number(pid))) used.add(name);
    else await rm(join(folder, mark), { force: true });
  }
  return used;
}

/** Not by /proc: a sandbox may hide another's processes there. */
function isRunning(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

async function listNames(folder: string): Promise<string[]> {
  return readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw error;
  });
}

function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
