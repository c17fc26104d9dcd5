import { insertAudit } from "../db/audit.ts";
import { createUser, findUserWithPassword, isTimezone, lockPassword, type User } from "../db/users.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import { sendVerification, tellOwnerOfAttempt } from "./emailVerification.ts";
import { checkPassword } from "./passwordCheck.ts";
import { requireGoodPassword } from "./passwordRules.ts";
import { openSession, type Origin, type Tokens } from "./sessions.ts";
import { countRequest } from "./throttle.ts";

const HOUR_SECONDS = 3600;

type AccountDeps = Pick<Deps, "config" | "sql" | "redis" | "passwords" | "localCounts">;
export type SignedIn = Tokens & { user: User };

/**
 * Creates an account and signs its first device in. An address that has an account: `email_taken`, or null where that
 * must not be told (REVEAL_EMAIL_TAKEN off). Throws `weak_password`, `validation_failed` (time zone), `email_taken`,
 * `too_many_attempts`.
 */
export async function signUp(
  deps: AccountDeps,
  origin: Origin,
  input: { email: string; password: string; name: string | null; timezone: string; deviceName: string | null },
): Promise<SignedIn | null> {
  requireGoodPassword(input.password, input.email);
  const limit = deps.config.SIGNUPS_PER_HOUR;
  await countRequest(deps, { kind: "signup", who: origin.ip, limit, windowSeconds: HOUR_SECONDS });
  // Counted first: to look at its zones takes Postgres some 20 ms.
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
  const found = await findUserWithPassword(deps.sql, input.email);
  const account = { id: found?.id ?? null, email: input.email, passwordHash: found?.passwordHash ?? null };
  const fits = await checkPassword(deps, account, { password: input.password, ip: origin.ip });
  if (!found || !fits) return refuseLogIn(deps, origin, account.id);
  const { passwordHash, ...user } = found;
  if (user.status !== "active") return refuseLogIn(deps, origin, user.id, "account_suspended");
  const signedIn = await deps.sql.begin(async (sql) => {
    // It was right a moment ago: a reset that came in between has ended every session, and this must not be one more.
    if (!(await lockPassword(sql, { userId: user.id, passwordHash }))) return null;
    await insertAudit(sql, { actor: `user:${user.id}`, action: "session.login", subjectUserId: user.id, ...origin });
    const tokens = await openSession(deps, sql, { userId: user.id, deviceName: input.deviceName, ip: origin.ip });
    return { user, ...tokens };
  });
  return signedIn ?? refuseLogIn(deps, origin, user.id);
}

async function refuseLogIn(
  deps: AccountDeps,
  origin: Origin,
  userId: string | null,
  code: "invalid_credentials" | "account_suspended" = "invalid_credentials",
): Promise<never> {
  await insertAudit(deps.sql, { actor: "unknown", action: "session.login_failed", subjectUserId: userId, ...origin });
  throw new AppError(code);
}
