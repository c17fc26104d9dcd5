import { AUDIT_ACTIONS, type AuditAction, type AuditEntry } from "../db/audit.ts";
import type { User } from "../db/users.ts";
import type { Deps } from "../deps.ts";
import type { Router } from "../http/env.ts";
import {
  auditQueryOf,
  auditSchema,
  grantBody,
  suspendBody,
  userOverviewSchema,
  usersQuery,
  usersSchema,
} from "../protocol/admin.ts";
import { idParam } from "../protocol/api.ts";
import {
  endGrantOf,
  endUserSessions,
  findUsers,
  getUserOverview,
  grantPlan,
  readAudit,
  restoreUser,
  suspendUser,
  type UserOverview,
} from "../services/admin.ts";
import { renderUsageFrame } from "../services/usage.ts";
import { renderUser } from "../services/userView.ts";

const path = "/api/admin";
const auditQuery = auditQueryOf(AUDIT_ACTIONS);

/** `/api/admin`: what operators do with an operator token. Never a message's text. */
export function adminRoutes(router: Router, deps: Deps): void {
  readRoutes(router, deps);
  actRoutes(router, deps);
  grantRoutes(router, deps);
}

const shared = { access: "operator", tag: "Operators" } as const;
const act = {
  ...shared,
  method: "post",
  params: idParam,
  responses: { 200: userOverviewSchema },
  errors: ["user_not_found", "account_deleting"],
} as const;

function readRoutes(router: Router, deps: Deps): void {
  router.route(
    {
      ...shared,
      method: "get",
      path: `${path}/users`,
      summary: "Find users, newest first",
      query: usersQuery,
      responses: { 200: usersSchema },
      errors: [],
    },
    async (c, { query }) => {
      const { items, nextCursor } = await findUsers(deps, {
        id: query.id ?? null,
        email: query.email ?? null,
        status: query.status ?? null,
        cursor: query.cursor ?? null,
        limit: query.limit,
      });
      return c.json({ items: items.map(renderAccount), next_cursor: nextCursor });
    },
  );
  router.route(
    {
      ...shared,
      method: "get",
      path: `${path}/users/:id`,
      summary: "One user: account, plan, devices, today's usage, assistants",
      params: idParam,
      responses: { 200: userOverviewSchema },
      errors: ["user_not_found"],
    },
    async (c, { params }) => c.json(renderOverview(await getUserOverview(deps, params.id))),
  );
  router.route(
    {
      ...shared,
      method: "get",
      path: `${path}/audit`,
      summary: "The audit log, newest first",
      query: auditQuery,
      responses: { 200: auditSchema },
      errors: [],
    },
    async (c, { query }) => {
      const { items, nextCursor } = await readAudit(deps, {
        userId: query.user_id ?? null,
        action: (query.action ?? null) as AuditAction | null,
        cursor: query.cursor ?? null,
        limit: query.limit,
      });
      return c.json({ items: items.map(renderEntry), next_cursor: nextCursor });
    },
  );
}

function actRoutes(router: Router, deps: Deps): void {
  router.route(
    {
      ...act,
      path: `${path}/users/:id/suspend`,
      summary: "Suspend a user: signed out at once, answers stop, assistants sleep",
      body: suspendBody,
    },
    async (c, { params, body }) => {
      const input = { userId: params.id, reason: body.reason };
      return c.json(renderOverview(await suspendUser(deps, c.get("operator"), c.get("origin"), input)));
    },
  );
  router.route(
    { ...act, path: `${path}/users/:id/restore`, summary: "Let a suspended user in again" },
    async (c, { params }) =>
      c.json(renderOverview(await restoreUser(deps, c.get("operator"), c.get("origin"), params.id))),
  );
  router.route(
    { ...act, path: `${path}/users/:id/end-sessions`, summary: "Sign a user out on every device" },
    async (c, { params }) =>
      c.json(renderOverview(await endUserSessions(deps, c.get("operator"), c.get("origin"), params.id))),
  );
}

function grantRoutes(router: Router, deps: Deps): void {
  const grant = { ...act, path: `${path}/users/:id/grant` } as const;
  router.route(
    {
      ...grant,
      summary: "Give a user a plan, beside what they pay for; takes the place of an earlier gift",
      body: grantBody,
    },
    async (c, { params, body }) => {
      const until = body.until === undefined ? null : new Date(body.until);
      const input = { userId: params.id, grant: { plan: body.plan, until } };
      return c.json(renderOverview(await grantPlan(deps, c.get("operator"), c.get("origin"), input)));
    },
  );
  router.route({ ...grant, method: "delete", summary: "Take the gift back" }, async (c, { params }) =>
    c.json(renderOverview(await endGrantOf(deps, c.get("operator"), c.get("origin"), params.id))),
  );
}

function renderAccount(user: User) {
  return { ...renderUser(user), status: user.status };
}

function renderOverview({ user, sessions, usage, assistants, entitlements, deletion }: UserOverview) {
  const { type: _, ...today } = renderUsageFrame(usage);
  return {
    user: renderAccount(user),
    sessions,
    usage: { date: usage.date, ...today },
    assistants: assistants.map((assistant) => ({
      id: assistant.id,
      agent_id: assistant.agentId,
      status: assistant.status,
      state: assistant.state,
      state_reason: assistant.stateReason,
      purge_step: assistant.purgeStep,
      message_count: assistant.messageCount,
      last_active_at: assistant.lastActiveAt?.toISOString() ?? null,
    })),
    entitlements: entitlements.map((entitlement) => ({
      source: entitlement.source,
      plan: entitlement.plan,
      status: entitlement.status,
      current_period_end: entitlement.currentPeriodEnd?.toISOString() ?? null,
    })),
    deletion: deletion && {
      step: deletion.step,
      attempts: deletion.attempts,
      last_error: deletion.lastError,
      requested_at: deletion.requestedAt.toISOString(),
    },
  };
}

function renderEntry(entry: AuditEntry) {
  return {
    id: entry.id,
    at: entry.at.toISOString(),
    actor: entry.actor,
    action: entry.action,
    user_id: entry.subjectUserId,
    ip: entry.ip,
    request_id: entry.requestId,
    details: entry.details,
  };
}
