import { insertAudit } from "../db/audit.ts";
import { findActiveAccount, resetUserPassword } from "../db/credentials.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { sleep } from "../lib/retry.ts";
import { sendMail } from "./mail.ts";
import { countMailRequest, mailInLimits } from "./mailThrottle.ts";
import { createOneTimeToken, findTokenOwner, useOneTimeToken } from "./oneTimeTokens.ts";
import { requireGoodPassword } from "./passwordRules.ts";
import { revokeAllSessions, type Origin } from "./sessions.ts";
import { forgetFailures } from "./throttle.ts";

type ResetDeps = Pick<Deps, "config" | "sql" | "redis" | "localCounts" | "passwords" | "clock">;

const STEP_MS = 250;

/**
 * Mails a link that sets a new password, if there is an account to mail; the caller can't tell. Known or not, the
 * request is one transaction with a row written and committed, and its answer comes at a multiple of 250 ms. Durable
 * when it resolves. Three mails an hour per address, more are silently none. Throws `too_many_attempts`.
 */
export async function requestPasswordReset(deps: ResetDeps, origin: Origin, input: { email: string }): Promise<void> {
  const began = performance.now();
  await countMailRequest(deps, origin.ip);
  // Counted by what was asked, not by what was found: both cost the same here, too.
  await mailInLimits(deps, "reset", input.email, () => enqueueReset(deps, origin, input.email));
  const took = performance.now() - began;
  await sleep(Math.ceil(took / STEP_MS) * STEP_MS - took, undefined, deps.clock);
}

async function enqueueReset(deps: ResetDeps, origin: Origin, email: string): Promise<void> {
  await deps.sql.begin(async (sql) => {
    const userId = await findActiveAccount(sql, email);
    await insertAudit(sql, { actor: "unknown", action: "password.reset_requested", subjectUserId: userId, ...origin });
    if (!userId) return;
    const tokenId = await createOneTimeToken(deps, sql, { userId, kind: "reset_password" });
    if (tokenId) await sendMail(sql, userId, { template: "reset-password", params: { token_id: tokenId } });
  });
}

/**
 * Sets a password with a token from a mail, once: also the first one of an account that had none. Every session ends,
 * and the address is verified, since its mail was read. Throws `token_invalid`, `weak_password` (the token lives on).
 */
export async function resetPassword(
  deps: ResetDeps,
  origin: Origin,
  input: { token: string; newPassword: string },
): Promise<void> {
  const presented = { token: input.token, kind: "reset_password" } as const;
  // Before the costly hash: whoever has no token gets no processor time.
  const owner = await findTokenOwner(deps, presented);
  if (!owner) throw new AppError("token_invalid");
  requireGoodPassword(input.newPassword, owner.email);
  const passwordHash = await deps.passwords.hash(input.newPassword);
  await deps.sql.begin(async (sql) => {
    const userId = await useOneTimeToken(deps, sql, presented);
    if (!userId || !(await resetUserPassword(sql, { userId, passwordHash }))) throw new AppError("token_invalid");
    const sessions = await revokeAllSessions(sql, { userId, reason: "password_reset" });
    await insertAudit(sql, {
      actor: `user:${userId}`,
      action: "password.reset",
      subjectUserId: userId,
      ...origin,
      details: { sessions },
    });
    await sendMail(sql, userId, { template: "password-changed", params: { at: new Date().toISOString() } });
  });
  // Who forgot a password has tried wrong ones: they must not keep the right one out. Nor must those of others, who guessed
  // at the old one: no device of the account is known any more, and would be let through.
  await forgetFailures(deps, { email: owner.email, ip: origin.ip }, true);
}
