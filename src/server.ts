import type { Hono } from "hono";
import type { Deps } from "./deps.ts";
import { requireUser } from "./http/auth.ts";
import { createRouter, type Env, type RouteSpec } from "./http/env.ts";
import { allowOrigins, securityHeaders } from "./http/headers.ts";
import { idempotency } from "./http/idempotency.ts";
import { takeLargeBody } from "./http/largeBody.ts";
import { metered } from "./http/metered.ts";
import { limitBody, measure, requestLog, sendElsewhere, traceRequest } from "./http/middleware.ts";
import { requireOperator, requireOperatorOrLocal } from "./http/operator.ts";
import { renderNoRoute, renderProblem } from "./http/problem.ts";
import { takeUpload } from "./http/upload.ts";
import { accountRoutes } from "./routes/account.ts";
import { adminRoutes } from "./routes/admin.ts";
import { assistantRoutes } from "./routes/assistants.ts";
import { authRoutes } from "./routes/auth.ts";
import { authMailRoutes } from "./routes/authMail.ts";
import { chatRoute } from "./routes/chat.ts";
import { docsRoutes } from "./routes/docs.ts";
import { metricsRoutes } from "./routes/metrics.ts";
import { socialAuthRoutes } from "./routes/socialAuth.ts";
import { sessionRoutes } from "./routes/sessions.ts";
import { returnPage } from "./routes/returnPage.ts";
import { subscriptionRoutes } from "./routes/subscription.ts";
import { systemRoutes } from "./routes/system.ts";
import { userRoutes } from "./routes/user.ts";
import { voiceRoutes } from "./routes/voice.ts";
import { webhookRoutes } from "./routes/webhooks.ts";
import type { ChatHub } from "./services/chatHub.ts";
import type { Starter } from "./services/turnEngine.ts";

export interface HttpServer {
  app: Hono<Env>;
  specs: RouteSpec[];
}

/** The HTTP application: what runs before every route, and which file serves which address. */
export function createServer(deps: Deps, hub: ChatHub, engine: Starter, isDraining: () => boolean): HttpServer {
  const router = createRouter({
    public: [],
    user: [requireUser(deps)],
    operator: [requireOperator(deps)],
    local: [requireOperatorOrLocal(deps)],
    metered: [metered(deps)],
    idempotent: [idempotency(deps)],
    large: takeLargeBody(deps.soundMemory),
    upload: takeUpload,
  });
  const { app, specs } = router;
  app.use(requestLog(deps.log, deps.config.TRUSTED_PROXIES), measure(deps.metrics), securityHeaders(deps.config));
  app.use(traceRequest(deps.traces));
  app.use("/api/*", allowOrigins(deps.config));
  app.use(sendElsewhere(isDraining), limitBody(specs));
  app.onError(renderProblem);
  app.notFound((c) => renderNoRoute(c, methodsOf(app, c.req.path)));

  // Public
  systemRoutes(router, deps, isDraining);
  authRoutes(router, deps);
  socialAuthRoutes(router, deps);
  authMailRoutes(router, deps);
  webhookRoutes(router, deps);
  docsRoutes(app, specs);
  chatRoute(app);
  returnPage(app);

  // Signed-in users
  sessionRoutes(router, deps);
  userRoutes(router, deps);
  assistantRoutes(router, deps, hub, engine);
  voiceRoutes(router, deps, isDraining);
  accountRoutes(router, deps);
  subscriptionRoutes(router, deps);

  // Operators
  metricsRoutes(router, deps, hub);
  adminRoutes(router, deps);

  return { app, specs };
}

/** The methods that an address takes; none when it is nobody's. A GET is answered to HEAD, too. */
function methodsOf(app: Hono<Env>, path: string): string[] {
  const fits = (pattern: string) => new RegExp(`^${pattern.replace(/:\w+/g, "[^/]+")}$`).test(path);
  const methods = app.routes.filter((route) => route.method !== "ALL" && fits(route.path)).map(({ method }) => method);
  return [...new Set(methods.includes("GET") ? [...methods, "HEAD"] : methods)].sort();
}
