import { constants } from "node:fs";
import { lstat, open, readdir, rm } from "node:fs/promises";
import { dirname, join } from "node:path";

/** An assistant's folder: this much in all, this many entries, this deep. */
const FOLDER_LIMIT_BYTES = 1_000_000;
const ENTRY_LIMIT = 500;
const DEPTH_LIMIT = 8;
const FILE_LIMIT_BYTES = 256_000;
/** The notes at the top are cut, never deleted: all five at their longest leave half of the folder free. */
const NOTE_LIMIT_BYTES = 100_000;
const NOTES = new Set(["SOUL.md", "AGENTS.md", "MEMORY.md", "USER.md", "IDENTITY.md"]);
/** What a file or folder costs on disk however small it is. */
const ENTRY_BYTES = 512;

interface File {
  path: string;
  bytes: number;
  changedMs: number;
  note: boolean;
}

/** What was found. `entries` counts the children of each folder, so that an emptied one can go, too. */
interface Tree {
  files: File[];
  entries: Map<string, number>;
  removed: number;
}

/**
 * Holds a folder under its limits: a file that is too long loses its end; then the newest files go (the write that went
 * over the limit is the one undone), until the rest fits. What is no plain file, or lies too deep, goes always. Nothing
 * else limits what an agent writes. Returns how many entries it changed.
 */
export async function holdSize(folder: string): Promise<number> {
  const tree: Tree = { files: [], entries: new Map(), removed: 0 };
  await listFolder(tree, folder, 0);
  const cut = await cutLongFiles(tree.files);
  const isOver = () => {
    const count = tree.files.length + tree.entries.size - 1;
    const bytes = tree.files.reduce((sum, file) => sum + file.bytes, count * ENTRY_BYTES);
    return bytes > FOLDER_LIMIT_BYTES || count > ENTRY_LIMIT;
  };
  tree.files.sort((a, b) => Number(b.note) - Number(a.note) || a.changedMs - b.changedMs);
  while (isOver() && tree.files.at(-1)?.note === false) await removeEntry(tree, folder, tree.files.pop()!.path);
  if (isOver()) for (const path of emptyFolders(tree, folder)) await removeEntry(tree, folder, path);
  return tree.removed + cut;
}

/** Whether this is a file itself, not a link to one. */
export async function isPlainFile(path: string): Promise<boolean> {
  return lstat(path).then(
    (stat) => stat.isFile(),
    () => false,
  );
}

async function listFolder(tree: Tree, folder: string, depth: number): Promise<void> {
  const items = await readdir(folder, { withFileTypes: true }).catch(() => []);
  tree.entries.set(folder, 0);
  for (const item of items) {
    const path = join(folder, item.name);
    const full = tree.files.length + tree.entries.size > ENTRY_LIMIT * 2;
    const note = depth === 0 && NOTES.has(item.name);
    if (item.isDirectory() && depth < DEPTH_LIMIT && !full) await listFolder(tree, path, depth + 1);
    else {
      // The gateway replaces files under a temporary name: what was listed may be gone.
      const stat = await lstat(path).catch(() => null);
      if (!stat) continue;
      // A file under a second name shares its bytes with somebody else's: it is no file of this assistant.
      if (!item.isFile() || stat.nlink > 1 || (full && !note)) {
        await rm(path, { recursive: true, force: true });
        tree.removed += 1;
        continue;
      }
      tree.files.push({ path, bytes: stat.size, changedMs: stat.mtimeMs, note });
    }
    tree.entries.set(folder, (tree.entries.get(folder) ?? 0) + 1);
  }
}

async function cutLongFiles(files: File[]): Promise<number> {
  const long = files.filter((file) => file.bytes > limitOf(file));
  for (const file of long) {
    file.bytes = limitOf(file);
    await cutFile(file.path, file.bytes).catch(() => undefined);
  }
  return long.length;
}

async function cutFile(path: string, bytes: number): Promise<void> {
  const file = await open(path, constants.O_WRONLY | constants.O_NOFOLLOW);
  try {
    await file.truncate(bytes);
  } finally {
    await file.close();
  }
}

function limitOf(file: File): number {
  return file.note ? NOTE_LIMIT_BYTES : FILE_LIMIT_BYTES;
}

/** Removes a file or an empty folder, and the folders that it leaves empty. */
async function removeEntry(tree: Tree, root: string, path: string): Promise<void> {
  await rm(path, { recursive: true, force: true });
  tree.removed += 1;
  tree.entries.delete(path);
  const parent = dirname(path);
  const left = (tree.entries.get(parent) ?? 1) - 1;
  tree.entries.set(parent, left);
  if (left === 0 && parent !== root) await removeEntry(tree, root, parent);
}

function emptyFolders(tree: Tree, root: string): string[] {
  return [...tree.entries].filter(([path, children]) => children === 0 && path !== root).map(([path]) => path);
}
