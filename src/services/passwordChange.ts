import { insertAudit } from "../db/audit.ts";
import { findPassword, replacePassword } from "../db/passwords.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import type { Identity } from "./accessTokens.ts";
import { sendMail } from "./mail.ts";
import { checkPassword } from "./passwordCheck.ts";
import { requireGoodPassword } from "./passwordRules.ts";
import { revokeAllSessions, type Origin } from "./sessions.ts";

type PasswordDeps = Pick<Deps, "sql" | "redis" | "passwords" | "localCounts">;

/**
 * Changes the password of somebody who knows the old one: every other session ends, this one goes on. Throws
 * `weak_password`, `no_password` (an account that signs in with a provider only), `invalid_credentials`, and, counted
 * together with sign-ins, `too_many_attempts`.
 */
export async function changePassword(
  deps: PasswordDeps,
  actor: Identity,
  origin: Origin,
  input: { currentPassword: string; newPassword: string },
): Promise<void> {
  const stored = await findPassword(deps.sql, actor.userId);
  if (!stored) throw new AppError("unauthorized");
  requireGoodPassword(input.newPassword, stored.email);
  const from = stored.passwordHash;
  if (from === null) throw new AppError("no_password");
  const account = { id: actor.userId, email: stored.email, passwordHash: from };
  if (!(await checkPassword(deps, account, { password: input.currentPassword, ip: origin.ip })))
    throw await wrongPassword(deps, actor, origin);
  const to = await deps.passwords.hash(input.newPassword);
  const { userId } = actor;
  const changed = await deps.sql.begin(async (sql) => {
    if (!(await replacePassword(sql, { userId, from, to }))) return false;
    const sessions = await revokeAllSessions(sql, { userId, reason: "password_changed", except: actor.sessionId });
    await insertAudit(sql, {
      actor: `user:${userId}`,
      action: "account.password_changed",
      subjectUserId: userId,
      ...origin,
      details: { sessions },
    });
    await sendMail(sql, userId, { template: "password-changed", params: { at: new Date().toISOString() } });
    return true;
  });
  // Somebody else changed it in between: what was given is no longer the current password.
  if (!changed) throw await wrongPassword(deps, actor, origin);
}

async function wrongPassword(deps: PasswordDeps, actor: Identity, origin: Origin): Promise<AppError> {
  await insertAudit(deps.sql, {
    actor: `user:${actor.userId}`,
    action: "account.password_change_failed",
    subjectUserId: actor.userId,
    ...origin,
  });
  return new AppError("invalid_credentials", {}, "The current password is wrong.");
}
