import { setAssistantStatus } from "../db/assistants.ts";
import { insertAudit } from "../db/audit.ts";
import {
  advanceDeletion,
  claimDeletions,
  countAssistantsLeft,
  deleteUserRows,
  finishDeletion,
  lockLeavingUser,
  releaseDeletion,
  type Deletion,
  type DeletionStep,
} from "../db/deletions.ts";
import type { Deps } from "../deps.ts";
import { describeError } from "../lib/errors.ts";
import { startLoop, type Loop } from "../lib/loop.ts";
import { backoffDelay, withDeadline } from "../lib/retry.ts";
import { revokeAppleToken } from "./appleTokens.ts";
import { endCustomer } from "./customerEnd.ts";
import { sendLastMail } from "./mail.ts";
import { textKeyOf } from "./keptText.ts";

type DeletionDeps = Pick<Deps, "sql" | "redis" | "stripe" | "sales" | "log" | "config" | "appleTokens">;

/** Longer than a step may take; a process that died is followed by another after this. */
const LEASE_MS = 30_000;
const STEP_MS = 20_000;
const AT_ONCE = 8;
const RESYNC_MS = 5_000;
const BACKOFF_MS = 2_000;
const BACKOFF_CAP_MS = 600_000;
const DAY_MS = 86_400_000;
/** About half an hour of pauses: then nobody's data waits any longer for a provider that does not take its token back. */
const PROVIDER_TRIES = 10;

/*
 * The deletion of accounts, a saga per user that goes on wherever it was cut off (`account_deletions.step`):
 *   subscription → nothing is billed any more (services/customerEnd.ts); money first: while this fails nothing else is done
 *   provider     → Apple's token revoked, or, after some tries, the failure audited
 *   agents       → every assistant marked as deleted, then waiting until all are purged (services/purge.ts)
 *   rows         → everything of the user in all tables, in one transaction; what was audited keeps ids only
 *   redis        → the user's keys
 *   mail         → the last mail; then done: recipient and tokens are gone, too
 * The request itself (services/leaving.ts) has signed everybody out. Each step may run twice and says once that it is done.
 */

/** Does a step and records it: what to go on with, or null for now (it waits, it is over, another process was faster). */
type Step = (deletion: Deletion) => Promise<Deletion | null>;
export type DeletionSteps = Record<Exclude<DeletionStep, "done">, Step>;

export function createDeletionSteps(deps: DeletionDeps): DeletionSteps {
  const done = ({ userId, step: from }: Deletion, to: DeletionStep, sql: DeletionSql = deps.sql) =>
    advanceDeletion(sql, { userId, from, to, leaseMs: LEASE_MS });
  return {
    async subscription(deletion) {
      const { userId, attempts, recipient: email } = deletion;
      await endCustomer(deps, { userId, email, attempts });
      return done(deletion, "provider");
    },
    async provider(deletion) {
      const failures = await revokeTokens(deps, deletion);
      return deps.sql.begin(async (sql) => {
        const next = await done(deletion, "agents", sql);
        if (next) for (const reason of failures) await auditFailure(sql, deletion.userId, reason);
        return next;
      });
    },
    async agents(deletion) {
      const { userId, step } = deletion;
      const { living, unpurged } = await countAssistantsLeft(deps.sql, userId);
      if (unpurged === 0) return done(deletion, "rows");
      await deps.sql.begin(async (sql) => {
        for (const id of living) await setAssistantStatus(sql, { userId, id, status: "deleted" });
        await releaseDeletion(sql, { userId, step, retryMs: 0, error: null });
      });
      return null;
    },
    rows: (deletion) =>
      deps.sql.begin(async (sql) => {
        await lockLeavingUser(sql, deletion.userId);
        const { unpurged } = await countAssistantsLeft(sql, deletion.userId);
        const next = await done(deletion, unpurged === 0 ? "redis" : "agents", sql);
        if (next?.step === "redis") await deleteUserRows(sql, deletion.userId);
        return next;
      }),
    async redis(deletion) {
      await deps.redis.del(keysOf(deletion));
      return done(deletion, "mail");
    },
    mail: ({ userId, recipient }) =>
      deps.sql.begin(async (sql) => {
        if (!(await finishDeletion(sql, userId))) return null;
        await insertAudit(sql, {
          actor: "job:deletion",
          action: "account.deleted",
          subjectUserId: userId,
          ip: null,
          requestId: null,
        });
        if (recipient !== null)
          await sendLastMail(sql, recipient, {
            template: "deletion-finished",
            params: { at: new Date().toISOString() },
          });
        return null;
      }),
  };
}

