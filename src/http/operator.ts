import type { MiddlewareHandler } from "hono";
import { AppError } from "../lib/errors.ts";
import type { Env } from "./env.ts";

/** What a proxy on this machine adds: then the peer's address is the proxy's and says nothing. */
const FORWARDED = ["x-forwarded-for", "forwarded", "x-real-ip", "via"];
const LOOPBACK = /^(::ffff:)?127\.\d+\.\d+\.\d+$|^::1$/;

/** Lets only programs on this machine through; to everybody else there is nothing here. */
export const requireOperator: MiddlewareHandler<Env> = async (c, next) => {
  const direct = FORWARDED.every((name) => c.req.header(name) === undefined);
  if (!direct || !LOOPBACK.test(c.get("origin").ip ?? "")) throw new AppError("not_found");
  await next();
};
