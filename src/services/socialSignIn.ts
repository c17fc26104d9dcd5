import type { Provider, ProvenIdentity } from "../clients/identityProviders.ts";
import { insertAudit, type AuditAction } from "../db/audit.ts";
import type { Queryable } from "../db/connect.ts";
import { findCandidate, insertIdentity, isIdentityOf, lockActiveUser, type Candidate } from "../db/identities.ts";
import { createUser, isTimezone, type User } from "../db/users.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import type { SignedIn } from "./accounts.ts";
import { keepAppleToken } from "./appleTokens.ts";
import { sendVerification } from "./emailVerification.ts";
import { openSession, type Origin } from "./sessions.ts";
import { countRequest, requireRequestLeft } from "./throttle.ts";

/*
 * Whom an identity token signs in:
 *   a known identity                        → its account, whatever address the token has now
 *   unknown, no verified address            → nobody
 *   unknown, an account has the address     → that account, when it has proven the address itself and the provider
 *                                             vouches for it today; else nobody
 *   unknown, the address is free            → a new account
 * Never linked: an account that has not proven its address. Whoever typed the address there would share the account
 * ("pre-hijacking", Sudhodanan & Paverd 2022), and taking the account from them would hand their conversations to the
 * mailbox's owner unasked. Its owner gets in by resetting the password, which proves the address and ends all sessions;
 * nobody is told to verify it instead: that would leave a stranger's password and sessions in place.
 *
 * A token may be used again while it is young. A phone that lost our answer sends the same one again and must get in; a
 * store of used ones would lock it out to stop a thief who could as well be first. Tokens travel in bodies only, and one
 * with a nonce is worth nothing without it.
 */

/** Google's tokens live an hour; Apple's up to a day. */
const SIGN_IN_MAX_AGE_SECONDS = 3600;
const FRESH_MAX_AGE_SECONDS = 600;
/** Bad tokens, from one address. */
const FAILURES = { kind: "social", limit: 30, windowSeconds: 900 };
/** A parallel first sign-in that was quicker is found at the second try. */
const TRIES = 3;

type SocialDeps = Pick<Deps, "config" | "sql" | "log" | "redis" | "localCounts" | "identityProviders" | "appleTokens">;

export interface SocialSignIn {
  provider: Provider;
  idToken: string;
  nonce: string | null;
  authorizationCode: string | null;
  name: string | null;
  deviceName: string | null;
  timezone: string | null;
}

/**
 * Signs a device in with an identity token, creating or linking the account at the first time. Throws
 * `invalid_id_token`, `provider_not_configured`, `provider_unavailable`, `too_many_attempts`, `account_suspended`,
 * `email_unverified`, `identity_taken`, `validation_failed` (time zone), `service_unavailable` (still being deleted).
 */
export async function signInWithProvider(deps: SocialDeps, origin: Origin, input: SocialSignIn): Promise<SignedIn> {
  const identity = await proveIdentity(deps, origin, input);
  if (input.timezone !== null && !(await isTimezone(deps.sql, input.timezone))) {
    throw new AppError("validation_failed", { details: [{ path: "timezone", message: "not an IANA time zone" }] });
  }
  const signedIn = await admit(deps, origin, identity, input);
  if (input.authorizationCode !== null) {
    const { id: userId } = signedIn.user;
    await keepAppleToken(deps, origin, { userId, identity, code: input.authorizationCode });
  }
  return signedIn;
}

/**
 * Whether an identity token proves that this user is here now: at most ten minutes old, and theirs. Throws only
 * `provider_not_configured` and `provider_unavailable`.
 */
export async function verifyFreshIdentity(
  deps: Pick<Deps, "sql" | "identityProviders">,
  userId: string,
  input: { provider: Provider; idToken: string; nonce: string | null },
): Promise<boolean> {
  try {
    const identity = await deps.identityProviders.verify(input.provider, {
      ...input,
      maxAgeSeconds: FRESH_MAX_AGE_SECONDS,
    });
    return await isIdentityOf(deps.sql, { provider: identity.provider, subject: identity.subject, userId });
  } catch (error) {
    if (error instanceof AppError && error.code === "invalid_id_token") return false;
    throw error;
  }
}

