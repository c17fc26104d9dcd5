import { createRemoteJWKSet, customFetch, errors, type FetchImplementation, type JWTVerifyGetKey } from "jose";
import { z } from "zod";
import { AppError } from "../lib/errors.ts";
import type { Log } from "../lib/log.ts";
import { askProvider, PROVIDER_TIMEOUT_MS } from "./providerHttp.ts";

const CACHE_MS = 10 * 60 * 1000;
/** A key id we don't know fetches the keys again, but not more often than this: anybody can invent key ids. */
const COOLDOWN_MS = 30_000;
/** Keys that can't be fetched again serve this much longer: an outage at the provider need not be one here. */
const KEEP_MS = 24 * 3600 * 1000;
/** After a failure without any keys, so that a storm of sign-ins is not one of requests. */
const PAUSE_MS = 1_000;

/** For tests: nobody else should need other times. */
export interface KeyTiming {
  cacheMs?: number;
  cooldownMs?: number;
}

const keySetSchema = z.object({ keys: z.array(z.looseObject({ kty: z.string() })).min(1) });

/**
 * A provider's public keys, fetched when they are needed: cached, fetched again for an unknown key id (rotation), kept
 * through an outage. The lookup throws `provider_unavailable` when the key may exist but can't be asked for.
 */
export function createProviderKeys(url: string, log: Log, timing: KeyTiming = {}): JWTVerifyGetKey {
  let kept: { text: string; atMs: number } | null = null;
  let failing = false;
  let pausedUntilMs = 0;
  const fetchKeys: FetchImplementation = async (address, { headers, signal }) => {
    if (Date.now() < pausedUntilMs) throw unavailable();
    try {
      const { status, text } = await askProvider(address, { headers }, signal);
      if (status !== 200) throw new Error(`the keys' address answered ${status}`);
      keySetSchema.parse(JSON.parse(text));
      kept = { text, atMs: Date.now() };
      failing = false;
    } catch (err) {
      if (!failing) log.warn({ err, provider_url: url }, "a provider's keys can't be fetched");
      failing = true;
      if (kept === null || Date.now() - kept.atMs > KEEP_MS) {
        pausedUntilMs = Date.now() + PAUSE_MS;
        throw unavailable();
      }
    }
    return new Response(kept.text);
  };
  const keys = createRemoteJWKSet(new URL(url), {
    cacheMaxAge: timing.cacheMs ?? CACHE_MS,
    cooldownDuration: timing.cooldownMs ?? COOLDOWN_MS,
    timeoutDuration: PROVIDER_TIMEOUT_MS,
    [customFetch]: fetchKeys,
  });
  return async (header, token) => {
    try {
      return await keys(header, token);
    } catch (error) {
      if (error instanceof AppError) throw error;
      if (error instanceof errors.JOSEError && !(failing && error instanceof errors.JWKSNoMatchingKey)) throw error;
      log.warn({ err: error, provider_url: url }, "a provider's key can't be had");
      throw unavailable();
    }
  };
}

function unavailable(): AppError {
  return new AppError("provider_unavailable", { retry_after: 5 });
}
