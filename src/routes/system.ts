import type { Deps } from "../deps.ts";
import type { Router } from "../http/env.ts";
import { healthSchema, probeSchema } from "../protocol/api.ts";
import { checkHealth } from "../services/health.ts";

const tag = "System";

/** Health and probes. `isDraining` says that the process is shutting down: it is alive, but no longer ready. */
export function systemRoutes(router: Router, deps: Deps, isDraining: () => boolean): void {
  const startedAt = Date.now();
  router.route(
    {
      method: "get",
      path: "/health",
      access: "public",
      tag,
      summary: "What works and what does not",
      responses: { 200: healthSchema, 503: healthSchema },
      errors: [],
    },
    async (c) => {
      const { down, missing: _, ...health } = await checkHealth(deps);
      const body = {
        status: down.length === 0 ? "ok" : "degraded",
        timestamp: new Date().toISOString(),
        uptime: Math.round((Date.now() - startedAt) / 1000),
        ...health,
      };
      return down.length === 0 ? c.json(body) : c.json({ ...body, down }, 503);
    },
  );
  router.route(
    {
      method: "get",
      path: "/livez",
      access: "public",
      tag,
      summary: "The process lives",
      responses: { 200: probeSchema },
      errors: [],
    },
    (c) => c.json({ status: "ok" }),
  );
  router.route(
    {
      method: "get",
      path: "/readyz",
      access: "public",
      tag,
      summary: "A chat would work: on this process's gateway or, through other processes, on another one",
      responses: { 200: probeSchema, 503: probeSchema },
      errors: [],
    },
    async (c) => {
      const down = isDraining() ? ["shutting down"] : (await checkHealth(deps)).missing;
      return down.length === 0 ? c.json({ status: "ok" }) : c.json({ status: "unavailable", waiting_for: down }, 503);
    },
  );
}
