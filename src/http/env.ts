import { zValidator } from "@hono/zod-validator";
import { Hono, type Context, type MiddlewareHandler } from "hono";
import type { z } from "zod";
import type { Queryable } from "../db/connect.ts";
import type { Usage } from "../db/usage.ts";
import { AppError, type ErrorCode } from "../lib/errors.ts";
import type { Log } from "../lib/log.ts";
import type { Hold } from "../lib/memoryBudget.ts";
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
    /** Keeps the answer to an idempotent write in the transaction that makes it true. */ keepAnswer?: KeepAnswer;
    /** The request's bytes, where a guard has read them. */ body?: Uint8Array | undefined;
    /** What the request holds of the memory for large bodies. */ hold?: Hold;
    /** The file that the request brought. */ file?: Uint8Array;
    /** The caller's day, where the handler knows it. */ usage?: Usage;
  };
}

/** False: another run of the same request was first, its answer stays. */
export type KeepAnswer = (sql: Queryable, status: number, body: object) => Promise<boolean>;

/** A large body is one long text; of values it has fewer than this, or its reading would hold everybody up for seconds. */
const LARGE_CHARACTERS = 64 * 1024;
const MOST_VALUES = 10_000;
const JSON_TYPE = /^application\/([a-z0-9.+-]+\+)?json\s*(;|$)/i;

/** Who may call a route: anybody, a signed-in user, somebody with an operator token. */
export type Access = "public" | "user" | "operator";

/** A file as JSON with base64 in one of its fields, as the field of a form, or as the body itself. */
export interface UploadSpec {
  json: z.ZodType<{ [field: string]: unknown }>;
  /** The field that holds the file in JSON, as base64. */
  field: string;
  formField: string;
  /** Content types of the bare body, as OpenAPI writes them, and as they are matched. */
  types: readonly string[];
  typePattern: RegExp;
  /** What a body of another type is told. */
  otherType: string;
}

/** One route as the map, the documentation and the tests see it. */
export interface RouteSpec {
  method: "get" | "post" | "put" | "delete";
  path: string;
  access: Access;
  /** An operator route that is also open, without a token, to programs on this machine. */
  local?: true;
  /** Its answers tell how the caller's day stands (http/metered.ts). */
  metered?: true;
  /** How large its body may be where that is more than usual; read within a budget of memory (http/largeBody.ts). */
  bodyBytes?: number;
  /** A write whose answer is not kept: `Idempotency-Key` changes nothing. */
  keeps?: false;
  summary: string;
  tag: string;
  body?: z.ZodType;
  /** Takes a file instead, in one of several forms (http/upload.ts). */
  upload?: UploadSpec;
  query?: z.ZodType;
  params?: z.ZodType;
  /** The answer's content type where it is not JSON. */
  produces?: string;
  /** Content types of bytes that it answers instead, when `Accept` asks for them. */
  streams?: readonly string[];
  /** Status → schema of the answer; null for one without a body. */
  responses: Record<number, z.ZodType | null>;
  errors: readonly ErrorCode[];
}

type Parsed<T> = T extends z.ZodType ? z.output<T> : undefined;
type Handler<S extends RouteSpec> = (
  c: Context<Env>,
  input: {
    body: Parsed<S["body"]>;
    query: Parsed<S["query"]>;
    params: Parsed<S["params"]>;
    file: S["upload"] extends UploadSpec ? Uint8Array : undefined;
  },
) => Promise<Response> | Response;

export interface Router {
  app: Hono<Env>;
  specs: RouteSpec[];
  /** Adds a route: what `spec` says is validated before `handler` runs. */
  route<const S extends RouteSpec>(spec: S, handler: Handler<S>): void;
}

type Guards = Record<Access | "local" | "metered" | "idempotent", MiddlewareHandler<Env>[]> & {
  large(maxBytes: number): MiddlewareHandler<Env>;
  upload(spec: UploadSpec): MiddlewareHandler<Env>;
};

