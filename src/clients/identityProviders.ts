import { createHash } from "node:crypto";
import { errors, jwtVerify, type JWTVerifyGetKey } from "jose";
import { z } from "zod";
import type { Config } from "../config.ts";
import { AppError } from "../lib/errors.ts";
import type { Log } from "../lib/log.ts";
import { email, name, withoutNul } from "../protocol/fields.ts";
import { createProviderKeys, type KeyTiming } from "./providerKeys.ts";

export type Provider = "apple" | "google";

/** What a valid identity token says. */
export interface ProvenIdentity {
  provider: Provider;
  /** The provider's stable name of the person; for Apple the same in all apps of a team. */
  subject: string;
  /** Which of our apps it was made for. */
  clientId: string;
  /** Only an address that the provider has verified. */
  email: string | null;
  /** Whether the provider vouches that the address is this person's today, not only when it was verified. */
  ownsEmail: boolean;
  name: string | null;
}

export interface IdentityProviders {
  /**
   * Checks an identity token that is at most `maxAgeSeconds` old. Throws `invalid_id_token`, `provider_not_configured`,
   * `provider_unavailable`.
   */
  verify(
    provider: Provider,
    input: { idToken: string; nonce: string | null; maxAgeSeconds: number },
  ): Promise<ProvenIdentity>;
}

/** How far a provider's clock may be ahead of ours. */
const CLOCK_TOLERANCE_SECONDS = 60;

// A claim that we can do without is left out when it is malformed. Apple writes booleans as strings, too.
const claimsSchema = z.object({
  sub: z
    .string()
    .min(1)
    .max(255)
    .refine(...withoutNul),
  aud: z.string(),
  iat: z.number(),
  azp: z.string().optional(),
  nonce: z.string().optional(),
  email: email.nullish().catch(null),
  email_verified: z.union([z.boolean(), z.enum(["true", "false"])]).catch(false),
  hd: z.string().min(1).optional().catch(undefined),
  name: name.nullish().catch(null),
});
type Claims = z.infer<typeof claimsSchema>;

interface Issuer {
  issuers: string[];
  clientIds: string[];
  keys: JWTVerifyGetKey;
}

/**
 * Apple and Google for native apps. Both sign with RS256 and nothing else (their discovery documents; Apple's prose says
 * "E256"). Sources: developer.apple.com "Verifying a user", developers.google.com "Verify the Google ID token".
 */
export function createIdentityProviders(
  config: Pick<Config, "APPLE_URL" | "APPLE_CLIENT_IDS" | "GOOGLE_ISSUER" | "GOOGLE_KEYS_URL" | "GOOGLE_CLIENT_IDS">,
  log: Log,
  timing?: KeyTiming,
): IdentityProviders {
  const known: Record<Provider, Issuer> = {
    apple: {
      issuers: [config.APPLE_URL],
      clientIds: config.APPLE_CLIENT_IDS,
      keys: createProviderKeys(`${config.APPLE_URL}/auth/keys`, log, timing),
    },
    google: {
      // Google's documents allow both forms.
      issuers: [config.GOOGLE_ISSUER, config.GOOGLE_ISSUER.replace(/^https?:\/\//, "")],
      clientIds: config.GOOGLE_CLIENT_IDS,
      keys: createProviderKeys(config.GOOGLE_KEYS_URL, log, timing),
    },
  };
  return {
    async verify(provider, input) {
      const issuer = known[provider];
      if (issuer.clientIds.length === 0) throw new AppError("provider_not_configured");
      const claims = await readClaims(issuer, input.idToken, (reason) => refuse(log, provider, reason));
      const fault = findFault(provider, issuer, claims, input);
      if (fault) throw refuse(log, provider, fault);
      const address = claims.email && String(claims.email_verified) === "true" ? claims.email : null;
      return {
        provider,
        subject: claims.sub,
        clientId: claims.aud,
        email: address,
        ownsEmail: address !== null && (provider === "apple" || isGooglesOwn(address, claims)),
        name: claims.name ?? null,
      };
    },
  };
}

async function readClaims(issuer: Issuer, idToken: string, refusal: (reason: string) => AppError): Promise<Claims> {
  try {
    const { payload } = await jwtVerify(idToken, issuer.keys, {
      algorithms: ["RS256"],
      issuer: issuer.issuers,
      audience: issuer.clientIds,
      requiredClaims: ["exp", "iat", "sub"],
    });
    const claims = claimsSchema.safeParse(payload);
    if (claims.success) return claims.data;
    throw refusal(`claim ${claims.error.issues[0]?.path.join(".")}`);
  } catch (error) {
    if (error instanceof errors.JWTClaimValidationFailed || error instanceof errors.JWTExpired)
      throw refusal(`claim ${error.claim}`);
    if (error instanceof errors.JOSEError) throw refusal(error.code);
    throw error;
  }
}

/** What is wrong with a token that is signed well, in a word or two for the log; null for nothing. */
function findFault(
  provider: Provider,
  issuer: Issuer,
  claims: Claims,
  input: { nonce: string | null; maxAgeSeconds: number },
): string | null {
  const ageSeconds = Date.now() / 1000 - claims.iat;
  if (ageSeconds < -CLOCK_TOLERANCE_SECONDS) return "iat in the future";
  if (ageSeconds > input.maxAgeSeconds + CLOCK_TOLERANCE_SECONDS) return "too old";
  // On Android `aud` is our web client and `azp` the app that asked: that one must be ours, too.
  if (provider === "google" && claims.azp !== undefined && !issuer.clientIds.includes(claims.azp)) return "claim azp";
  return isNonceRight(provider, claims.nonce ?? null, input.nonce) ? null : "nonce";
}

// An app gives Apple the SHA-256 of its nonce, so that a token alone does not tell what must be sent with it; the hash
// itself is no answer. Google passes on what it was given, raw or hashed.
function isNonceRight(provider: Provider, inToken: string | null, given: string | null): boolean {
  if (inToken === null || given === null) return inToken === given;
  if (createHash("sha256").update(given).digest("hex") === inToken) return true;
  return provider === "google" && given === inToken;
}

// Google has verified other addresses once, but does not know whose they are now. Source: "Verify the Google ID token".
function isGooglesOwn(address: string, claims: Claims): boolean {
  return claims.hd !== undefined || address.toLowerCase().endsWith("@gmail.com");
}

function refuse(log: Log, provider: Provider, reason: string): AppError {
  log.info({ provider, reason }, "an identity token was refused");
  return new AppError("invalid_id_token");
}