type DeletionSql = Parameters<typeof advanceDeletion>[0];

/** Why tokens could not be revoked, and never will be. Throws what may pass: then it is tried again, some times. */
async function revokeTokens(deps: DeletionDeps, { userId, attempts, providerTokens }: Deletion): Promise<string[]> {
  const failures: string[] = [];
  for (const { token } of providerTokens.filter(({ provider }) => provider === "apple")) {
    const outcome = await revokeAppleToken(deps, Buffer.from(token, "hex")).catch((error: unknown) => {
      if (deps.appleTokens && attempts < PROVIDER_TRIES) throw error;
      return describeError(error);
    });
    if (outcome === "revoked") continue;
    deps.log.error({ user_id: userId, reason: outcome }, "Apple's token was not revoked; the deletion goes on");
    failures.push(outcome);
  }
  return failures;
}

function auditFailure(sql: DeletionSql, userId: string, reason: string): Promise<void> {
  const audit = { actor: "job:deletion", subjectUserId: userId, ip: null, requestId: null };
  return insertAudit(sql, { ...audit, action: "identity.revocation_failed", details: { reason } });
}

/** Every key that can hold something of a user; a day may be yesterday's or tomorrow's, by the user's time zone. */
function keysOf({ userId, turnIds }: Deletion): string[] {
  const days = [-1, 0, 1].map((days) => new Date(Date.now() + days * DAY_MS).toISOString().slice(0, 10));
  return [
    `plan:${userId}`,
    `ws:connections:${userId}`,
    ...days.map((date) => `ratelimit:${userId}:${date}`),
    ...turnIds.map(textKeyOf),
  ];
}

/** Works at the deletions that are due, several at a time, so that one that waits or fails holds up nobody else. */
export function startDeletions(deps: DeletionDeps, steps: DeletionSteps = createDeletionSteps(deps)): Loop {
  const { sql, log } = deps;
  const active = new Map<string, Promise<void>>();
  let stopping = false;

  const failed = async ({ userId, step, attempts }: Deletion, error: unknown) => {
    const reason = describeError(error);
    log.warn({ user_id: userId, step, attempts: attempts + 1, reason }, "account deletion step failed; trying again");
    const retryMs = backoffDelay(attempts, BACKOFF_MS, BACKOFF_CAP_MS);
    await releaseDeletion(sql, { userId, step, retryMs, error: reason });
  };
  const work = async (deletion: Deletion) => {
    let next: Deletion | null = deletion;
    while (next && next.step !== "done") {
      const now: Deletion & { step: keyof DeletionSteps } = { ...next, step: next.step };
      // Left to another process at once.
      if (stopping) return releaseDeletion(sql, { userId: now.userId, step: now.step, retryMs: 0, error: null });
      try {
        next = await withDeadline(steps[now.step](now), STEP_MS, now.step);
      } catch (error) {
        return failed(now, error);
      }
      if (next || now.step === "mail") log.info({ user_id: now.userId, step: now.step }, "account deletion step done");
    }
  };
  const start = (deletion: Deletion) => {
    const working = work(deletion)
      // Its lease ends by itself.
      .catch((error: unknown) => log.warn({ user_id: deletion.userId, reason: describeError(error) }, "let go late"))
      .finally(() => {
        active.delete(deletion.userId);
        loop.wake();
      });
    active.set(deletion.userId, working);
  };
  const loop = startLoop({
    name: "deletions",
    debounceMs: 20,
    maxWaitMs: 200,
    resyncMs: RESYNC_MS,
    backoffMs: 500,
    log,
    run: async () => {
      const limit = AT_ONCE - active.size;
      if (limit <= 0 || stopping) return;
      const due = await claimDeletions(sql, { leaseMs: LEASE_MS, limit, except: [...active.keys()] });
      for (const deletion of due) start(deletion);
    },
  });
  return {
    wake: () => loop.wake(),
    async stop() {
      stopping = true;
      await loop.stop();
      await Promise.all(active.values());
    },
  };
}
