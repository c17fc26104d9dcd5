import { finishPurge, listPurges, setPurgeStep } from "../db/workingSet.ts";
import type { Deps } from "../deps.ts";

type PurgeDeps = Pick<Deps, "sql" | "gateway" | "workspaces" | "config" | "log" | "redis">;

/** Deleted assistants that the gateway must know once more: only a configured agent lets go of its files. */
export async function listAgentsToDelete(deps: PurgeDeps): Promise<{ agentId: string; model: string }[]> {
  const purges = await listPurges(deps.sql, deps.config.GATEWAY_ID);
  return purges
    .filter((purge) => purge.purgeStep === "stopping" && !purge.running)
    .map((purge) => ({ agentId: purge.agentId, model: "openai-custom/gpt-5-nano" }));
}

/**
 * The purge of deleted assistants, a saga that goes on wherever it was cut off (`assistants.purge_step`):
 *   stopping → its turns have ended; recorded; `agents.delete` closes its files and marks the id as dead → erasing
 *   erasing  → configuration without it confirmed; workspace, state, parked state, media, trash erased; rows gone → purged
 * `deleteAgents` runs after the agents are configured, `erase` after they are not. Returns whether anything was done.
 */
export async function deleteAgents(deps: PurgeDeps, configured: Set<string>): Promise<boolean> {
  const purges = (await listPurges(deps.sql, deps.config.GATEWAY_ID)).filter(
    (purge) => purge.purgeStep === "stopping" && !purge.running && configured.has(purge.agentId),
  );
  for (const purge of purges) {
    // First the record: an id that the gateway has marked as dead must never be configured again, it restarts over it.
    await setPurgeStep(deps.sql, { id: purge.id, userId: purge.userId, step: "erasing" });
    await deleteAgent(deps, purge.agentId);
  }
  return purges.length > 0;
}

// What the gateway does not let go of here goes with its next start: we erase the files, and nobody uses the id again.
async function deleteAgent(deps: PurgeDeps, agentId: string): Promise<void> {
  await deps.gateway
    .deleteAgent(agentId)
    .catch((err: unknown) => deps.log.warn({ err }, "gateway did not let go of an agent"));
}

export async function eraseAgents(deps: PurgeDeps, configured: Set<string>): Promise<boolean> {
  const purges = (await listPurges(deps.sql, deps.config.GATEWAY_ID)).filter(
    (purge) => purge.purgeStep === "erasing" && !configured.has(purge.agentId),
  );
  for (const purge of purges) {
    await deps.workspaces.purge(purge.agentId);
    await deps.sql.begin((sql) => finishPurge(sql, { id: purge.id, userId: purge.userId }));
    deps.log.info({ assistant_id: purge.id }, "assistant purged");
  }
  return purges.length > 0;
}
