import { notifyGatewaysOf } from "../db/assistants.ts";
import type { Queryable } from "../db/connect.ts";
import { notify } from "../db/notify.ts";
import { revokeSessions } from "../db/sessions.ts";

/**
 * Ends every session of a user, in the caller's transaction; how many there were. Sockets close on every process when it
 * commits.
 */
export async function endSessions(sql: Queryable, input: { userId: string; reason: string }): Promise<number> {
  const ended = await revokeSessions(sql, input);
  for (const id of ended) await notify(sql, "session", id);
  return ended.length;
}

/**
 * The user just stopped, or began, to be active: their sessions end, and the reconciler sees to their assistants. Their
 * turns are asked to stop first (`requestStopOfUser`): whoever ends a turn holds it while asking for the user's row.
 */
export async function endAccess(sql: Queryable, input: { userId: string; reason: string }): Promise<number> {
  const ended = await endSessions(sql, input);
  await notifyGatewaysOf(sql, input.userId);
  return ended;
}
