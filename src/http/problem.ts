import type { Context } from "hono";
import { HTTPException } from "hono/http-exception";
import { AppError, ERRORS, type ErrorCode, type ErrorExtras } from "../lib/errors.ts";
import type { Env } from "./env.ts";

/** The only place where a failed request becomes an answer. What is not an AppError is logged and says nothing. */
export function renderProblem(error: Error, c: Context<Env>): Response {
  const known = error instanceof AppError ? error : translate(error);
  const log = c.get("log");
  if (known === null) log.error({ err: error }, "request failed");
  const problem = known ?? new AppError("internal_error");
  if (problem.extras.retry_after !== undefined)
    c.header("Retry-After", String(Math.max(1, Math.ceil(problem.extras.retry_after))));
  if (problem.status === 401) c.header("WWW-Authenticate", "Bearer");
  return c.json(
    renderError(problem.code, problem.message, problem.extras, c.get("origin")?.requestId ?? ""),
    problem.status as 400,
  );
}

/** The body of every failed request. */
export function renderError(code: ErrorCode, message: string, extras: ErrorExtras, requestId: string) {
  return { error: message, code, request_id: requestId, ...extras };
}

function translate(error: Error): AppError | null {
  if (error instanceof HTTPException) {
    if (error.status === 400) return new AppError("invalid_json");
    if (error.status === 413) return new AppError("body_too_large");
    return null;
  }
  if (isUnavailable(error)) return new AppError("service_unavailable", { retry_after: 2 });
  return null;
}

// What `postgres` throws while the server is away or starting up: the request did nothing and may be repeated.
function isUnavailable(error: Error): boolean {
  const code = (error as { code?: unknown }).code;
  return (
    typeof code === "string" &&
    /^(CONNECT_TIMEOUT|CONNECTION_(CLOSED|ENDED|DESTROYED)|ECONNREFUSED|ECONNRESET|57P0[123]|53300)$/.test(code)
  );
}

/** The answer to an address that is nobody's. */
export function renderNotFound(c: Context<Env>): Response {
  return c.json(renderError("not_found", ERRORS.not_found.message, {}, c.get("origin")?.requestId ?? ""), 404);
}
