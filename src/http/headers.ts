import type { MiddlewareHandler } from "hono";
import { cors } from "hono/cors";
import type { Config } from "../config.ts";
import type { Env } from "./env.ts";
import { RATE_LIMIT_HEADERS } from "./metered.ts";

/** Headers of every answer of an API: nothing of it belongs in a frame, a page or a sniffer. */
export const SECURITY_HEADERS = {
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "X-Frame-Options": "DENY",
  "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
} as const;
const HSTS = "max-age=31536000";
const PREFLIGHT_SECONDS = 7200;

/** Adds them; a page of ours keeps the policy it sets itself. Nothing of /api belongs in a cache. */
export function securityHeaders(config: Pick<Config, "NODE_ENV" | "TRUSTED_PROXIES">): MiddlewareHandler<Env> {
  return async (c, next) => {
    await next();
    for (const [name, value] of Object.entries(SECURITY_HEADERS)) if (!c.res.headers.has(name)) c.header(name, value);
    // Browsers ignore it over plain HTTP; only a proxy of ours can know that there was TLS.
    const overTls = config.TRUSTED_PROXIES > 0 && c.req.header("x-forwarded-proto")?.trim().toLowerCase() === "https";
    if (overTls || config.NODE_ENV === "production") c.header("Strict-Transport-Security", HSTS);
    if (c.req.path.startsWith("/api/")) c.header("Cache-Control", "no-store");
  };
}

/** Lets the pages of CORS_ORIGINS call the API, and no others. Tokens travel in a header: cookies are never asked for. */
export function allowOrigins(config: Pick<Config, "CORS_ORIGINS">): MiddlewareHandler<Env> {
  if (config.CORS_ORIGINS.length === 0) return (_, next) => next();
  return cors({
    origin: config.CORS_ORIGINS,
    allowMethods: ["GET", "POST", "PUT", "DELETE"],
    allowHeaders: ["Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id"],
    exposeHeaders: ["X-Request-Id", "Retry-After", "Content-Disposition", ...Object.keys(RATE_LIMIT_HEADERS)],
    maxAge: PREFLIGHT_SECONDS,
  });
}

/**
 * Whether a page may open a chat socket, to which CORS does not apply. Without a list every page may (it needs a token
 * in any case). Apps send no Origin, or one made of the address they call (React Native).
 */
export function mayOpenSocket(config: Pick<Config, "CORS_ORIGINS">, request: Request): boolean {
  const origin = request.headers.get("origin");
  if (config.CORS_ORIGINS.length === 0 || origin === null || config.CORS_ORIGINS.includes(origin)) return true;
  return URL.parse(origin)?.host === request.headers.get("host");
}
