import type { MiddlewareHandler } from "hono";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { authenticate } from "../services/accessTokens.ts";
import type { Env } from "./env.ts";

/** Lets only a signed-in user through: checks the token's signature and that its session is still alive. */
export function requireUser(deps: Pick<Deps, "config" | "sql">): MiddlewareHandler<Env> {
  return async (c, next) => {
    const [scheme, token] = (c.req.header("authorization") ?? "").split(" ");
    if (scheme?.toLowerCase() !== "bearer" || !token) throw new AppError("unauthorized");
    const actor = await authenticate(deps, token);
    c.set("actor", actor);
    c.set("log", c.get("log").child({ user_id: actor.userId }));
    await next();
  };
}