// Failures count by address only, and only when they have happened: a signature can't be guessed.
async function proveIdentity(deps: SocialDeps, origin: Origin, input: SocialSignIn): Promise<ProvenIdentity> {
  const failures = { ...FAILURES, who: origin.ip };
  await requireRequestLeft(deps, failures);
  try {
    return await deps.identityProviders.verify(input.provider, { ...input, maxAgeSeconds: SIGN_IN_MAX_AGE_SECONDS });
  } catch (error) {
    if (!(error instanceof AppError && error.code === "invalid_id_token")) throw error;
    await countRequest(deps, failures);
    await insertAudit(deps.sql, {
      actor: "unknown",
      action: "session.login_failed",
      subjectUserId: null,
      ...origin,
      details: { provider: input.provider },
    });
    throw error;
  }
}

async function admit(
  deps: SocialDeps,
  origin: Origin,
  identity: ProvenIdentity,
  input: SocialSignIn,
): Promise<SignedIn> {
  for (let tries = 0; tries < TRIES; tries++) {
    try {
      const signedIn = await deps.sql.begin(async (sql) => {
        const { user, actions } = await findOrCreate(deps, sql, identity, input);
        const audit = { actor: `user:${user.id}`, subjectUserId: user.id, ...origin };
        const details = { provider: identity.provider };
        for (const action of actions) await insertAudit(sql, { ...audit, action, details });
        // Returned, not thrown: what was audited must commit.
        if (user.status !== "active") return null;
        const session = { userId: user.id, deviceName: input.deviceName, ip: origin.ip };
        return { user, ...(await openSession(deps, sql, session)) };
      });
      if (!signedIn) throw new AppError("account_suspended");
      return signedIn;
    } catch (error) {
      if (!(error instanceof Overtaken)) throw error;
    }
  }
  // Only an account on its way out is not found and yet in the way.
  const sentence = "The account with this address is just being deleted; try again in a minute.";
  throw new AppError("service_unavailable", { retry_after: 30 }, sentence);
}

/** Somebody else has taken the address or the identity since we looked: nothing of this try may stay. */
class Overtaken extends Error {}

async function findOrCreate(
  deps: SocialDeps,
  sql: Queryable,
  identity: ProvenIdentity,
  input: SocialSignIn,
): Promise<{ user: User; actions: AuditAction[] }> {
  const { provider, subject, email } = identity;
  const found = await findCandidate(sql, { provider, subject, email });
  if (found && found.user.status !== "active") return { user: found.user, actions: ["session.login_failed"] };
  if (found && !(await lockActiveUser(sql, found.user.id))) throw new Overtaken();
  if (found?.known) {
    // A reset that was faster may have unlinked it, and has ended every session: this must not be one more.
    if (!(await isIdentityOf(sql, { provider, subject, userId: found.user.id }))) throw new Overtaken();
    return { user: found.user, actions: ["session.login"] };
  }
  if (email === null) throw new AppError("email_unverified", {}, WITHOUT_ADDRESS);
  if (found) {
    requireLinkable(identity, found);
    const owner = { userId: found.user.id, email, requireVerified: true };
    if (!(await insertIdentity(sql, { provider, subject, ...owner }))) throw new Overtaken();
    return { user: found.user, actions: ["identity.linked", "session.login"] };
  }
  const user = await createUser(sql, {
    id: newId(),
    email,
    emailVerified: identity.ownsEmail,
    passwordHash: null,
    name: input.name ?? identity.name,
    timezone: input.timezone ?? "UTC",
  });
  if (!user) throw new Overtaken();
  const owner = { userId: user.id, email, requireVerified: false };
  if (!(await insertIdentity(sql, { provider, subject, ...owner }))) throw new Overtaken();
  await sendVerification(deps, sql, user.id);
  return { user, actions: ["account.signup"] };
}

const WITHOUT_ADDRESS =
  "Apple or Google gave no verified e-mail address; let it share yours with this app, or sign up with your address.";
const NOT_VOUCHED =
  "An account has this e-mail address already, and Google does not host it; sign in as before, or reset the password.";
const OTHER_IDENTITY =
  "Another Apple or Google account opens the account with this address; sign in with that one, or reset the password.";
const UNPROVEN =
  "An account has this e-mail address but never verified it; reset the password, which does it, then try again.";

function requireLinkable(identity: ProvenIdentity, { user, taken }: Candidate): void {
  if (!user.emailVerified) throw new AppError("email_unverified", {}, UNPROVEN);
  if (!identity.ownsEmail) throw new AppError("email_unverified", {}, NOT_VOUCHED);
  // The same address under another subject: the provider has given the address to somebody else.
  if (taken) throw new AppError("identity_taken", {}, OTHER_IDENTITY);
}
