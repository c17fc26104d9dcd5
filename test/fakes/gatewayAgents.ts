import { existsSync, mkdirSync, renameSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import type { GatewayConfig } from "./gatewayConfig.ts";
import type { GatewayRuns, Reply } from "./gatewayRuns.ts";
import type { GatewayStore } from "./gatewayStore.ts";

/** The payload of `agents.list`. */
export function listAgents(config: GatewayConfig): Record<string, unknown> {
  const agents = Object.entries(config.agents).map(([id, agent]) => ({
    id,
    name: agent.name ?? id,
    workspace: agent.workspace ?? "",
    workspaceGit: false,
    agentRuntime: { id: "auto", cloudPlacementSupported: false, devicePlacementSupported: false, source: "implicit" },
    thinkingLevels: [{ id: "off", label: "off" }],
    thinkingOptions: ["off"],
    thinkingDefault: "off",
    model: { primary: agent.model ?? "openai-custom/gpt-5-nano" },
    defaultPermissionMode: "full",
  }));
  const shape = { ownership: "explicit", selectionRequired: true, mainKey: "main", scope: "per-sender" };
  return { defaultId: agents[0]?.id ?? "main", ...shape, agents };
}

type Parts = {
  dir: string;
  config: GatewayConfig;
  store: GatewayStore;
  runs: GatewayRuns;
  unfinished: Map<string, string>;
};

/**
 * `agents.delete`: file without the agent, tombstone, files to the trash. While a run of the agent is on, the files stay
 * and the answer says `purgeFailed`; the call can be repeated. `unfinished` holds the workspaces of such agents.
 */
export function deleteAgent(parts: Parts, agentId: string, deleteFiles: boolean): Reply {
  const { config, store, unfinished } = parts;
  const agent = config.agents[agentId];
  const refuse = (message: string): Reply => ({ ok: false, error: { code: "INVALID_REQUEST", message } });
  if (!agent && !unfinished.has(agentId)) return refuse(`agent "${agentId}" not found`);
  if (agent && Object.keys(config.agents).length === 1) {
    return refuse(`Agent "${agentId}" is the only configured agent and cannot be deleted.`);
  }
  const workspace = agent?.workspace ?? unfinished.get(agentId) ?? "";
  const busy = parts.runs.busy(agentId);
  const agentDir = dirname(store.databaseFile(agentId));
  store.markDeleted(agentId);
  if (agent) config.dropAgent(agentId);
  const answer = {
    ok: true,
    agentId,
    removedBindings: 0,
    removed: [] as { path: string; method: string }[],
    failed: [],
  };
  if (busy) {
    unfinished.set(agentId, workspace);
    return { ok: true, payload: { ...answer, purgeFailed: true } };
  }
  unfinished.delete(agentId);
  if (deleteFiles) {
    const paths = [store.databaseFile(agentId), agentDir, join(dirname(agentDir), "sessions"), workspace].filter(
      Boolean,
    );
    answer.removed = paths.map((path) => ({ path, method: moveToTrash(parts.dir, path) }));
  }
  return { ok: true, payload: answer };
}

function moveToTrash(dir: string, path: string): "trash" | "missing" {
  if (!existsSync(path)) return "missing";
  const place = join(dir, "home", ".Trash", `${basename(path)}-${Date.now()}-${crypto.randomUUID().slice(0, 6)}`);
  mkdirSync(place, { recursive: true });
  renameSync(path, join(place, basename(path)));
  return "trash";
}
