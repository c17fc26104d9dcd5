import { newId } from "../lib/ids.ts";
import type { Queryable } from "./connect.ts";

/** Every act that is audited: the closed list. */
export const AUDIT_ACTIONS = [
  "account.signup",
  "account.signup_refused",
  "account.exported",
  "account.password_changed",
  "account.password_change_failed",
  "account.deletion_requested",
  "account.deletion_refused",
  "account.deleted",
  "account.suspended",
  "account.restored",
  "email.verified",
  "identity.linked",
  "identity.token_failed",
  "identity.revocation_failed",
  "password.reset_requested",
  "password.reset",
  "session.login",
  "session.login_failed",
  "session.logout",
  "session.token_reuse",
  "session.ended_by_operator",
  "subscription.changed",
  "subscription.granted",
  "subscription.grant_ended",
  "subscription.disputed",
  "operator.token_created",
  "operator.token_revoked",
  "operator.token_refused",
  "billing.prices_synced",
  "gateway.drained",
  "gateway.activated",
  "gateway.placement_stopped",
  "gateway.placement_allowed",
] as const;
export type AuditAction = (typeof AUDIT_ACTIONS)[number];

/** One audited act. `actor`: `user:<id>`, `operator:<name>`, `job:<name>`, `stripe` or `unknown`. */
export interface AuditEntry {
  id: string;
  at: Date;
  actor: string;
  action: string;
  subjectUserId: string | null;
  ip: string | null;
  requestId: string | null;
  details: Record<string, string | number>;
}

/**
 * Records a security act in the act's own transaction. `details` hold ids and reasons, never secrets or addresses. A
 * storm of failures is as many rows as the throttles let through: ten per account and address, thirty per address, in
 * 15 minutes. Of somebody whose rows are erased already (a request was under way) ids are kept, nothing else.
 */
export async function insertAudit(
  sql: Queryable,
  entry: {
    actor: string;
    action: AuditAction;
    subjectUserId: string | null;
    ip: string | null;
    requestId: string | null;
    details?: Record<string, string | number>;
  },
): Promise<void> {
  await sql`
    insert into audit_log (id, actor, action, subject_user_id, ip, request_id, details)
    select ${newId()}::uuid, ${entry.actor}::text, ${entry.action}::text, ${entry.subjectUserId}::uuid,
      case when not gone then ${entry.ip}::text end, ${entry.requestId}::text,
      case when gone then '{}' else ${sql.json(entry.details ?? {})}::jsonb end
    from (select exists (select 1 from account_deletions
      where user_id = ${entry.subjectUserId} and step in ('redis', 'mail', 'done')) as gone) s`;
}

/** A page of the log, newest first; `before` is the id of the last entry of the page before. */
export async function listAudit(
  sql: Queryable,
  input: { userId: string | null; action: AuditAction | null; before: string | null; limit: number },
): Promise<AuditEntry[]> {
  return sql<AuditEntry[]>`
    select id, at, actor, action, subject_user_id, ip, request_id, details from audit_log
    where (${input.userId}::uuid is null or subject_user_id = ${input.userId})
      and (${input.action}::text is null or action = ${input.action})
      and (${input.before}::uuid is null or id < ${input.before})
    order by id desc limit ${input.limit}`;
}
