import { bodyLimit } from "hono/body-limit";
import type { MiddlewareHandler } from "hono";
import { routePath } from "hono/route";
import { clientAddress } from "../lib/clientAddress.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import type { Log } from "../lib/log.ts";
import type { Metrics } from "../lib/metrics.ts";
import type { Env, RouteSpec } from "./env.ts";

const BODY_LIMIT_BYTES = 64 * 1024;

/** What the server tells about a connection, as `app.fetch(request, { ip })` passes it on. */
export interface ConnectionInfo {
  ip: string | null;
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
    c.get("log")[level](
      { method: c.req.method, path: c.req.path, status: c.res.status, ms, user_id: c.get("actor")?.userId },
      "request",
    );
  };
}

/** Times each request under the pattern of its route: a raw path would make a series of every id. */
export function measure(metrics: Pick<Metrics, "http">): MiddlewareHandler<Env> {
  return async (c, next) => {
    const started = performance.now();
    await next();
    const path = routePath(c, -1);
    const known = path.startsWith("/") && !path.endsWith("*");
    const labels = known ? { method: c.req.method, route: path } : { method: "any", route: "none" };
    metrics.http.observe({ ...labels, status: c.res.status }, (performance.now() - started) / 1000);
  };
}

/**
 * Refuses bodies over 64 KB, or over a route's own `bodyBytes`: by their Content-Length before a byte is read, else while
 * they come. `specs` may still grow.
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
    const own = specs.find((spec) => spec.bodyBytes && spec.path === path && spec.method === method.toLowerCase());
    return (own?.bodyBytes ? limitTo(own.bodyBytes) : usual)(c, next);
  };
}

/** Who keeps its connection to a process that is about to end should send its next request elsewhere. */
export function sendElsewhere(isDraining: () => boolean): MiddlewareHandler<Env> {
  return async (c, next) => {
    await next();
    if (isDraining()) c.header("Connection", "close");
  };
}
