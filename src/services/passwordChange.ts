import { insertAudit } from "../db/audit.ts";
import { findPassword, replacePassword } from "../db/passwords.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import type { Identity } from "./accessTokens.ts";
import { revokeAllSessions, type Origin } from "./sessions.ts";
import { countAttempt, forgetFailures, takeBackAttempt } from "./throttle.ts";

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
  if (input.newPassword.toLowerCase() === stored.email.toLowerCase()) throw new AppError("weak_password");
  const from = stored.passwordHash;
  if (from === null) throw new AppError("no_password");
  const who = { email: stored.email, ip: origin.ip };
  const counted = async <T>(work: Promise<T>): Promise<T> =>
    work.catch(async (error: unknown) => {
      await takeBackAttempt(deps, who);
      throw error;
    });
  await countAttempt(deps, who);
  if (!(await counted(deps.passwords.verify(input.currentPassword, from))))
    throw await wrongPassword(deps, actor, origin);
  const to = await counted(deps.passwords.hash(input.newPassword));
  const audit = { actor: `user:${actor.userId}`, subjectUserId: actor.userId, ...origin };
  const changed = await counted(
    deps.sql.begin(async (sql) => {
      if (!(await replacePassword(sql, { userId: actor.userId, from, to }))) return false;
      const ended = await revokeAllSessions(sql, {
        userId: actor.userId,
        reason: "password_changed",
        except: actor.sessionId,
      });
      await insertAudit(sql, { ...audit, action: "account.password_changed", details: { sessions: ended } });
      return true;
    }),
  );
  // Somebody else changed it in between: what was given is no longer the current password.
  if (!changed) throw await wrongPassword(deps, actor, origin);
  await forgetFailures(deps, who);
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
