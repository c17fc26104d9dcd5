import { z } from "zod";
import type { BackupFolder } from "../clients/backupFolder.ts";
import { setAssistantStatus } from "../db/assistants.ts";
import type { Sql } from "../db/connect.ts";
import { DELETION_STEPS } from "../db/deletions.ts";
import {
  eraseAgain,
  listBroughtBack,
  listErasures,
  listOfLeaving,
  mergeErasures,
  type Erasures,
} from "../db/erasures.ts";
import type { Deps } from "../deps.ts";

const erasuresSchema = z.object({
  users: z.array(z.object({ id: z.uuid(), step: z.enum(DELETION_STEPS) })),
  assistants: z.array(z.uuid()),
});

/** Everybody whom a list here or the database knows as erased; the common list has them from now on. */
export async function recordErasures(deps: Pick<Deps, "sql">, folder: BackupFolder): Promise<Erasures> {
  const known = await readErasures(folder);
  const all = mergeErasures([known, await listErasures(deps.sql)]);
  await folder.writeErased(all);
  return all;
}

/** All lists here as one. A damaged one is made good by the others; throws when none can be read, for then somebody could come back. */
export async function readErasures(folder: BackupFolder): Promise<Erasures> {
  const lists = (await folder.readErased()).map((text) => erasuresSchema.safeParse(parse(text)));
  const good = lists.flatMap(({ data }) => (data ? [data] : []));
  if (lists.length > 0 && good.length === 0)
    throw new Error(`${folder.erasedFile}, who was erased, is damaged: remove it only when you know that nobody was`);
  return mergeErasures(good);
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * Whoever was erased after the backup is erased again from what it brought back: people and assistants are marked as
 * they are when they ask for it, so nobody can sign in or chat, and the loops of the next start purge rows and agents
 * (services/deletion.ts, purge.ts). Returns how many were back.
 */
export async function replayErasures(sql: Sql, list: Erasures): Promise<{ users: number; assistants: number }> {
  const outcome = await sql.begin(async (tx) => {
    let users = 0;
    for (const user of list.users) users += (await eraseAgain(tx, user)) ? 1 : 0;
    const gone = [...(await listBroughtBack(tx, list.assistants)), ...(await listOfLeaving(tx))];
    let assistants = 0;
    for (const { id, userId } of gone)
      assistants += (await setAssistantStatus(tx, { userId, id, status: "deleted" })) ? 1 : 0;
    return { users, assistants };
  });
  return outcome;
}
