import { lstat, readdir, rm, truncate } from "node:fs/promises";
import { join } from "node:path";

/** An assistant's folder: this much in all, this much per file, this many entries. */
const FOLDER_LIMIT_BYTES = 1_000_000;
const FILE_LIMIT_BYTES = 256_000;
const ENTRY_LIMIT = 500;
/** What a file or folder costs on disk however small it is. */
const ENTRY_BYTES = 512;
const KEPT_FIRST = new Set(["SOUL.md", "AGENTS.md", "MEMORY.md", "USER.md", "IDENTITY.md"]);

interface Entry {
  path: string;
  bytes: number;
  changedMs: number;
  kept: boolean;
}

/**
 * Holds a folder under its limits: a file that is too long loses its end; then the newest files go, until the rest
 * fits; links and devices go always. Nothing else limits what an agent writes. Returns how many entries it changed.
 */
export async function holdSize(folder: string): Promise<number> {
  let changed = 0;
  const entries = await listEntries(folder, async (path) => {
    await rm(path, { force: true });
    changed += 1;
  });
  for (const entry of entries) {
    if (entry.bytes <= FILE_LIMIT_BYTES) continue;
    await truncate(entry.path, FILE_LIMIT_BYTES).catch(() => undefined);
    entry.bytes = FILE_LIMIT_BYTES;
    changed += 1;
  }
  let total = entries.reduce((sum, entry) => sum + entry.bytes + ENTRY_BYTES, 0);
  let count = entries.length;
  // The five named files last, else the newest first: the write that went over the limit is the one undone.
  const removable = entries.toSorted((a, b) => Number(a.kept) - Number(b.kept) || b.changedMs - a.changedMs);
  for (const entry of removable) {
    if (total <= FOLDER_LIMIT_BYTES && count <= ENTRY_LIMIT) break;
    await rm(entry.path, { recursive: true, force: true });
    total -= entry.bytes + ENTRY_BYTES;
    count -= 1;
    changed += 1;
  }
  return changed;
}

/** Whether this is a file itself, not a link to one. */
export async function isPlainFile(path: string): Promise<boolean> {
  return lstat(path).then(
    (stat) => stat.isFile(),
    () => false,
  );
}

async function listEntries(folder: string, removeOdd: (path: string) => Promise<void>): Promise<Entry[]> {
  const entries: Entry[] = [];
  for (const item of await readdir(folder, { withFileTypes: true }).catch(() => [])) {
    const path = join(folder, item.name);
    if (item.isDirectory())
      entries.push({ path, bytes: 0, changedMs: 0, kept: false }, ...(await listEntries(path, removeOdd)));
    else if (!item.isFile()) await removeOdd(path);
    else {
      // The gateway replaces files under a temporary name: what was listed may be gone.
      const stat = await lstat(path).catch(() => null);
      if (!stat) continue;
      // A file under a second name shares its bytes with somebody else's: it is no file of this assistant.
      if (stat.nlink > 1) await removeOdd(path);
      else entries.push({ path, bytes: stat.size, changedMs: stat.mtimeMs, kept: KEPT_FIRST.has(item.name) });
    }
  }
  return entries;
}
