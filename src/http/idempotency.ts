import { createHmac } from "node:crypto";
import type { MiddlewareHandler } from "hono";
import {
  claimIdempotencyKey,
  findIdempotencyKey,
  releaseIdempotencyKey,
  retakeIdempotencyKey,
  saveIdempotentAnswer,
} from "../db/idempotency.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import type { Env } from "./env.ts";

/** A claim without an answer this long belongs to a process that died. */
const STALE_SECONDS = 30;

/**
 * Honours `Idempotency-Key` on a signed-in user's writes: same key and request, the first answer again for 24 hours.
 * Failures on our side give the key back. Creations also derive their id from the claim, so a repeated run finds them;
 * the same key a day later is another claim.
 */
export function idempotency(deps: Pick<Deps, "sql" | "config">): MiddlewareHandler<Env> {
  return async (c, next) => {
    const key = c.req.header("idempotency-key");
    if (!key || c.req.method === "GET") return next();
    if (key.length > 200)
      throw new AppError("validation_failed", {
        details: [{ path: "Idempotency-Key", message: "at most 200 characters" }],
      });
    const { userId } = c.get("actor");
    // Keyed: a body may hold a password, and a plain hash of one could be guessed from a stolen table.
    const requestHash = createHmac("sha256", `reef-idempotency:${deps.config.JWT_SECRET}`)
      .update(`${c.req.method} ${c.req.path}\n${await c.req.text()}`)
      .digest();
    const mine = { userId, key };
    let claimedAt = await claimIdempotencyKey(deps.sql, { ...mine, requestHash });
    if (!claimedAt) {
      const first = await findIdempotencyKey(deps.sql, mine);
      if (first && !first.requestHash.equals(requestHash)) throw new AppError("idempotency_conflict");
      if (first?.status)
        return new Response(first.response, {
          status: first.status,
          headers: first.response === null ? {} : { "Content-Type": "application/json" },
        });
      claimedAt = await retakeIdempotencyKey(deps.sql, { ...mine, staleSeconds: STALE_SECONDS });
      if (!claimedAt) throw new AppError("idempotency_in_progress", { retry_after: 2 });
    }
    c.set("claim", `${key}\n${claimedAt.toISOString()}`);
    await next();
    if (c.res.status >= 500 || c.res.status === 429) return releaseIdempotencyKey(deps.sql, mine);
    const response = c.res.status === 204 ? null : await c.res.clone().text();
    await saveIdempotentAnswer(deps.sql, { ...mine, status: c.res.status, response });
  };
}
