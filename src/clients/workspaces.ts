import { access, mkdir, open, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { newId } from "../lib/ids.ts";
import type { Log } from "../lib/log.ts";
import { createCanaryFiles } from "./canaryFiles.ts";
import { readWorkspace, type WorkspaceFile } from "./workspaceFiles.ts";
import { holdSize, isPlainFile } from "./workspaceSize.ts";

const TEMPLATES = join(import.meta.dir, "../../templates/workspace");
/** Written once, then the assistant's own. */
const OWN_FILES = ["USER.md", "MEMORY.md", "IDENTITY.md"] as const;
const DRAFT_PREFIX = "openclaw.json.draft-";
/** Ours: rendered from the person's settings, put back when the assistant changes them. */
const LOCKED_FILES = ["SOUL.md", "AGENTS.md"] as const;

export interface AgentSettings {
  agentId: string;
  displayName: string | null;
}

type ReadTemplate = (name: string) => Promise<string>;
export type LocalWorkspaces = ReturnType<typeof createWorkspaces>;
/** A gateway's folder, here or on another host (remoteWorkspaces.ts). Parking is done beside it only. */
export type Workspaces = Omit<LocalWorkspaces, "parkAll">;

/** What the gateway's configuration says of where things lie on its own host. */
export function pathsIn(dir: string): { workspaceOf: (agentId: string) => string; logFile: string } {
  return {
    workspaceOf: (agentId) => join(dir, "workspaces", checkId(agentId)),
    /** Where the gateway logs. */
    logFile: join(dir, "gateway.log"),
  };
}

/**
 * The only writer of a gateway's folder: `openclaw.json`, `workspaces/<agent>`, and, for parking and purging,
 * `state/agents/<agent>`, `parked/<agent>`, `state/media` and the trash of the gateway's home.
 */
export function createWorkspaces(dir: string, log: Log) {
  const templates = new Map<string, Promise<string>>();
  // They come with the program and don't change while it runs.
  const readTemplate: ReadTemplate = (name) => {
    const text = templates.get(name) ?? readFile(join(TEMPLATES, name), "utf8");
    templates.set(name, text);
    return text;
  };
  const configPath = join(dir, "openclaw.json");
  const { workspaceOf, logFile } = pathsIn(dir);
  const stateOf = (agentId: string) => join(dir, "state", "agents", checkId(agentId));
  const parkedOf = (agentId: string) => join(dir, "parked", checkId(agentId));

  return {
    ...createCanaryFiles(dir),
    workspaceOf,
    logFile,

    /** Makes an agent ready to be configured: its workspace from the templates (never over an existing one), its state unparked. */
    async prepare(settings: AgentSettings): Promise<void> {
      await createWorkspace(workspaceOf(settings.agentId), settings, readTemplate);
      if ((await exists(parkedOf(settings.agentId))) && !(await exists(stateOf(settings.agentId)))) {
        await mkdir(join(dir, "state", "agents"), { recursive: true, mode: 0o700 });
        await rename(parkedOf(settings.agentId), stateOf(settings.agentId));
      }
    },

    /**
     * Puts back what the assistant must not change and holds its folder under the size limit. Cheap; runs before each
     * turn (the next prompt is built from these files) and after it. Returns how many files it mended.
     */
    async guard(settings: AgentSettings): Promise<number> {
      const folder = workspaceOf(settings.agentId);
      const restored = await restoreLockedFiles(folder, settings, readTemplate);
      const removed = await holdSize(folder);
      if (restored + removed > 0) log.info({ agent_id: settings.agentId, restored, removed }, "workspace mended");
      return restored + removed;
    },

    /** The agent's files, for its owner: what links, devices and pipes lead to is not among them. */
    readFiles(agentId: string): AsyncGenerator<WorkspaceFile> {
      return readWorkspace(workspaceOf(agentId));
    },

    /** The configuration file as it is on disk; null when there is none. */
    async readConfig(): Promise<string | null> {
      return readFile(configPath, "utf8").catch(nullWhenMissing);
    },

    /**
     * Replaces the configuration file in one step: a crash leaves the old one or the new one, never half of it. One
     * writer at a time, so drafts that are found are a crash's.
     */
    async writeConfig(text: string): Promise<void> {
      await mkdir(dir, { recursive: true, mode: 0o700 });
      await removeByPrefix(dir, DRAFT_PREFIX);
      await writeAtomically(configPath, text);
    },

    /** Every agent that has anything here: a workspace (or the draft of one), state, parked state. */
    async listAgents(): Promise<string[]> {
      const folders = ["workspaces", join("state", "agents"), "parked"].map((name) => listFolder(join(dir, name)));
      return [...new Set((await Promise.all(folders)).flat().map((name) => name.split(".")[0]!))];
    },

    /** Erases everything of an agent, for ever. Safe to repeat. The gateway must have let go of it (openclaw.md §8). */
    async purge(agentId: string): Promise<void> {
      for (const path of [workspaceOf(agentId), stateOf(agentId), parkedOf(agentId)])
        await rm(path, { recursive: true, force: true });
      await removeByPrefix(join(dir, "workspaces"), `${agentId}.`);
      await this.clearLeftovers();
    },

    /** Erases what the gateway keeps and Reef never uses: copies of sent media, its trash, backups of its configuration. */
    async clearLeftovers(): Promise<void> {
      await emptyFolder(join(dir, "home", ".Trash"));
      for (const box of ["inbound", "outbound", "outgoing"]) await emptyFolder(join(dir, "state", "media", box));
      await removeByPrefix(dir, "openclaw.json.bak");
    },

    /**
     * Moves every agent's state out of the gateway's sight, so that a start is short and the gateway can't take up by
     * itself what it was answering when it died (we send such a turn again). Only while the gateway does not run.
     */
    async parkAll(): Promise<number> {
      const ids = (await listFolder(join(dir, "state", "agents"))).filter((name) => AGENT_ID.test(name));
      await mkdir(join(dir, "parked"), { recursive: true, mode: 0o700 });
      for (const id of ids) {
        // Never by our own hand; which of the two is the conversation only an operator can tell.
        if (await exists(parkedOf(id))) log.error({ agent_id: id }, "an agent has its state twice, also parked");
        else await rename(stateOf(id), parkedOf(id));
      }
      return ids.length;
    },
  };
}

const AGENT_ID = /^[a-z0-9][a-z0-9_-]{0,63}$/;

// An id becomes a folder name; what is not one of our ids must never reach a path.
function checkId(agentId: string): string {
  if (!AGENT_ID.test(agentId)) throw new Error("not an agent id");
  return agentId;
}

async function createWorkspace(folder: string, settings: AgentSettings, readTemplate: ReadTemplate): Promise<void> {
  if (await exists(folder)) return;
  const draft = `${folder}.${newId()}.new`;
  await mkdir(draft, { recursive: true, mode: 0o700 });
  for (const name of [...OWN_FILES, ...LOCKED_FILES])
    await writeFile(join(draft, name), renderTemplate(await readTemplate(name), settings), { mode: 0o600 });
  // Whoever renames first wins; a second one finds the folder there and throws its draft away.
  await rename(draft, folder).catch(async (error: NodeJS.ErrnoException) => {
    await rm(draft, { recursive: true, force: true });
    if (error.code !== "ENOTEMPTY" && error.code !== "EEXIST") throw error;
  });
}

async function restoreLockedFiles(
  folder: string,
  settings: AgentSettings,
  readTemplate: ReadTemplate,
): Promise<number> {
  let restored = 0;
  for (const name of LOCKED_FILES) {
    const path = join(folder, name);
    const wanted = renderTemplate(await readTemplate(name), settings);
    const plain = await isPlainFile(path);
    if (plain && (await readFile(path, "utf8")) === wanted) continue;
    // A file is replaced in one step; anything else has to go first.
    if (!plain) await rm(path, { recursive: true, force: true });
    await writeAtomically(path, wanted);
    restored += 1;
  }
  return restored;
}

/** A template with the person's settings put in. The display name is one line of plain text by its schema. */
function renderTemplate(template: string, settings: AgentSettings): string {
  return template.replaceAll("{{display_name}}", () => (settings.displayName ?? "").replace(/\s+/g, " "));
}

async function writeAtomically(path: string, text: string): Promise<void> {
  const draft = `${path}.draft-${newId()}`;
  try {
    const file = await open(draft, "w", 0o600);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(draft, path);
  } catch (error) {
    await rm(draft, { force: true }).catch(() => undefined);
    throw error;
  }
}

async function removeByPrefix(folder: string, prefix: string): Promise<void> {
  const names = (await listFolder(folder)).filter((name) => name.startsWith(prefix));
  for (const name of names) await rm(join(folder, name), { recursive: true, force: true });
}

async function emptyFolder(folder: string): Promise<void> {
  for (const name of await listFolder(folder)) await rm(join(folder, name), { recursive: true, force: true });
}

async function listFolder(folder: string): Promise<string[]> {
  return (await readdir(folder).catch(nullWhenMissing)) ?? [];
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

function nullWhenMissing(error: NodeJS.ErrnoException): null {
  if (error.code === "ENOENT") return null;
  throw error;
}
