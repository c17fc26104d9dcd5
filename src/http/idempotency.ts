import { createHmac } from "node:crypto";
import type { Context, MiddlewareHandler } from "hono";
import {
  claimIdempotencyKey,
  findIdempotencyKey,
  releaseIdempotencyKey,
  retakeIdempotencyKey,
  saveIdempotentAnswer,
} from "../db/idempotency.ts";
import type { Deps } from "../deps.ts";
import { AppError, ERRORS } from "../lib/errors.ts";
import { readBody, type Env } from "./env.ts";
import { splitForm } from "./upload.ts";

/** A claim without an answer this long belongs to a process that died. */
const STALE_SECONDS = 30;
const GONE = ERRORS.client_gone.status;

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
    const requestHash = await hashRequest(c, deps.config.JWT_SECRET);
    const mine = { userId, key };
    let claimedAt = await claimIdempotencyKey(deps.sql, { ...mine, requestHash });
    if (!claimedAt) {
      const first = await findIdempotencyKey(deps.sql, mine);
      if (first && !first.requestHash.equals(requestHash)) throw new AppError("idempotency_conflict");
      if (first?.status) return replay(first.status, first.response);
      claimedAt = await retakeIdempotencyKey(deps.sql, { ...mine, staleSeconds: STALE_SECONDS });
      if (!claimedAt) throw new AppError("idempotency_in_progress", { retry_after: 2 });
    }
    c.set("claim", `${key}\n${claimedAt.toISOString()}`);
    c.set("keepAnswer", (sql, status, body) =>
      saveIdempotentAnswer(sql, { ...mine, status, response: JSON.stringify(body) }),
    );
    await next();
    const { status } = c.res;
    if (status >= 500 || status === 429 || status === GONE) return releaseIdempotencyKey(deps.sql, mine);
    const response = status === 204 ? null : await c.res.clone().text();
    if (await saveIdempotentAnswer(deps.sql, { ...mine, status, response })) return;
    // Another run of the same request, which was taken for dead, has answered before.
    const first = await findIdempotencyKey(deps.sql, mine);
    if (first?.status) c.res = replay(first.status, first.response);
  };
}

async function hashRequest(c: Context<Env>, secret: string): Promise<Buffer> {
  const bytes = await readBody(c);
  // Keyed: a body may hold a password, and a plain hash of one could be guessed from a stolen table.
  const hash = createHmac("sha256", `reef-idempotency:${secret}`).update(`${c.req.method} ${c.req.path}\n`);
  const parts = splitForm(bytes, c.req.header("content-type") ?? "");
  if (parts === null) return hash.update(bytes).digest();
  for (const part of parts) hash.update(part).update("--");
  return hash.digest();
}

function replay(status: number, response: string | null): Response {
  return new Response(response, {
    status,
    headers: response === null ? {} : { "Content-Type": "application/json" },
  });
}
