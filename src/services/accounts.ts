import { insertAudit } from "../db/audit.ts";
import { holdCredentials } from "../db/credentials.ts";
import { createUser, findUserWithPassword, isTimezone, type User } from "../db/users.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import { sendVerification, tellOwnerOfAttempt } from "./emailVerification.ts";
import { requireGoodPassword } from "./passwordRules.ts";
import { openSession, type Origin, type Tokens } from "./sessions.ts";
import { countAttempt, forgetFailures, takeBackAttempt } from "./throttle.ts";

type AccountDeps = Pick<Deps, "config" | "sql" | "redis" | "passwords" | "localCounts">;
export type SignedIn = Tokens & { user: User };

/**
 * Creates an account and signs its first device in. An address that has an account: `email_taken`, or null where that
 * must not be told (REVEAL_EMAIL_TAKEN off). Throws `weak_password`, `validation_failed` (time zone), `email_taken`.
 */
export async function signUp(
  deps: AccountDeps,
  origin: Origin,
  input: { email: string; password: string; name: string | null; timezone: string; deviceName: string | null },
): Promise<SignedIn | null> {
  requireGoodPassword(input.password, input.email);
  if (!(await isTimezone(deps.sql, input.timezone))) {
    throw new AppError("validation_failed", { details: [{ path: "timezone", message: "not an IANA time zone" }] });
  }
  const passwordHash = await deps.passwords.hash(input.password);
  const signedIn = await deps.sql.begin(async (sql) => {
    const user = await createUser(sql, {
      id: newId(),
      email: input.email,
      passwordHash,
      name: input.name,
      timezone: input.timezone,
    });
    if (!user) return null;
    await sendVerification(deps, sql, user.id);
    await insertAudit(sql, { actor: `user:${user.id}`, action: "account.signup", subjectUserId: user.id, ...origin });
    return {
      user,
      ...(await openSession(deps, sql, { userId: user.id, deviceName: input.deviceName, ip: origin.ip })),
    };
  });
  if (signedIn) return signedIn;
  if (deps.config.REVEAL_EMAIL_TAKEN) throw new AppError("email_taken");
  await tellOwnerOfAttempt(deps, origin, input.email);
  return null;
}

/** Signs a device in. Throws `invalid_credentials` (known or unknown account alike), `too_many_attempts`, `account_suspended`. */
export async function logIn(
  deps: AccountDeps,
  origin: Origin,
  input: { email: string; password: string; deviceName: string | null },
): Promise<SignedIn> {
  const who = { email: input.email, ip: origin.ip };
  await countAttempt(deps, who);
  const { found, fits } = await checkPassword(deps, input).catch(async (error: unknown) => {
    await takeBackAttempt(deps, who);
    throw error;
  });
  if (!found || !fits) {
    await insertAudit(deps.sql, {
      actor: "unknown",
      action: "session.login_failed",
      subjectUserId: found?.id ?? null,
      ...origin,
    });
    throw new AppError("invalid_credentials");
  }
  await forgetFailures(deps, who);
  const { passwordHash, ...user } = found;
  if (user.status !== "active") throw new AppError("account_suspended");
  return deps.sql.begin(async (sql) => {
    if (!(await holdCredentials(sql, { userId: user.id, passwordHash }))) throw new AppError("invalid_credentials");
    await insertAudit(sql, { actor: `user:${user.id}`, action: "session.login", subjectUserId: user.id, ...origin });
    return {
      user,
      ...(await openSession(deps, sql, { userId: user.id, deviceName: input.deviceName, ip: origin.ip })),
    };
  });
}

/** An unknown address costs the same time as a known one. */
async function checkPassword(deps: AccountDeps, input: { email: string; password: string }) {
  const found = await findUserWithPassword(deps.sql, input.email);
  return { found, fits: await deps.passwords.verify(input.password, found?.passwordHash ?? null) };
}
