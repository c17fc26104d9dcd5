import { listSessionAddresses } from "../db/sessions.ts";
import type { Deps } from "../deps.ts";
import { addressBlock } from "../lib/clientAddress.ts";
import { countAttempt, forgetFailures, requireAttemptLeft, takeBackAttempt, type Attempt } from "./throttle.ts";

type CheckDeps = Pick<Deps, "sql" | "redis" | "passwords" | "localCounts">;

/**
 * Whether a password is the account's, under the throttle of failures. An account that does not exist (`id` null) or has
 * no password takes the same time. An attempt is counted when its turn has come, so of one process at most two are
 * counted and not yet judged: any number of right passwords at once get through, and of wrong ones ten are looked at.
 * Throws `too_many_attempts`, `service_unavailable`.
 */
export async function checkPassword(
  deps: CheckDeps,
  account: { id: string | null; email: string; passwordHash: string | null },
  input: { password: string; ip: string | null },
): Promise<boolean> {
  const attempt = {
    email: account.email,
    ip: input.ip,
    isKnownAddress: () => isKnownAddress(deps, account.id, input.ip),
  };
  await requireAttemptLeft(deps, attempt);
  return deps.passwords.inTurn((verify) => lookAt(deps, attempt, () => verify(input.password, account.passwordHash)));
}

async function lookAt(deps: CheckDeps, attempt: Attempt, verify: () => Promise<boolean>): Promise<boolean> {
  await countAttempt(deps, attempt);
  const fits = await verify().catch(async (error: unknown) => {
    await takeBackAttempt(deps, attempt);
    throw error;
  });
  if (fits) await Promise.all([takeBackAttempt(deps, attempt), forgetFailures(deps, attempt)]);
  return fits;
}

async function isKnownAddress(deps: CheckDeps, userId: string | null, ip: string | null): Promise<boolean> {
  if (userId === null || ip === null) return false;
  const known = await listSessionAddresses(deps.sql, userId);
  return known.some((address) => addressBlock(address) === addressBlock(ip));
}
