import type { Device } from "../db/sessions.ts";
import type { Deps } from "../deps.ts";
import type { Router } from "../http/env.ts";
import { idParam } from "../protocol/api.ts";
import { renameSessionBody, sessionSchema } from "../protocol/sessions.ts";
import { endOtherSession, listSessions, renameSession } from "../services/sessions.ts";

const tag = "Authentication";
const path = "/api/auth/sessions";

/** `/api/auth/sessions`: the devices that a person is signed in on. */
export function sessionRoutes(router: Router, deps: Deps): void {
  router.route(
    {
      method: "get",
      path,
      access: "user",
      tag,
      summary: "The devices you are signed in on",
      responses: { 200: sessionSchema.array() },
      errors: [],
    },
    async (c) => c.json((await listSessions(deps, c.get("actor"))).map(renderSession)),
  );
  router.route(
    {
      method: "put",
      path: `${path}/:id`,
      access: "user",
      tag,
      summary: "Name a device",
      params: idParam,
      body: renameSessionBody,
      responses: { 200: sessionSchema },
      errors: ["session_not_found"],
    },
    async (c, { params, body }) => {
      const input = { sessionId: params.id, deviceName: body.device_name };
      return c.json(renderSession(await renameSession(deps, c.get("actor"), input)));
    },
  );
  router.route(
    {
      method: "delete",
      path: `${path}/:id`,
      access: "user",
      tag,
      summary: "Sign a device out",
      params: idParam,
      responses: { 204: null },
      errors: ["session_not_found"],
    },
    async (c, { params }) => {
      await endOtherSession(deps, c.get("actor"), c.get("origin"), params.id);
      return c.body(null, 204);
    },
  );
}

function renderSession(device: Device & { current: boolean }) {
  return {
    id: device.id,
    device_name: device.deviceName,
    ip: device.ip,
    created_at: device.createdAt.toISOString(),
    last_used_at: device.lastUsedAt.toISOString(),
    current: device.current,
  };
}
