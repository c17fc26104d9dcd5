import { MailError, MAILS_AT_ONCE, type Mailer } from "../clients/mailer.ts";
import { claimMail, deleteMail, putMailBack, type OutboxMail } from "../db/outbox.ts";
import type { Deps } from "../deps.ts";
import { startLoop } from "../lib/loop.ts";
import { backoffDelay, withDeadline } from "../lib/retry.ts";
import { renderMail } from "./mailContent.ts";

type SenderDeps = Pick<Deps, "sql" | "config" | "log" | "mailer">;

/** Longer than a send may take: who is silent beyond this has died, and another sends it again. */
const CLAIM_MS = 90_000;
const BACKOFF_MS = 5_000;
const BACKOFF_CAP_MS = 900_000;
const LIFETIME_SECONDS = 24 * 3600;
const RESYNC_MS = 5_000;
const DRAIN_MS = 3_000;

/** Addresses that never exist (RFC 2606): the doctor's visitors have them, and no mail server is troubled with them. */
const NOBODY = /\.invalid$/i;

export interface MailSender {
  wake(): void;
  /** Ends within some seconds, also when the mail server hangs; what was not sent is due again at once. */
  stop(): Promise<void>;
}

/*
 * A mail is due → claimed (due again when its time is over, should we die) → taken by the server and deleted
 *                                                                         → back, later each time → dead after a day
 * A refusal of the address is dead at once. Dead ones stay, with their reason, for the operator.
 */

/** Sends what is due, a few at a time, each on its own: one that hangs holds up nobody but its place. */
export function startMailSender(deps: SenderDeps): MailSender {
  const { mailer, log } = deps;
  const abort = new AbortController();
  const sending = new Set<Promise<void>>();
  const start = (to: Mailer, row: OutboxMail) => {
    const one = deliver(deps, to, row, abort.signal)
      .catch((err: unknown) => log.warn({ err, mail_id: row.id }, "what became of a mail could not be noted"))
      .finally(() => {
        sending.delete(one);
        loop.wake();
      });
    sending.add(one);
  };
  const loop = startLoop({
    name: "mail",
    debounceMs: 20,
    maxWaitMs: 100,
    resyncMs: RESYNC_MS,
    backoffMs: 500,
    log,
    run: async (signal) => {
      while (mailer && sending.size < MAILS_AT_ONCE && !signal.aborted) {
        const row = await claimMail(deps.sql, { leaseMs: CLAIM_MS });
        if (!row) return;
        start(mailer, row);
      }
    },
  });
  return {
    wake: () => loop.wake(),
    async stop() {
      await loop.stop();
      await withDeadline(Promise.all(sending), DRAIN_MS, "sending mails").catch(() => abort.abort());
      await Promise.all(sending);
    },
  };
}

async function deliver(deps: SenderDeps, mailer: Mailer, row: OutboxMail, signal: AbortSignal): Promise<void> {
  const about = { mail_id: row.id, template: row.template, user_id: row.userId, attempts: row.attempts };
  try {
    const content = NOBODY.test(row.recipient) ? null : await renderMail(deps, row);
    if (content) await mailer.send({ ...row, ...content }, signal);
    deps.log.info(about, content ? "mail sent" : "mail dropped: it is of no use to anybody");
  } catch (error) {
    return putBack(deps, row, about, error, signal.aborted);
  }
  await deleteMail(deps.sql, row.id);
}

async function putBack(
  { sql, log }: SenderDeps,
  row: OutboxMail,
  about: object,
  error: unknown,
  stopping: boolean,
): Promise<void> {
  const known = error instanceof MailError ? error : null;
  const dead = await putMailBack(sql, {
    id: row.id,
    attempts: row.attempts,
    error: known?.reason ?? "internal",
    delayMs: stopping ? 0 : backoffDelay(row.attempts - 1, BACKOFF_MS, BACKOFF_CAP_MS),
    forGood: known?.forGood ?? false,
    lifetimeSeconds: LIFETIME_SECONDS,
  });
  const fields = known ? { ...about, reason: known.reason } : { ...about, err: error };
  if (stopping && !dead) log.info(about, "mail put back: shutting down");
  else log.warn(fields, dead ? "mail given up; its row stays in the outbox" : "mail not sent; will try again");
}
