import { insertAudit } from "../db/audit.ts";
import type { Queryable } from "../db/connect.ts";
import { findActiveAccount, verifyUserEmail } from "../db/credentials.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import type { Identity } from "./accessTokens.ts";
import { sendMail } from "./mail.ts";
import { mailInLimits } from "./mailThrottle.ts";
import { createOneTimeToken, useOneTimeToken } from "./oneTimeTokens.ts";
import type { Origin } from "./sessions.ts";

type VerificationDeps = Pick<Deps, "config" | "sql" | "redis" | "localCounts">;

/** Mails a user the link that verifies the address, in the caller's transaction; nothing where it is verified. */
export async function sendVerification(deps: Pick<Deps, "config">, sql: Queryable, userId: string): Promise<void> {
  const tokenId = await createOneTimeToken(deps, sql, { userId, kind: "verify_email" });
  if (tokenId) await sendMail(sql, userId, { template: "verify-email", params: { token_id: tokenId } });
}

/** The same on a user's wish: three times an hour, more wishes are accepted and do nothing. */
export async function resendVerification(deps: VerificationDeps, actor: Identity): Promise<void> {
  await mailInLimits(deps, "verify", actor.userId, () =>
    deps.sql.begin((sql) => sendVerification(deps, sql, actor.userId)),
  );
}

/** Verifies the address whose mail had this token. Throws `token_invalid`. */
export async function verifyEmail(
  deps: Pick<Deps, "config" | "sql">,
  origin: Origin,
  input: { token: string },
): Promise<void> {
  await deps.sql.begin(async (sql) => {
    const userId = await useOneTimeToken(deps, sql, { token: input.token, kind: "verify_email" });
    if (!userId) throw new AppError("token_invalid");
    await verifyUserEmail(sql, { userId });
    await insertAudit(sql, { actor: `user:${userId}`, action: "email.verified", subjectUserId: userId, ...origin });
  });
}

/**
 * Tells the owner of an address that somebody tried to sign up with it, once a day at most. A row is written and
 * committed either way, as a real sign-up does, so that the time it takes tells little.
 */
export async function tellOwnerOfAttempt(deps: VerificationDeps, origin: Origin, email: string): Promise<void> {
  const record = (mail: boolean) =>
    deps.sql.begin(async (sql) => {
      const userId = await findActiveAccount(sql, email);
      await insertAudit(sql, { actor: "unknown", action: "account.signup_refused", subjectUserId: userId, ...origin });
      if (userId && mail) await sendMail(sql, userId, { template: "signup-attempt", params: {} });
    });
  if (!(await mailInLimits(deps, "attempt", email, () => record(true)))) await record(false);
}
