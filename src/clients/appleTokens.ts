import { createPrivateKey } from "node:crypto";
import { decodeJwt, SignJWT } from "jose";
import { z } from "zod";
import type { Config } from "../config.ts";
import { askProvider } from "./providerHttp.ts";

/** Apple's token for a person and app: what a later revocation needs. It does not expire. */
export interface AppleToken {
  clientId: string;
  refreshToken: string;
}

export interface AppleTokens {
  /** Exchanges the code of a sign-in (single use, five minutes). Throws ProviderRefusal, or what the network threw. */
  exchangeCode(input: { clientId: string; code: string }): Promise<AppleToken & { subject: string }>;
  /** Revokes a token; one that is not valid any more counts as revoked. Throws ProviderRefusal, or what the network threw. */
  revoke(token: AppleToken): Promise<void>;
}

/** Apple said no. `code` is OAuth's, or the status where the answer had none. */
export class ProviderRefusal extends Error {
  readonly code: string;
  constructor(code: string) {
    super(`Apple answered ${code}`);
    this.name = "ProviderRefusal";
    this.code = code;
  }
}

/** Whatever the provider's address in a test is, this is whom the secret is for. */
const AUDIENCE = "https://appleid.apple.com";
/** Made for each call; Apple would take up to six months. */
const SECRET_SECONDS = 300;

const tokenSchema = z.object({ refresh_token: z.string().min(1), id_token: z.string().min(1) });
const refusalSchema = z.object({ error: z.string().regex(/^[a-z_]{1,40}$/) });

/** Apple's token service; null where the key for it is not configured. Source: developer.apple.com "Token validation", "Token revocation". */
export function createAppleTokens(
  config: Pick<Config, "APPLE_URL" | "APPLE_TEAM_ID" | "APPLE_KEY_ID" | "APPLE_PRIVATE_KEY">,
): AppleTokens | null {
  const { APPLE_TEAM_ID: teamId, APPLE_KEY_ID: keyId, APPLE_PRIVATE_KEY: pem } = config;
  if (!teamId || !keyId || !pem) return null;
  const key = createPrivateKey(pem);
  const post = async (path: string, clientId: string, fields: Record<string, string>) => {
    const secret = await new SignJWT()
      .setProtectedHeader({ alg: "ES256", kid: keyId })
      .setIssuer(teamId)
      .setSubject(clientId)
      .setAudience(AUDIENCE)
      .setIssuedAt()
      .setExpirationTime(`${SECRET_SECONDS}s`)
      .sign(key);
    const body = new URLSearchParams({ client_id: clientId, client_secret: secret, ...fields });
    const answer = await askProvider(`${config.APPLE_URL}${path}`, {
      method: "POST",
      headers: { "content-type": "application/x-www-form-urlencoded" },
      body: body.toString(),
    });
    if (answer.status !== 200) throw new ProviderRefusal(refusalOf(answer));
    return answer.text;
  };
  return {
    async exchangeCode({ clientId, code }) {
      const text = await post("/auth/token", clientId, { grant_type: "authorization_code", code });
      const token = tokenSchema.safeParse(parse(text)).data;
      if (!token) throw new ProviderRefusal("no token");
      // It came from Apple itself over TLS, so that its signature says nothing new (OpenID Connect Core 3.1.3.7, 6).
      const { sub } = decodeJwt(token.id_token);
      return { clientId, refreshToken: token.refresh_token, subject: sub ?? "" };
    },
    async revoke({ clientId, refreshToken }) {
      const fields = { token: refreshToken, token_type_hint: "refresh_token" };
      await post("/auth/revoke", clientId, fields).catch((error: unknown) => {
        if (!(error instanceof ProviderRefusal && error.code === "invalid_grant")) throw error;
      });
    },
  };
}

function refusalOf({ status, text }: { status: number; text: string }): string {
  return refusalSchema.safeParse(parse(text)).data?.error ?? `status_${status}`;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
