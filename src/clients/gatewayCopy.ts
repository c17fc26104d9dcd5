import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { mkdir, open, readdir, readlink, realpath, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { isFolder } from "./ownFiles.ts";
import { createSqliteCopies, type SqliteCopies } from "./sqliteCopies.ts";
import { FOREIGN, readWorkspace } from "./workspaceFiles.ts";

/** Made again by every start, or never used again (openclaw.md §8): no part of a backup. */
const LEFT_OUT = /(^state\/(tmp|media|logs|cache)$)|(-(wal|shm|journal)$)|(\.lock(\.sqlite)?$)/;
const SQLITE = /\.sqlite$/;

export interface GatewayCopy {
  /** Each agent's workspace, as `hashWorkspace` has it. */
  workspaces: Record<string, string>;
  /** Paths of databases that can't be read. */
  damaged: string[];
  /** Files of workspaces that are not in the copy, each "path: reason"; not what is no file of the assistant's. */
  leftOut: string[];
}

/**
 * Copies a gateway's folder while the gateway runs: every workspace to `to/workspaces`, and what it keeps of its agents
 * to `to/state` and `to/parked`, databases whole. Whoever is erased meanwhile is left out. A database that SQLite can't
 * read is copied as it is: one person's damage must not keep everybody else from having a backup.
 */
export async function copyGateway(dir: string, to: string, signal: AbortSignal): Promise<GatewayCopy> {
  const root = await realpath(dir);
  const target = await realpath(to);
  const workspaces: Record<string, string> = {};
  const damaged: string[] = [];
  const leftOut: string[] = [];
  // A new gateway has none yet.
  await mkdir(join(target, "workspaces"), { recursive: true, mode: 0o700 });
  for (const agentId of await listFolders(join(root, "workspaces"))) {
    signal.throwIfAborted();
    // Drafts have a dot in their names.
    if (!agentId.includes("."))
      workspaces[agentId] = await copyWorkspace(
        join(root, "workspaces", agentId),
        join(target, "workspaces", agentId),
        (path, reason) => leftOut.push(`${join("workspaces", agentId, ...path)}: ${reason}`),
      );
  }
  const copies = createSqliteCopies();
  try {
    const tree = { root, target, copies, signal, damaged };
    for (const name of ["state", "parked"]) await mkdir(join(target, name), { recursive: true, mode: 0o700 });
    await copyTree(tree, "state", AGENTS);
    await copyAgents(tree);
  } finally {
    copies.close();
  }
  return { workspaces, damaged, leftOut };
}

/** A workspace's content as one hash: of its files' names and bytes, whatever their order and times. */
export async function hashWorkspace(folder: string): Promise<string> {
  return readAll(folder, { use: async () => undefined, miss: () => undefined });
}

async function copyWorkspace(from: string, to: string, miss: Reader["miss"]): Promise<string> {
  await mkdir(to, { recursive: true, mode: 0o700 });
  const use = async (path: string[], content: Buffer) => {
    const file = join(to, ...path);
    await mkdir(dirname(file), { recursive: true, mode: 0o700 });
    await writeFile(file, content, { mode: 0o600 });
  };
  return readAll(from, { use, miss });
}

interface Reader {
  use: (path: string[], content: Buffer) => Promise<void>;
  miss: (path: string[], reason: string) => void;
}

async function readAll(folder: string, { use, miss }: Reader): Promise<string> {
  const lines: string[] = [];
  for await (const file of readWorkspace(folder)) {
    if (file.leftOut !== undefined) {
      if (!FOREIGN.includes(file.leftOut)) miss(file.path, file.leftOut);
      continue;
    }
    await use(file.path, file.content);
    lines.push(`${createHash("sha256").update(file.content).digest("hex")}  ${file.path.join("/")}`);
  }
  return createHash("sha256").update(lines.sort().join("\n")).digest("hex");
}

/** Where an agent's state is: one of the two. */
const AGENTS = [join("state", "agents"), "parked"];

/**
 * An agent that is woken or parked meanwhile moves from one place to the other, past us: so it is looked again until
 * nobody new is found anywhere. Whoever was met in both places is in the backup as it was met last.
 */
async function copyAgents(tree: Tree): Promise<void> {
  const copied = new Set<string>();
  for (let isNew = true; isNew;) {
    isNew = false;
    for (const place of AGENTS)
      for (const id of await listFolders(join(tree.root, place))) {
        const name = join(place, id);
        if (copied.has(name)) continue;
        copied.add(name);
        isNew = true;
        await mkdir(join(tree.target, name), { recursive: true, mode: 0o700 });
        await copyTree(tree, name);
        const before = join(
          AGENTS.find((other) => other !== place)!,
          id,
        );
        // Not when it lies in both there, too: which one counts only an operator can tell.
        if (copied.has(before) && !(await isFolder(join(tree.root, before))))
          await rm(join(tree.target, before), { recursive: true });
      }
  }
}

interface Tree {
  root: string;
  target: string;
  copies: SqliteCopies;
  signal: AbortSignal;
  damaged: string[];
}

async function copyTree(tree: Tree, folder: string, leftOut: readonly string[] = []): Promise<void> {
  const entries = await readdir(join(tree.root, folder), { withFileTypes: true }).catch(nothingWhenGone);
  for (const entry of entries) {
    tree.signal.throwIfAborted();
    const name = join(folder, entry.name);
    if (LEFT_OUT.test(name) || leftOut.includes(name)) continue;
    if (entry.isDirectory()) {
      await mkdir(join(tree.target, name), { recursive: true, mode: 0o700 });
      await copyTree(tree, name, leftOut);
    } else if (entry.isFile()) await copyOne(tree, name);
  }
}

async function copyOne({ root, target, copies, damaged }: Tree, name: string): Promise<void> {
  const [from, to] = [join(root, name), join(target, name)];
  if (SQLITE.test(name)) {
    if ((await copies.copy(from, to)) !== "damaged") return;
    damaged.push(name);
  }
  await copyFile(from, to);
}

/** Its owner may put a link in the place of the file, or of a folder on the way: then it is not what we wanted. */
async function copyFile(from: string, to: string): Promise<void> {
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants;
  const file = await open(from, O_RDONLY | O_NOFOLLOW | O_NONBLOCK).catch((error: NodeJS.ErrnoException) => {
    // Gone, or put there by its owner; what can't be read otherwise must not be missing in silence.
    if (["ENOENT", "ENOTDIR", "ELOOP", "ENXIO"].includes(error.code ?? "")) return null;
    throw error;
  });
  if (file === null) return;
  try {
    if ((await readlink(`/proc/self/fd/${file.fd}`)) !== from || !(await file.stat()).isFile()) return;
    await writeFile(to, await file.readFile(), { mode: 0o600 });
  } finally {
    await file.close();
  }
}

async function listFolders(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { withFileTypes: true }).catch(nothingWhenGone);
  return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
}

function nothingWhenGone(error: NodeJS.ErrnoException): [] {
  if (error.code === "ENOENT") return [];
  throw error;
}
