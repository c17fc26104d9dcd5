import type { Deps } from "../deps.ts";
import type { Router } from "../http/env.ts";
import { metricsSchema } from "../protocol/api.ts";
import type { ChatHub } from "../services/chatHub.ts";
import { renderMetrics } from "../services/metrics.ts";

/** The numbers of this process for Prometheus. */
export function metricsRoutes(router: Router, deps: Deps, hub: ChatHub): void {
  router.route(
    {
      method: "get",
      path: "/metrics",
      access: "operator",
      local: true,
      tag: "System",
      summary: "Numbers of this process, for Prometheus; from this machine, or with an operator token",
      produces: "text/plain",
      responses: { 200: metricsSchema },
      errors: [],
    },
    async (c) => {
      const { text, contentType } = await renderMetrics(deps, hub);
      return c.body(text, 200, { "Content-Type": contentType, "Cache-Control": "no-store" });
    },
  );
}
