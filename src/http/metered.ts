import type { MiddlewareHandler } from "hono";
import { getUsage } from "../db/usage.ts";
import type { Deps } from "../deps.ts";
import type { Env } from "./env.ts";

/** The headers of a metered route: plan, what is left of the day (voice: minutes in as seconds), when it begins anew. */
export const RATE_LIMIT_HEADERS = {
  "X-RateLimit-Plan": "The plan in force",
  "X-RateLimit-Text-Remaining": "Messages left today",
  "X-RateLimit-Voice-Remaining": "Seconds of speech to us left today",
  "X-RateLimit-Voice-Output-Remaining": "Seconds of speech from us left today",
  "X-RateLimit-TTS-Remaining": "Characters left to be spoken today",
  "X-RateLimit-Reset": "When the day ends, RFC 3339",
} as const;

/** Tells on each answer of a metered route, also a refusal, how the day stands after it. */
export function metered(deps: Pick<Deps, "sql" | "log">): MiddlewareHandler<Env> {
  return async (c, next) => {
    await next();
    // What the handler reserved or read says it already.
    const { userId } = c.get("actor");
    const usage = c.get("usage") ?? (await getUsage(deps.sql, userId).catch(() => null));
    if (!usage) return;
    const left = (kind: keyof typeof usage.used) => String(Math.max(0, usage.limits[kind] - usage.used[kind]));
    const values: Record<keyof typeof RATE_LIMIT_HEADERS, string> = {
      "X-RateLimit-Plan": usage.plan,
      "X-RateLimit-Text-Remaining": left("textMessages"),
      "X-RateLimit-Voice-Remaining": left("voiceInputSeconds"),
      "X-RateLimit-Voice-Output-Remaining": left("voiceOutputSeconds"),
      "X-RateLimit-TTS-Remaining": left("ttsCharacters"),
      "X-RateLimit-Reset": usage.resetAt.toISOString(),
    };
    for (const [name, value] of Object.entries(values)) c.header(name, value);
  };
}
