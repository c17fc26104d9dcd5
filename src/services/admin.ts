import * as rows from "../db/admin.ts";
import { insertAudit, listAudit, type AuditAction, type AuditEntry } from "../db/audit.ts";
import type { Queryable } from "../db/connect.ts";
import { findDeletion } from "../db/deletions.ts";
import { listEntitlements, type Entitlement } from "../db/subscriptions.ts";
import { requestStopOfUser } from "../db/turns.ts";
import { getUsage, type Usage } from "../db/usage.ts";
import type { User } from "../db/users.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { endAccess } from "./access.ts";
import { giveGrant, takeGrant, type Grant } from "./grants.ts";
import type { Operator } from "./operators.ts";
import { revokeAllSessions, type Origin } from "./sessions.ts";

type SqlDeps = Pick<Deps, "sql">;

/** What an operator sees of one user: no message, no secret. */
export interface UserOverview {
  user: User;
  sessions: number;
  usage: Usage;
  assistants: rows.AssistantOverview[];
  /** What they have by whom: payment, gifts. */
  entitlements: Entitlement[];
  deletion: Awaited<ReturnType<typeof findDeletion>>;
}

export interface Page<T> {
  items: T[];
  nextCursor: string | null;
}

export async function findUsers(
  deps: SqlDeps,
  query: {
    id: string | null;
    email: string | null;
    status: User["status"] | null;
    cursor: string | null;
    limit: number;
  },
): Promise<Page<User>> {
  const { limit, cursor: before } = query;
  return pageOf(await rows.listUsers(deps.sql, { ...query, before, limit: limit + 1 }), limit);
}

/** Throws `user_not_found`. */
export async function getUserOverview(deps: SqlDeps, userId: string): Promise<UserOverview> {
  // One moment for all of it: the user may be going.
  const overview = await deps.sql.begin("isolation level repeatable read read only", (sql) => readUser(sql, userId));
  if (!overview) throw new AppError("user_not_found");
  return overview;
}

async function readUser(sql: Queryable, userId: string): Promise<UserOverview | null> {
  const user = await rows.findUser(sql, userId);
  if (!user) return null;
  return {
    user,
    sessions: await rows.countSessions(sql, userId),
    usage: await getUsage(sql, userId),
    assistants: await rows.listAssistantOverviews(sql, userId),
    entitlements: await listEntitlements(sql, userId),
    deletion: await findDeletion(sql, userId),
  };
}

/**
 * Suspends a user: sessions end, sockets close, turns stop, assistants go to sleep. Done twice it is done once. Throws
 * `user_not_found`, `account_deleting`.
 */
export async function suspendUser(
  deps: SqlDeps,
  operator: Operator,
  origin: Origin,
  input: { userId: string; reason: string },
): Promise<UserOverview> {
  const { userId, reason } = input;
  return actOn(deps, userId, async (sql) => {
    // Before the user's row is locked, as in services/leaving.ts.
    await requestStopOfUser(sql, userId);
    if (!(await rows.setUserStatus(sql, { userId, from: "active", to: "suspended" }))) return;
    const sessions = await endAccess(sql, { userId, reason: "suspended" });
    await insertAudit(sql, {
      ...by(operator, origin, userId),
      action: "account.suspended",
      details: { reason, sessions },
    });
  });
}

/** Lets a suspended user in again; they sign in anew. Throws `user_not_found`, `account_deleting`. */
export async function restoreUser(
  deps: SqlDeps,
  operator: Operator,
  origin: Origin,
  userId: string,
): Promise<UserOverview> {
  return actOn(deps, userId, async (sql) => {
    if (!(await rows.setUserStatus(sql, { userId, from: "suspended", to: "active" }))) return;
    // A sign-in that was under way when they were suspended may have opened one.
    await endAccess(sql, { userId, reason: "suspended" });
    await insertAudit(sql, { ...by(operator, origin, userId), action: "account.restored" });
  });
}

/** Signs a user out everywhere. Throws `user_not_found`. */
export async function endUserSessions(
  deps: SqlDeps,
  operator: Operator,
  origin: Origin,
  userId: string,
): Promise<UserOverview> {
  return actOn(deps, userId, async (sql) => {
    const sessions = await revokeAllSessions(sql, { userId, reason: "operator" });
    const details = { sessions };
    await insertAudit(sql, { ...by(operator, origin, userId), action: "session.ended_by_operator", details });
  });
}

/** Gives a user a plan (services/grants.ts). Throws `user_not_found`, `account_deleting`, `validation_failed`. */
export async function grantPlan(
  deps: SqlDeps,
  operator: Operator,
  origin: Origin,
  input: { userId: string; grant: Grant },
): Promise<UserOverview> {
  return actOn(deps, input.userId, (sql) => giveGrant(sql, by(operator, origin, input.userId), input));
}

/** Takes a gift back; done twice it is done once. Throws `user_not_found`, `account_deleting`. */
export async function endGrantOf(
  deps: SqlDeps,
  operator: Operator,
  origin: Origin,
  userId: string,
): Promise<UserOverview> {
  return actOn(deps, userId, async (sql) => void (await takeGrant(sql, by(operator, origin, userId), userId)));
}

/** The audit log, newest first. */
export async function readAudit(
  deps: SqlDeps,
  query: { userId: string | null; action: AuditAction | null; cursor: string | null; limit: number },
): Promise<Page<AuditEntry>> {
  const { limit, cursor: before } = query;
  return pageOf(await listAudit(deps.sql, { ...query, before, limit: limit + 1 }), limit);
}

// An act, its audit and the look afterwards are one transaction.
async function actOn(deps: SqlDeps, userId: string, act: (sql: Queryable) => Promise<void>): Promise<UserOverview> {
  return deps.sql.begin(async (sql) => {
    const user = await rows.findUser(sql, userId);
    if (!user) throw new AppError("user_not_found");
    if (user.status === "deleting") throw new AppError("account_deleting");
    await act(sql);
    const overview = await readUser(sql, userId);
    if (!overview) throw new AppError("user_not_found");
    return overview;
  });
}

function by(operator: Operator, origin: Origin, subjectUserId: string) {
  return { actor: `operator:${operator.name}`, subjectUserId, ...origin };
}

function pageOf<T extends { id: string }>(found: T[], limit: number): Page<T> {
  const items = found.slice(0, limit);
  return { items, nextCursor: found.length > limit ? items.at(-1)!.id : null };
}
