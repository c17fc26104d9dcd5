import type { Context } from "hono";
import { HTTPException } from "hono/http-exception";
import { AppError, ERRORS, type ErrorCode, type ErrorExtras } from "../lib/errors.ts";
import type { Env } from "./env.ts";

/** Postgres: a text with a NUL character. */
const UNSTORABLE_TEXT = "22021";

/** The only place where a failed request becomes an answer. What is not an AppError is logged and says nothing. */
export function renderProblem(error: Error, c: Context<Env>): Response {
  const known = toAppError(error);
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

/** What a thrown value means to a user; null for what only the log may know. */
export function toAppError(error: unknown): AppError | null {
  if (error instanceof AppError) return error;
  if (error instanceof HTTPException) {
    if (error.status === 400) return new AppError("invalid_json");
    if (error.status === 413) return new AppError("body_too_large");
    return null;
  }
  if (codeOf(error) === UNSTORABLE_TEXT) {
    return new AppError("validation_failed", {
      details: [{ path: "", message: "a text contains a character that can't be stored (NUL)" }],
    });
  }
  if (isUnavailable(error)) return new AppError("service_unavailable", { retry_after: 2 });
  return null;
}

// What `postgres` throws while the server is away or starting up: the request did nothing and may be repeated.
function isUnavailable(error: unknown): boolean {
  return /^(CONNECT_TIMEOUT|CONNECTION_(CLOSED|ENDED|DESTROYED)|ECONNREFUSED|ECONNRESET|57P0[123]|53300)$/.test(
    codeOf(error),
  );
}

function codeOf(error: unknown): string {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === "string" ? code : "";
}

/** The answer to an address that is nobody's. */
export function renderNotFound(c: Context<Env>): Response {
  return c.json(renderError("not_found", ERRORS.not_found.message, {}, c.get("origin")?.requestId ?? ""), 404);
}
