import { zValidator } from "@hono/zod-validator";
import { Hono, type Context, type MiddlewareHandler } from "hono";
import type { z } from "zod";
import { AppError, type ErrorCode } from "../lib/errors.ts";
import type { Log } from "../lib/log.ts";
import type { Identity } from "../services/accessTokens.ts";
import type { Origin } from "../services/sessions.ts";

export interface Env {
  Variables: { log: Log; origin: Origin; actor: Identity };
}

/** Operator routes are open to programs on this machine only. */
export type Access = "public" | "user" | "operator";

/** One route as the map, the documentation and the tests see it. */
export interface RouteSpec {
  method: "get" | "post" | "put" | "delete";
  path: string;
  access: Access;
  summary: string;
  tag: string;
  body?: z.ZodType;
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

/** A router whose routes describe themselves. `guards` run before a route of their access, in order. */
export function createRouter(guards: Record<Access, MiddlewareHandler<Env>[]>): Router {
  const app = new Hono<Env>();
  const specs: RouteSpec[] = [];
  return {
    app,
    specs,
    route(spec, handler) {
      specs.push(spec);
      const checks = [
        ...guards[spec.access],
        ...(spec.params ? [validate("param", spec.params)] : []),
        ...(spec.query ? [validate("query", spec.query)] : []),
        ...(spec.body ? [requireJson, validate("json", spec.body)] : []),
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

function validate(target: "json" | "query" | "param", schema: z.ZodType): MiddlewareHandler<Env> {
  return zValidator(target, schema, (result) => {
    if (result.success) return;
    // An id that is no UUID names nothing, so it is a 404 like any other unknown id.
    if (target === "param") throw new AppError("not_found");
    throw new AppError("validation_failed", { details: result.error.issues.flatMap(renderIssue) });
  });
}

const requireJson: MiddlewareHandler<Env> = async (c, next) => {
  const type = c.req.header("content-type") ?? "";
  if (!/^application\/([a-z0-9.+-]+\+)?json\b/i.test(type)) throw new AppError("unsupported_media_type");
  await next();
};

/** A fault of validation as `details` shows it: where, and what; never the value. */
export function renderIssue(issue: z.core.$ZodIssue): { path: string; message: string }[] {
  if (issue.code === "unrecognized_keys") {
    return issue.keys.map((key) => ({ path: [...issue.path, key].join(".").slice(0, 100), message: "unknown field" }));
  }
  return [{ path: issue.path.join("."), message: issue.message }];
}
