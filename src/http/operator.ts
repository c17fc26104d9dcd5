import type { Context, MiddlewareHandler } from "hono";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { authenticateOperator } from "../services/operators.ts";
import type { Env } from "./env.ts";

type OperatorDeps = Pick<Deps, "sql" | "redis" | "localCounts">;

/** What a proxy on this machine adds: then the peer's address is the proxy's and says nothing. */
const FORWARDED = ["x-forwarded-for", "forwarded", "x-real-ip", "via"];
const LOOPBACK = /^(::ffff:)?127\.\d+\.\d+\.\d+$|^::1$/;

/** Lets only an operator's token through. Whatever else is shown, a user's token too, gets the same 401. */
export function requireOperator(deps: OperatorDeps): MiddlewareHandler<Env> {
  return async (c, next) => {
    c.set("operator", await authenticateOperator(deps, c.get("origin"), tokenOf(c)));
    await next();
  };
}

/** Lets programs on this machine through, and operators from anywhere; to everybody else there is nothing here. */
export function requireOperatorOrLocal(deps: OperatorDeps): MiddlewareHandler<Env> {
  return async (c, next) => {
    if (!isLocal(c)) {
      if (tokenOf(c) === null) throw new AppError("not_found");
      await authenticateOperator(deps, c.get("origin"), tokenOf(c)).catch((error: unknown) => {
        throw error instanceof AppError && error.code === "unauthorized" ? new AppError("not_found") : error;
      });
    }
    await next();
  };
}

function tokenOf(c: Context<Env>): string | null {
  const [scheme, token] = (c.req.header("authorization") ?? "").split(" ");
  return scheme?.toLowerCase() === "bearer" && token ? token : null;
}

function isLocal(c: Context<Env>): boolean {
  return FORWARDED.every((name) => c.req.header(name) === undefined) && LOOPBACK.test(c.get("origin").ip ?? "");
}
