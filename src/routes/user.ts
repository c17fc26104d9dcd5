import type { Deps } from "../deps.ts";
import type { Router } from "../http/env.ts";
import { exportSchema, passwordBody, profileBody, profileSchema, usageQuery, usageSchema } from "../protocol/user.ts";
import { createExporter } from "../services/export.ts";
import { changePassword } from "../services/passwordChange.ts";
import { changeProfile, getProfile } from "../services/profile.ts";
import { readUsage } from "../services/usage.ts";
import { renderDailyUse, renderProfile, renderUsage } from "../services/userView.ts";

const tag = "User";

/** `/api/user`: profile, password, usage, export. */
export function userRoutes(router: Router, deps: Deps): void {
  profileRoutes(router, deps);
  router.route(
    {
      method: "get",
      path: "/api/user/usage",
      access: "user",
      metered: true,
      tag,
      summary: "What was used today of what the plan gives",
      query: usageQuery,
      responses: { 200: usageSchema },
      errors: [],
    },
    async (c, { query }) => {
      const { today, assistants, history } = await readUsage(deps, c.get("actor"), { days: query.days ?? null });
      c.set("usage", today);
      return c.json({
        ...renderUsage(today, assistants),
        ...(history ? { history: history.map(renderDailyUse) } : {}),
      });
    },
  );
  const exporter = createExporter(deps);
  router.route(
    {
      method: "get",
      path: "/api/user/export",
      access: "user",
      tag,
      summary: "Everything that is kept about the user, as a ZIP stream",
      produces: "application/zip",
      responses: { 200: exportSchema },
      errors: ["export_running", "too_many_attempts"],
    },
    async (c) => {
      c.header("Content-Type", "application/zip");
      // Only the head is asked for: nothing begins that nobody would read.
      if (c.req.method === "HEAD") return c.body(null);
      const { filename, body } = await exporter.begin(c.get("actor"), c.get("origin"));
      c.header("Content-Disposition", `attachment; filename="${filename}"`);
      return c.body(body);
    },
  );
}

function profileRoutes(router: Router, deps: Deps): void {
  const shared = { path: "/api/user/profile", access: "user", tag, responses: { 200: profileSchema } } as const;
  router.route({ ...shared, method: "get", summary: "Read the profile", errors: [] }, async (c) =>
    c.json(renderProfile(await getProfile(deps, c.get("actor")))),
  );
  router.route(
    { ...shared, method: "put", summary: "Change the profile", body: profileBody, errors: ["timezone_changed"] },
    async (c, { body }) => {
      const input = {
        ...(body.name === undefined ? {} : { name: body.name }),
        ...(body.avatar_url === undefined ? {} : { avatarUrl: body.avatar_url }),
        ...(body.timezone === undefined ? {} : { timezone: body.timezone }),
      };
      return c.json(renderProfile(await changeProfile(deps, c.get("actor"), input)));
    },
  );
  router.route(
    {
      method: "post",
      path: "/api/user/password",
      access: "user",
      tag,
      summary: "Change the password; every other session ends",
      body: passwordBody,
      responses: { 204: null },
      errors: ["weak_password", "no_password", "invalid_credentials", "too_many_attempts"],
    },
    async (c, { body }) => {
      await changePassword(deps, c.get("actor"), c.get("origin"), {
        currentPassword: body.current_password,
        newPassword: body.new_password,
      });
      return c.body(null, 204);
    },
  );
}
