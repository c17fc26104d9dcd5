import { newId } from "../lib/ids.ts";
import type { Queryable } from "./connect.ts";

/** Records a security act in the act's own transaction. `details` hold ids and reasons, never secrets or addresses. */
export async function insertAudit(
  sql: Queryable,
  entry: {
    actor: string;
    action: string;
    subjectUserId: string | null;
    ip: string | null;
    requestId: string | null;
    details?: Record<string, string | number>;
  },
): Promise<void> {
  await sql`
    insert into audit_log (id, actor, action, subject_user_id, ip, request_id, details)
    values (${newId()}, ${entry.actor}, ${entry.action}, ${entry.subjectUserId}, ${entry.ip}, ${entry.requestId},
      ${sql.json(entry.details ?? {})})`;
}
