import { zValidator } from "@hono/zod-validator";
import { Hono, type Context, type MiddlewareHandler } from "hono";
import type { z } from "zod";
import type { Usage } from "../db/usage.ts";
import { AppError, type ErrorCode } from "../lib/errors.ts";
import type { Log } from "../lib/log.ts";
import type { Identity } from "../services/accessTokens.ts";
import type { Operator } from "../services/operators.ts";
import type { Origin } from "../services/sessions.ts";

export interface Env {
  Variables: {
    log: Log;
    origin: Origin;
    actor: Identity;
    operator: Operator;
    /** Names what an idempotent write creates. */ claim?: string;
    /** The caller's day, where the handler knows it. */ usage?: Usage;
  };
}

const JSON_TYPE = /^application\/([a-z0-9.+-]+\+)?json\s*(;|$)/i;

/** Who may call a route: anybody, a signed-in user, somebody with an operator token. */
export type Access = "public" | "user" | "operator";

/** One route as the map, the documentation and the tests see it. */
export interface RouteSpec {
  method: "get" | "post" | "put" | "delete";
  path: string;
  access: Access;
  /** An operator route that is also open, without a token, to programs on this machine. */
  local?: true;
  /** Its answers tell how the caller's day stands (http/metered.ts). */
  metered?: true;
  summary: string;
  tag: string;
  body?: z.ZodType;
  /** How large a body may be, where it may be larger than others (http/middleware.ts). */
  bodyBytes?: number;
  query?: z.ZodType;
  params?: z.ZodType;
  /** The answer's content type where it is not JSON. */
  produces?: string;
  /** Status → schema of the answer; null for one without a body. */
  responses: Record<number, z.ZodType | null>;
  errors: readonly ErrorCode[];
}

type Parsed<T> = T extends z.ZodType ? z.output<T> : undefined;
type Handler<S extends RouteSpec> = (
  c: Context<Env>,
  input: { body: Parsed<S["body"]>; query: Parsed<S["query"]>; params: Parsed<S["params"]> },
) => Promise<Response> | Response;

export interface Router {
  app: Hono<Env>;
  specs: RouteSpec[];
  /** Adds a route: what `spec` says is validated before `handler` runs. */
  route<const S extends RouteSpec>(spec: S, handler: Handler<S>): void;
}

/**
 * A router whose routes describe themselves. `guards` run before a route of their access, in order, `metered` before a
 * metered one.
 */
export function createRouter(guards: Record<Access | "local" | "metered", MiddlewareHandler<Env>[]>): Router {
  const app = new Hono<Env>();
  const specs: RouteSpec[] = [];
  return {
    app,
    specs,
    route(spec, handler) {
      specs.push(spec);
      const checks = [
        ...guards[spec.local ? "local" : spec.access],
        ...(spec.metered ? guards.metered : []),
        ...(spec.params ? [validate("param", spec.params)] : []),
        ...(spec.query ? [validate("query", spec.query)] : []),
        ...(spec.body ? [validateBody(spec.body)] : []),
      ];
      const valid = (c: Context<Env>, target: string) => c.req.valid(target as never);
      app.on(spec.method.toUpperCase(), [spec.path], ...checks, (c) =>
        handler(c, {
          body: (spec.body ? valid(c, "json") : undefined) as never,
          query: (spec.query ? valid(c, "query") : undefined) as never,
          params: (spec.params ? valid(c, "param") : undefined) as never,
        }),
      );
    },
  };
}

function validate(target: "query" | "param", schema: z.ZodType): MiddlewareHandler<Env> {
  return zValidator(target, schema, (result) => {
    if (result.success) return;
    // An id that is no UUID names nothing, so it is a 404 like any other unknown id.
    if (target === "param") throw new AppError("not_found");
    throw new AppError("validation_failed", { details: result.error.issues.flatMap(renderIssue) });
  });
}

/** Whether a route can be called without a body: its schema takes `{}`. */
export function isBodyOptional(body: z.ZodType): boolean {
  return body.safeParse({}).success;
}

// Our own instead of the validator's: that one takes a body whose Content-Type it can't read for `{}`.
function validateBody(schema: z.ZodType): MiddlewareHandler<Env> {
  const optional = isBodyOptional(schema);
  return async (c, next) => {
    const text = await c.req.text();
    const absent = optional && text === "";
    if (!absent && !JSON_TYPE.test(c.req.header("content-type") ?? "")) throw new AppError("unsupported_media_type");
    const result = schema.safeParse(absent ? {} : parseJson(text));
    if (!result.success) throw new AppError("validation_failed", { details: result.error.issues.flatMap(renderIssue) });
    c.req.addValidatedData("json", result.data as object);
    await next();
  };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new AppError("invalid_json");
  }
}

/** A fault of validation as `details` shows it: where, and what; never the value. */
export function renderIssue(issue: z.core.$ZodIssue): { path: string; message: string }[] {
  if (issue.code === "unrecognized_keys") {
    return issue.keys.map((key) => ({ path: [...issue.path, key].join(".").slice(0, 100), message: "unknown field" }));
  }
  return [{ path: issue.path.join("."), message: issue.message }];
}
