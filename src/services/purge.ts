import { finishPurge, listPurges, setPurgeStep } from "../db/workingSet.ts";
import { GatewayError } from "../clients/gatewayConnection.ts";
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
 *   stopping → its turns have ended, `agents.delete` closed its files and marked the id as dead → erasing
 *   erasing  → configuration without it confirmed; workspace, state, parked state, media, trash erased; rows gone → purged
 * `deleteAgents` runs after the agents are configured, `erase` after they are not. Returns whether anything was done.
 */
export async function deleteAgents(deps: PurgeDeps, configured: Set<string>): Promise<boolean> {
  const purges = (await listPurges(deps.sql, deps.config.GATEWAY_ID)).filter(
    (purge) => purge.purgeStep === "stopping" && !purge.running && configured.has(purge.agentId),
  );
  for (const purge of purges) {
    await deleteAgent(deps, purge.agentId);
    await setPurgeStep(deps.sql, { id: purge.id, userId: purge.userId, step: "erasing" });
  }
  return purges.length > 0;
}

// "Not found": an earlier run got this far and died before it could say so.
async function deleteAgent(deps: PurgeDeps, agentId: string): Promise<void> {
  try {
    await deps.gateway.deleteAgent(agentId);
  } catch (error) {
    if (!(error instanceof GatewayError && error.kind === "refused" && /not found/i.test(error.message))) throw error;
  }
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
