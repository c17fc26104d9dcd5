import { notifyGatewaysOf } from "../db/assistants.ts";
import type { Queryable } from "../db/connect.ts";
import { revokeAllSessions } from "./sessions.ts";

/**
 * The user just stopped, or began, to be active: their sessions end, and the reconciler sees to their assistants. Their
 * turns are asked to stop first (`requestStopOfUser`): whoever ends a turn holds it while asking for the user's row.
 */
export async function endAccess(sql: Queryable, input: { userId: string; reason: string }): Promise<number> {
  const ended = await revokeAllSessions(sql, input);
  await notifyGatewaysOf(sql, input.userId);
  return ended;
}
