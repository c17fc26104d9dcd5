import type { Context } from "hono";
import { HTTPException } from "hono/http-exception";
import { AppError, type ErrorCode, type ErrorExtras } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import type { Env } from "./env.ts";
import { SECURITY_HEADERS } from "./headers.ts";

/** Postgres: a text with a NUL character. */
const UNSTORABLE_TEXT = "22021";
/** Postgres: a row that names nobody, and the key that says so where that was to be a user. */
const NAMES_NOBODY = "23503";
const KEY_TO_USER = /_user_id_fkey$/;

/** The only place where a failed request becomes an answer. What is not an AppError is logged and says nothing. */
export function renderProblem(error: Error, c: Context<Env>): Response {
  const known = toAppError(isAbortOf(error, c) ? new AppError("client_gone") : error);
  const log = c.get("log");
  if (known === null) log.error({ err: error }, "request failed");
  const problem = known ?? new AppError("internal_error");
  if (problem.extras.retry_after !== undefined)
    c.header("Retry-After", String(Math.max(1, Math.ceil(problem.extras.retry_after))));
  if (problem.status === 401) c.header("WWW-Authenticate", "Bearer");
  if (problem.status === 426) c.header("Upgrade", "websocket");
  return c.json(
    renderError(problem.code, problem.message, problem.extras, c.get("origin")?.requestId ?? ""),
    problem.status as 400,
  );
}

/** Whether it failed because nobody waits for it any more. */
function isAbortOf(error: Error, c: Context): boolean {
  const { signal } = c.req.raw;
  return signal.aborted && (error === signal.reason || error.name === "AbortError");
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
  // Whoever's rows are gone since the token was checked.
  if (
    codeOf(error) === NAMES_NOBODY &&
    KEY_TO_USER.test(String((error as { constraint_name?: unknown }).constraint_name))
  )
    return new AppError("unauthorized");
  if (isUnavailable(error)) return new AppError("service_unavailable", { retry_after: 2 });
  return null;
}

// What `postgres` throws while the server is away, starting up, full or too slow: the request did nothing and may be
// repeated. 53100 is a full disk, 53300 too many connections, 57014 the statement timeout, 57P0x a server that ends or starts,
// 25P03 a transaction in which we stood still, 25P04 one that took too long, 40001 and 40P01 one that met another.
const UNAVAILABLE =
  /^(CONNECT_TIMEOUT|CONNECTION_(CLOSED|ENDED|DESTROYED)|ECONN(REFUSED|RESET|ABORTED)|E(HOST|NET)UNREACH|ETIMEDOUT|EPIPE|ENOTFOUND|EAI_AGAIN|53[13]00|57014|57P0[1-3]|25P0[34]|40001|40P01)$/;

/** Whether the database is away for now; a wrong password or a missing database is not. */
export function isUnavailable(error: unknown): boolean {
  return UNAVAILABLE.test(codeOf(error));
}

function codeOf(error: unknown): string {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === "string" ? code : "";
}

/** The answer to a request that never came to the application: what the server refuses, or fails at, by itself. */
export function renderOutside(problem: AppError, requestId: string = newId()): Response {
  const { retry_after: retryAfter } = problem.extras;
  return Response.json(renderError(problem.code, problem.message, problem.extras, requestId), {
    status: problem.status,
    headers: {
      ...SECURITY_HEADERS,
      "X-Request-Id": requestId,
      ...(retryAfter === undefined ? {} : { "Retry-After": String(retryAfter) }),
    },
  });
}

/** The answer where no route fits: 405 when the address takes `methods`, else it is nobody's. */
export function renderNoRoute(c: Context<Env>, methods: string[]): Response {
  if (methods.length === 0 || methods.includes(c.req.method)) return renderProblem(new AppError("not_found"), c);
  c.header("Allow", methods.join(", "));
  return renderProblem(new AppError("method_not_allowed"), c);
}