/**
 * A router whose routes describe themselves. `guards` run before a route of their access, in order; then `metered` before
 * a metered one, `large` before a signed-in one with a large body, `idempotent` before a signed-in write, `upload` before one with a file.
 */
export function createRouter(guards: Guards): Router {
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
        ...(spec.bodyBytes !== undefined && spec.access === "user" ? [guards.large(spec.bodyBytes)] : []),
        ...(keepsAnswer(spec) ? guards.idempotent : []),
        ...(spec.params ? [validate("param", spec.params)] : []),
        ...(spec.query ? [validate("query", spec.query)] : []),
        ...(spec.body ? [validateBody(spec.body)] : []),
        ...(spec.upload ? [guards.upload(spec.upload)] : []),
      ];
      const valid = (c: Context<Env>, target: string) => c.req.valid(target as never);
      app.on(spec.method.toUpperCase(), [spec.path], ...checks, (c) =>
        handler(c, {
          body: (spec.body ? valid(c, "json") : undefined) as never,
          query: (spec.query ? valid(c, "query") : undefined) as never,
          params: (spec.params ? valid(c, "param") : undefined) as never,
          file: (spec.upload ? c.get("file") : undefined) as never,
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

/** Whether a route honours `Idempotency-Key`. */
export function keepsAnswer(spec: RouteSpec): boolean {
  return spec.access === "user" && spec.method !== "get" && spec.keeps !== false;
}

/** Whether a route can be called without a body: its schema takes `{}`. */
export function isBodyOptional(body: z.ZodType): boolean {
  return body.safeParse({}).success;
}

// Our own instead of the validator's: that one takes a body whose Content-Type it can't read for `{}`.
function validateBody(schema: z.ZodType): MiddlewareHandler<Env> {
  const optional = isBodyOptional(schema);
  return async (c, next) => {
    const bytes = await readBody(c);
    const absent = optional && bytes.length === 0;
    if (!absent && !isJson(c)) throw new AppError("unsupported_media_type");
    c.req.addValidatedData("json", parseJson(schema, absent ? "{}" : new TextDecoder().decode(bytes)) as object);
    await next();
  };
}

/** The request's bytes, however often they are asked for. */
export async function readBody(c: Context<Env>): Promise<Uint8Array> {
  return c.get("body") ?? new Uint8Array(await c.req.arrayBuffer());
}

export function isJson(c: Context<Env>): boolean {
  return JSON_TYPE.test(c.req.header("content-type") ?? "");
}

/** What a JSON body says. Throws `invalid_json`, `validation_failed`. */
export function parseJson<S extends z.ZodType>(schema: S, text: string): z.output<S> {
  if (text.length > LARGE_CHARACTERS && ["[", "{", ","].some((mark) => hasOften(text, mark)))
    throw new AppError("validation_failed", { details: [{ path: "", message: "too many values" }] });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new AppError("invalid_json");
  }
  const result = schema.safeParse(value);
  if (!result.success) throw new AppError("validation_failed", { details: result.error.issues.flatMap(renderIssue) });
  return result.data;
}

function hasOften(text: string, mark: string): boolean {
  let at = text.indexOf(mark);
  for (let n = 1; at >= 0 && n < MOST_VALUES; n++) at = text.indexOf(mark, at + 1);
  return at >= 0;
}

/** More unknown fields than these are not listed. */
const MAX_UNKNOWN_FIELDS = 20;

/** A fault of validation as `details` shows it: where, and what; never the value. */
export function renderIssue(issue: z.core.$ZodIssue): { path: string; message: string }[] {
  if (issue.code === "unrecognized_keys") {
    // A body of 25 MB has room for millions of them.
    return issue.keys
      .slice(0, MAX_UNKNOWN_FIELDS)
      .map((key) => ({ path: [...issue.path, key].join(".").slice(0, 100), message: "unknown field" }));
  }
  return [{ path: issue.path.join("."), message: issue.message }];
}
