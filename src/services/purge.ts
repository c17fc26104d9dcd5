import { finishPurge, listPurges, listRecentTurns, setPurgeStep } from "../db/workingSet.ts";
import type { Deps } from "../deps.ts";
import { textKeyOf } from "./keptText.ts";

type PurgeDeps = Pick<Deps, "sql" | "gateway" | "workspaces" | "config" | "log" | "redis">;

/*
 * The purge of deleted assistants, a saga that goes on wherever it was cut off (`assistants.purge_step`):
 *   stopping → its turns have ended; recorded; `agents.delete` closes its files and marks the id as dead → erasing
 *   erasing  → configuration without it confirmed; workspace, state, parked state, media, trash erased; rows gone → purged
 * `deleteAgent` runs while the doomed agents are configured, `eraseAgents` after they no longer are.
 */

/** An agent whose assistant was deleted; the gateway must know it once more, for only then it lets go of its files. */
export interface DoomedAgent {
  id: string;
  userId: string;
  agentId: string;
  model: string;
}

/** At most `places` of them at a time (and at least one), so that they fit into the working set. */
export async function listDoomedAgents(deps: PurgeDeps, places: number): Promise<DoomedAgent[]> {
  const purges = await listPurges(deps.sql, deps.config.GATEWAY_ID);
  return purges
    .filter((purge) => purge.purgeStep === "stopping")
    .slice(0, Math.max(1, places))
    .map(({ id, userId, agentId }) => ({ id, userId, agentId, model: "openai-custom/gpt-5-nano" }));
}

export async function deleteAgent(deps: PurgeDeps, agent: DoomedAgent): Promise<void> {
  // First the record: an id that the gateway has marked as dead must never be configured again, it restarts over it.
  await setPurgeStep(deps.sql, { id: agent.id, userId: agent.userId, step: "erasing" });
  // What it does not let go of here goes with its next start: we erase the files, and nobody uses the id again.
  await deps.gateway
    .deleteAgent(agent.agentId)
    .catch((err: unknown) => deps.log.warn({ err }, "gateway did not let go of an agent"));
}

export async function eraseAgents(deps: PurgeDeps): Promise<void> {
  const purges = await listPurges(deps.sql, deps.config.GATEWAY_ID);
  for (const purge of purges.filter(({ purgeStep }) => purgeStep === "erasing")) {
    // One that fails (a disk) is tried again with the next pass and holds up nobody else.
    await eraseAgent(deps, purge).catch((err: unknown) =>
      deps.log.error({ err, assistant_id: purge.id }, "an assistant could not be erased; trying again"),
    );
  }
}

async function eraseAgent(deps: PurgeDeps, purge: { id: string; userId: string; agentId: string }): Promise<void> {
  await deps.workspaces.purge(purge.agentId);
  const texts = (await listRecentTurns(deps.sql, purge)).map(textKeyOf);
  // Redis may be away: what it keeps of a running answer ends within the hour.
  if (texts.length > 0) await deps.redis.del(texts).catch(() => 0);
  await deps.sql.begin((sql) => finishPurge(sql, { id: purge.id, userId: purge.userId }));
  deps.log.info({ assistant_id: purge.id }, "assistant purged");
}
