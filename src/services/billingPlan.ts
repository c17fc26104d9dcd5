import { findPlanState, lockPlan, setAppliedPlan } from "../db/appliedPlans.ts";
import { insertAudit } from "../db/audit.ts";
import type { Queryable } from "../db/connect.ts";
import { notify } from "../db/notify.ts";
import { lockAssistantsOf, pauseBeyond, resumeWithin, setModels } from "../db/planFit.ts";
import { sendMail } from "./mail.ts";

/** Who changes an entitlement, for the audit log. */
export interface PlanActor {
  actor: string;
  ip: string | null;
  requestId: string | null;
  details?: Record<string, string>;
}

/**
 * Does what the plan in force asks for, in the caller's transaction: where it is another than the one applied, mail,
 * and audit; in any case its model, and no more active assistants than it gives. Those without a place are paused, never
 * deleted, and come back with the plan. Idempotent. True when the plan has changed.
 *
 * Whoever writes `subscriptions` takes `lockPlan` before, and calls this after, in one transaction.
 */
export async function applyPlan(sql: Queryable, userId: string, by: PlanActor): Promise<boolean> {
  await lockPlan(sql, userId);
  const state = await findPlanState(sql, userId);
  if (!state) return false;
  const { applied, plan, limit, fitted, chatModel } = state;
  const changed = applied !== plan;
  if (!changed && fitted) return false;
  await lockAssistantsOf(sql, userId);
  const paused = await pauseBeyond(sql, { userId, limit });
  await setModels(sql, { userId, chatModel });
  if (!changed) return false;
  const resumed = await resumeWithin(sql, { userId, limit });
  await setAppliedPlan(sql, { userId, plan });
  const details = { ...by.details, from: applied, to: plan, paused, resumed };
  await insertAudit(sql, { ...by, action: "subscription.changed", subjectUserId: userId, details });
  const at = new Date().toISOString();
  await sendMail(sql, userId, { template: "plan-changed", params: { from_plan: applied, to_plan: plan, at } });
  // What ends by the clock changes no row that would tell it.
  await notify(sql, "plan", userId);
  return true;
}
