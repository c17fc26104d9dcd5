import { lockPlan } from "../db/appliedPlans.ts";
import { insertAudit } from "../db/audit.ts";
import { beginDeletion, deleteOneTimeTokens } from "../db/deletions.ts";
import { findPassword } from "../db/passwords.ts";
import { requestStopOfUser } from "../db/turns.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { endAccess } from "./access.ts";
import type { Identity } from "./accessTokens.ts";
import { sendLastMail } from "./mail.ts";
import { checkPassword } from "./passwordCheck.ts";
import type { Origin } from "./sessions.ts";
import { verifyFreshIdentity } from "./socialSignIn.ts";
import { countRequest } from "./throttle.ts";

type LeaveDeps = Pick<Deps, "sql" | "redis" | "passwords" | "localCounts" | "identityProviders">;

/** Proofs by a provider; passwords are counted together with sign-ins. Each refused one is audited. */
const PROOFS = { limit: 10, windowSeconds: 15 * 60 };

/** How a person shows that it is them: the password, or a fresh sign-in with a provider. */
export interface Proof {
  password: string | null;
  identity: { provider: "apple" | "google"; idToken: string; nonce: string | null } | null;
}

/**
 * Begins the deletion of the actor's account. In one transaction: signed out everywhere, address and identities free,
 * turns stopped, the saga recorded (services/deletion.ts), a mail sent. Throws `password_required`,
 * `invalid_credentials`, `invalid_id_token`, `too_many_attempts`, what the provider's check throws, `session_revoked` when it had begun.
 */
export async function leave(deps: LeaveDeps, actor: Identity, origin: Origin, proof: Proof): Promise<void> {
  const audit = { actor: `user:${actor.userId}`, subjectUserId: actor.userId, ...origin };
  if (!(await isProved(deps, actor, origin, proof))) {
    await insertAudit(deps.sql, { ...audit, action: "account.deletion_refused" });
    throw new AppError(proof.password === null ? "invalid_id_token" : "invalid_credentials");
  }
  const begun = await deps.sql.begin(async (sql) => {
    const { userId } = actor;
    // Whoever applies a plan has written a row that names the user before it asks for the turns.
    await lockPlan(sql, userId);
    // These first: whoever ends a turn or uses a token holds its row while asking for the user's.
    await requestStopOfUser(sql, userId);
    await deleteOneTimeTokens(sql, userId);
    const deletion = await beginDeletion(sql, userId);
    if (!deletion) return false;
    const sessions = await endAccess(sql, { userId, reason: "account_deleted" });
    await insertAudit(sql, { ...audit, action: "account.deletion_requested", details: { sessions } });
    const at = new Date().toISOString();
    await sendLastMail(sql, deletion.recipient, { template: "deletion-requested", params: { at } });
    return true;
  });
  if (!begun) throw new AppError("session_revoked");
}

async function isProved(
  deps: LeaveDeps,
  actor: Identity,
  origin: Origin,
  { password, identity }: Proof,
): Promise<boolean> {
  if (password !== null) {
    const stored = await findPassword(deps.sql, actor.userId);
    return stored !== null && checkPassword(deps, { id: actor.userId, ...stored }, { password, ip: origin.ip });
  }
  if (identity !== null) {
    await countRequest(deps, { kind: "leave", who: actor.userId, ...PROOFS });
    return verifyFreshIdentity(deps, actor.userId, identity);
  }
  throw new AppError("password_required");
}
