import { bodyLimit } from "hono/body-limit";
import type { Context, MiddlewareHandler } from "hono";
import { routePath } from "hono/route";
import { clientAddress } from "../lib/clientAddress.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import type { Log } from "../lib/log.ts";
import type { Metrics } from "../lib/metrics.ts";
import type { Traces } from "../lib/trace.ts";
import type { Env, RouteSpec } from "./env.ts";

const BODY_LIMIT_BYTES = 64 * 1024;

/** What the server tells about a connection, and does with it, as the second argument of `app.fetch` passes it on. */
export interface ConnectionInfo {
  ip: string | null;
  /** Whether the connection may be without traffic for longer than usual; whoever allows it has a limit of their own. */
  allowQuiet(quiet: boolean): void;
}

export function allowQuiet(c: Context<Env>, quiet: boolean): void {
  (c.env as ConnectionInfo | undefined)?.allowQuiet(quiet);
}

/** Gives each request an id and a logger, and writes one wide line at its end: no query, no body, no token. */
export function requestLog(log: Log, trustedProxies: number): MiddlewareHandler<Env> {
  return async (c, next) => {
    const started = performance.now();
    const given = c.req.header("x-request-id");
    const requestId = given && /^[\w.-]{8,64}$/.test(given) ? given : newId();
    c.set("log", log.child({ request_id: requestId }));
    const peer = (c.env as ConnectionInfo | undefined)?.ip ?? null;
    c.set("origin", { ip: clientAddress(peer, c.req.header("x-forwarded-for"), trustedProxies), requestId });
    await next();
    c.header("X-Request-Id", requestId);
    const ms = Math.round(performance.now() - started);
    // A probe comes every second and says nothing new.
    const level = c.req.path === "/readyz" || c.req.path === "/livez" ? "debug" : "info";
    c.get("log")[level]({ method: c.req.method, path: c.req.path, status: c.res.status, ms }, "request");
  };
}

/** The same, its log saying for which request. */
export function inRequest<D extends { log: Log }>(deps: D, c: Context<Env>): D {
  return { ...deps, log: c.get("log") };
}

/** Times each request under the pattern of its route: a raw path would make a series of every id. */
export function measure(metrics: Pick<Metrics, "http">): MiddlewareHandler<Env> {
  return async (c, next) => {
    const started = performance.now();
    await next();
    metrics.http.observe({ ...routeOf(c), status: c.res.status }, (performance.now() - started) / 1000);
  };
}

/** Asked every few seconds, by machines, and never of interest. */
const UNTRACED = ["/livez", "/readyz", "/metrics"];

/** Tells each request as the root of a trace, which is that of the turn it began, if it did. */
export function traceRequest(traces: Traces): MiddlewareHandler<Env> {
  if (!traces.isOn) return (_c, next) => next();
  return async (c, next) => {
    if (UNTRACED.includes(c.req.path)) return next();
    const root = traces.begin(c.req.header("traceparent"));
    await traces.within(root, next);
    const { method, route } = routeOf(c);
    root.end({
      name: `${method} ${route}`,
      attributes: {
        "http.request.method": c.req.method,
        "http.route": route,
        "http.response.status_code": c.res.status,
        "reef.request_id": c.get("origin").requestId,
        "reef.user_id": c.get("actor")?.userId,
      },
      failed: c.res.status >= 500,
    });
  };
}

function routeOf(c: Context<Env>): { method: string; route: string } {
  const path = routePath(c, -1);
  const known = path.startsWith("/") && !path.endsWith("*");
  return known ? { method: c.req.method, route: path } : { method: "any", route: "none" };
}

/**
 * Refuses bodies over 64 KB, or over what a public route takes (`bodyBytes`): by their Content-Length before a byte is
 * read, else while they come. A signed-in route that takes larger ones reads them itself (http/largeBody.ts).
 */
export function limitBody(specs: readonly RouteSpec[]): MiddlewareHandler<Env> {
  const limitTo = (maxSize: number) =>
    bodyLimit({
      maxSize,
      onError: () => {
        throw new AppError("body_too_large");
      },
    });
  const usual = limitTo(BODY_LIMIT_BYTES);
  return (c, next) => {
    const { method, path } = c.req;
    const own = specs.find((spec) => spec.bodyBytes && spec.path === path && spec.method.toUpperCase() === method);
    if (!own?.bodyBytes) return usual(c, next);
    return own.access === "user" ? next() : limitTo(own.bodyBytes)(c, next);
  };
}

/** Who keeps its connection to a process that is about to end should send its next request elsewhere. */
export function sendElsewhere(isDraining: () => boolean): MiddlewareHandler<Env> {
  return async (c, next) => {
    await next();
    if (isDraining()) c.header("Connection", "close");
  };
}
