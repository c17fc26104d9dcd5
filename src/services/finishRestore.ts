import type { BackupFolder } from "../clients/backupFolder.ts";
import type { Workspaces } from "../clients/workspaces.ts";
import type { Sql } from "../db/connect.ts";
import { listErasures, listKeptAgents, mergeErasures, type Erasures } from "../db/erasures.ts";
import { migrate } from "../db/migrate.ts";
import { readErasures, replayErasures } from "./erasures.ts";

/** Our agents; the gateway keeps others of its own beside them. */
const OUR_AGENT = /^agent_[0-9a-f]{20}$/;

/** What the last step of a restore did. */
export interface Finished {
  /** Erased since the backup, and erased again. */
  users: number;
  assistants: number;
  /** Agents whose files were in the backup and belong to nobody who is there: not restored. */
  left: number;
}

/**
 * The last step of a restore, before its database and its files take their places: forgets again whoever was erased since
 * the backup, and leaves out files that no living assistant has. `current`: the database that is replaced; it knows
 * best who was erased. Safe to repeat.
 */
export async function finishRestore(input: {
  restored: Sql;
  current: Sql | null;
  folder: BackupFolder;
  workspaces: Workspaces;
}): Promise<Finished> {
  const lists = [await readErasures(input.folder)];
  if (input.current) lists.push(await listWhereThere(input.current));
  const erased = mergeErasures(lists);
  // First: what is replaced is gone when somebody restores once more.
  if (input.current) await input.folder.writeErased(erased);
  // The backup may be of an older release, and this code knows its own schema only.
  await migrate(input.restored);
  const again = await replayErasures(input.restored, erased);
  const kept = new Set(await listKeptAgents(input.restored));
  const strangers = (await input.workspaces.listAgents()).filter((id) => OUR_AGENT.test(id) && !kept.has(id));
  for (const agentId of strangers) await input.workspaces.purge(agentId);
  return { ...again, left: strangers.length };
}

/** A bare server's database does not exist yet, or is empty. */
async function listWhereThere(sql: Sql): Promise<Erasures> {
  return listErasures(sql).catch((error: unknown) => {
    const { code } = error as { code?: string };
    if (code === "3D000" || code === "42P01") return { users: [], assistants: [] };
    throw error;
  });
}
