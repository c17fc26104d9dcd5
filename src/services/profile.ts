import { findNextTimezoneChange, findProfile, updateProfile, type Profile } from "../db/profiles.ts";
import { isTimezone } from "../db/users.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import type { Identity } from "./accessTokens.ts";

type SqlDeps = Pick<Deps, "sql">;

/** Throws `unauthorized` for somebody whose rows are gone since the token was checked. */
export async function getProfile(deps: SqlDeps, actor: Identity): Promise<Profile> {
  const profile = await findProfile(deps.sql, actor.userId);
  if (!profile) throw new AppError("unauthorized");
  return profile;
}

/**
 * Changes what is given, all of it or nothing; null clears. Throws `validation_failed` (time zone), `timezone_changed`
 * (with `retry_after`, `reset_at`) within 24 hours of the last change.
 */
export async function changeProfile(
  deps: SqlDeps,
  actor: Identity,
  input: { name?: string | null; avatarUrl?: string | null; timezone?: string },
): Promise<Profile> {
  if (input.timezone !== undefined && !(await isTimezone(deps.sql, input.timezone))) {
    throw new AppError("validation_failed", { details: [{ path: "timezone", message: "not an IANA time zone" }] });
  }
  const changed = await updateProfile(deps.sql, { userId: actor.userId, ...input });
  if (changed) return changed;
  const next = await findNextTimezoneChange(deps.sql, actor.userId);
  if (!next) throw new AppError("unauthorized");
  throw new AppError("timezone_changed", {
    retry_after: Math.max(1, Math.ceil((next.getTime() - Date.now()) / 1000)),
    reset_at: next.toISOString(),
  });
}
