import { ProviderRefusal, type AppleToken } from "../clients/appleTokens.ts";
import type { ProvenIdentity } from "../clients/identityProviders.ts";
import { insertAudit } from "../db/audit.ts";
import { saveProviderToken } from "../db/identities.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { seal, unseal } from "../lib/sealed.ts";
import type { Origin } from "./sessions.ts";

/*
 * Apple wants an account's token revoked when the account is deleted (App Store Review Guideline 5.1.1(v)). The token
 * comes from the code of a sign-in, is kept sealed with its client id, and is read again only to be revoked. A native
 * sign-in with Google gives an identity token only: there is nothing to keep or to revoke.
 */

const PURPOSE = "provider-token";

type TokenDeps = Pick<Deps, "appleTokens" | "config">;

/**
 * Exchanges the code of a sign-in that was let in and keeps the token, each time: the older one may have died with a
 * revocation at Apple. Never fails the sign-in; the next one brings another code. Outside of any transaction.
 */
export async function keepAppleToken(
  deps: TokenDeps & Pick<Deps, "sql" | "log">,
  origin: Origin,
  input: { userId: string; identity: ProvenIdentity; code: string },
): Promise<void> {
  const { userId, identity } = input;
  if (!deps.appleTokens || identity.provider !== "apple") return;
  try {
    const { subject, ...token } = await deps.appleTokens.exchangeCode({
      clientId: identity.clientId,
      code: input.code,
    });
    // Somebody else's code would have their token revoked with this account.
    if (subject !== identity.subject) throw new ProviderRefusal("other_subject");
    const kept = await saveProviderToken(deps.sql, {
      provider: identity.provider,
      subject: identity.subject,
      userId,
      sealedToken: sealAppleToken(deps.config, token),
    });
    // The account's deletion has begun meanwhile, and it does not know this token.
    if (!kept) await deps.appleTokens.revoke(token);
  } catch (err) {
    const reason = err instanceof ProviderRefusal ? err.code : "unavailable";
    deps.log.warn({ err, user_id: userId, reason }, "Apple's token could not be kept");
    await insertAudit(deps.sql, {
      actor: `user:${userId}`,
      action: "identity.token_failed",
      subjectUserId: userId,
      ip: origin.ip,
      requestId: origin.requestId,
      details: { provider: identity.provider, reason },
    }).catch((error: unknown) => deps.log.warn({ err: error, user_id: userId }, "could not be audited"));
  }
}

/**
 * Revokes a token as `identities.provider_token` holds it; safe to repeat. `unreadable`: it was sealed under another
 * JWT_SECRET and can't ever be revoked from here. Throws while Apple can't be reached or refuses our key, and
 * `provider_not_configured` without one.
 */
export async function revokeAppleToken(deps: TokenDeps, sealedToken: Uint8Array): Promise<"revoked" | "unreadable"> {
  const token = unsealAppleToken(deps.config, sealedToken);
  if (!token) return "unreadable";
  if (!deps.appleTokens) throw new AppError("provider_not_configured");
  await deps.appleTokens.revoke(token);
  return "revoked";
}

export function sealAppleToken(config: Pick<Deps["config"], "JWT_SECRET">, token: AppleToken): Buffer {
  return seal(config.JWT_SECRET, PURPOSE, JSON.stringify(token));
}

function unsealAppleToken(config: Pick<Deps["config"], "JWT_SECRET">, sealedToken: Uint8Array): AppleToken | null {
  const text = unseal(config.JWT_SECRET, PURPOSE, sealedToken);
  return text === null ? null : (JSON.parse(text) as AppleToken);
}
