import { isUtf8 } from "node:buffer";
import { constants } from "node:fs";
import { lstat, open, readdir, type FileHandle } from "node:fs/promises";

/** Far above what an assistant may keep (workspaceSize.ts), since it is held to that only before and after a turn. */
const FILE_LIMIT_BYTES = 1_000_000;
const FOLDER_LIMIT_BYTES = 20_000_000;
const ENTRY_LIMIT = 2_000;
const DEPTH_LIMIT = 16;

/** Reasons to leave out what is no file of the assistant's: a link, a device, somebody else's file under a second name. */
export const FOREIGN = ["not a file", "not a folder", "has a second name elsewhere"];

/** A file of an assistant, or one that is not given out, with the reason. `path` is as the assistant named it. */
export type WorkspaceFile =
  { path: string[]; changedAt: Date; content: Buffer; leftOut?: undefined } | { path: string[]; leftOut: string };

const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK } = constants;

interface Walk {
  entries: number;
  bytes: number;
}

/**
 * Reads the files of a folder whose owner is hostile and at work: links are never followed, not even one that takes a
 * folder's place while we read, because each step is taken from an open folder (Linux: /proc/self/fd). What is no plain
 * file, or has a second name elsewhere, is left out. A folder that is not there has no files.
 */
export async function* readWorkspace(folder: string): AsyncGenerator<WorkspaceFile> {
  const root = await open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW).catch((error: NodeJS.ErrnoException) => error);
  if (!(root instanceof Error)) return yield* readFolder(root, [], { entries: 0, bytes: 0 });
  if (root.code === "ENOTDIR" || root.code === "ELOOP") yield { path: [], leftOut: "not a folder" };
  else if (root.code !== "ENOENT") throw root;
}

/** Closes `folder`. */
async function* readFolder(folder: FileHandle, path: string[], walk: Walk): AsyncGenerator<WorkspaceFile> {
  try {
    const here = `/proc/self/fd/${folder.fd}`;
    // As bytes: a name that is no UTF-8 could not be opened by its text.
    const names = await readdir(here, { encoding: "buffer" }).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return []; // it was removed while we read
      throw error;
    });
    for (const name of names.sort((a, b) => a.compare(b))) {
      walk.entries += 1;
      if (walk.entries > ENTRY_LIMIT) {
        if (walk.entries === ENTRY_LIMIT + 1) yield { path, leftOut: `all after ${ENTRY_LIMIT} files and folders` };
        return;
      }
      yield* readEntry(Buffer.concat([Buffer.from(`${here}/`), name]), [...path, textOf(name)], walk);
    }
  } finally {
    await folder.close();
  }
}

/** Names that are no UTF-8 read alike as text and are not the same: their bytes tell them apart. */
function textOf(name: Buffer): string {
  return isUtf8(name) ? name.toString() : `${name.toString()} ${name.toString("hex")}`;
}

async function* readEntry(at: Buffer, path: string[], walk: Walk): AsyncGenerator<WorkspaceFile> {
  const opened = await openPlain(at).catch((error: NodeJS.ErrnoException) => error.code ?? "unknown");
  if (opened === "ENOENT") return; // it went while we read
  if (opened === null || opened === "ELOOP") return yield { path, leftOut: "not a file" };
  if (typeof opened === "string") return yield { path, leftOut: `could not be read (${opened})` };
  const { handle, isFolder } = opened;
  if (isFolder && path.length < DEPTH_LIMIT) return yield* readFolder(handle, path, walk);
  try {
    yield isFolder ? { path, leftOut: "too deep" } : await readFile(handle, path, walk);
  } finally {
    await handle.close();
  }
}

/** Opens a file or folder itself, null for anything else. The first look keeps us from opening a device or a pipe. */
async function openPlain(at: Buffer): Promise<{ handle: FileHandle; isFolder: boolean } | null> {
  const seen = await lstat(at);
  if (!seen.isFile() && !seen.isDirectory()) return null;
  // Bun's types know paths as text only; bytes work.
  const handle = await open(at as unknown as string, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  const stat = await handle.stat();
  if (stat.isFile() || stat.isDirectory()) return { handle, isFolder: stat.isDirectory() };
  await handle.close();
  return null;
}

async function readFile(handle: FileHandle, path: string[], walk: Walk): Promise<WorkspaceFile> {
  const stat = await handle.stat();
  // A file under a second name shares its bytes with somebody else's: it is no file of this assistant.
  if (stat.nlink !== 1) return { path, leftOut: "has a second name elsewhere" };
  if (stat.size > FILE_LIMIT_BYTES) return { path, leftOut: `larger than ${FILE_LIMIT_BYTES} bytes` };

  if (walk.bytes + stat.size > FOLDER_LIMIT_BYTES)
    return { path, leftOut: `all files together are larger than ${FOLDER_LIMIT_BYTES} bytes` };
  walk.bytes += stat.size;
  const content = Buffer.alloc(stat.size);
  let length = 0;
  while (length < stat.size) {
    const { bytesRead } = await handle.read(content, length, stat.size - length, length);
    if (bytesRead === 0) break;
    length += bytesRead;
  }
  return { path, changedAt: stat.mtime, content: content.subarray(0, length) };
}
