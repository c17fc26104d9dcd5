import { listUsers } from "../db/admin.ts";
import { lockPlan } from "../db/appliedPlans.ts";
import { insertAudit } from "../db/audit.ts";
import type { Queryable } from "../db/connect.ts";
import { hasPlan } from "../db/plans.ts";
import { endGrant, putGrant } from "../db/subscriptions.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { id } from "../protocol/fields.ts";
import { applyPlan, type PlanActor } from "./billingPlan.ts";

/** What an operator gives: a plan, until a moment or for as long as it is not ended. */
export interface Grant {
  plan: string;
  until: Date | null;
}

/**
 * Gives a person a plan, beside whatever they pay for: the larger one counts. In the caller's transaction. Throws
 * `validation_failed` for a plan that there is not (free is none) and for an end that is over.
 */
export async function giveGrant(sql: Queryable, by: PlanActor, input: { userId: string; grant: Grant }): Promise<void> {
  const { userId, grant } = input;
  const fault = (path: string, message: string) => new AppError("validation_failed", { details: [{ path, message }] });
  if (grant.plan === "free" || !(await hasPlan(sql, grant.plan))) throw fault("plan", "there is no such plan to give");
  if (grant.until && grant.until.getTime() <= Date.now()) throw fault("until", "must be in the future");
  await lockPlan(sql, userId);
  await putGrant(sql, { userId, ...grant });
  const details = { ...by.details, plan: grant.plan, until: grant.until?.toISOString() ?? "" };
  await insertAudit(sql, { ...by, action: "subscription.granted", subjectUserId: userId, details });
  await applyPlan(sql, userId, by);
}

/** Takes a gift back; false when there is none. In the caller's transaction. */
export async function takeGrant(sql: Queryable, by: PlanActor, userId: string): Promise<boolean> {
  await lockPlan(sql, userId);
  if (!(await endGrant(sql, { userId, over: false }))) return false;
  await insertAudit(sql, { ...by, action: "subscription.grant_ended", subjectUserId: userId });
  await applyPlan(sql, userId, by);
  return true;
}

/** Somebody at the machine, as services/operators.ts names them. */
type Person = { osUser: string };

/** The command: `user` is an id or an address. A sentence where it could not be done. */
export async function grantByJob(
  deps: Pick<Deps, "sql">,
  person: Person,
  input: { user: string; grant: Grant },
): Promise<string | null> {
  return actByJob(deps, input.user, async (sql, userId) => {
    try {
      await giveGrant(sql, byJob(person), { userId, grant: input.grant });
      return null;
    } catch (error) {
      if (!(error instanceof AppError)) throw error;
      return (error.extras.details ?? []).map(({ path, message }) => `${path}: ${message}.`).join(" ");
    }
  });
}

export async function endGrantByJob(deps: Pick<Deps, "sql">, person: Person, user: string): Promise<string | null> {
  return actByJob(deps, user, async (sql, userId) =>
    (await takeGrant(sql, byJob(person), userId)) ? null : "There is no gift to end.",
  );
}

async function actByJob(
  { sql }: Pick<Deps, "sql">,
  user: string,
  act: (sql: Queryable, userId: string) => Promise<string | null>,
): Promise<string | null> {
  return sql.begin(async (tx) => {
    const who = id.safeParse(user).success ? { id: user, email: null } : { id: null, email: user };
    const [found] = await listUsers(tx, { ...who, status: null, before: null, limit: 1 });
    if (!found) return `There is no user "${user}".`;
    if (found.status === "deleting") return "This account is being deleted.";
    return act(tx, found.id);
  });
}

function byJob({ osUser }: Person): PlanActor {
  return { actor: "job:admin", ip: null, requestId: null, details: { os_user: osUser } };
}
