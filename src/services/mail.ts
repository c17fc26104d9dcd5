import type { Queryable } from "../db/connect.ts";
import { notify } from "../db/notify.ts";
import { insertLastMail, insertUserMail } from "../db/outbox.ts";

/**
 * Every mail there is, and what its row in the outbox keeps: ids, names and times (ISO), never a token. The rest (the
 * person's name, zone and links) is looked up when it is sent; see services/mailContent.ts and `templates/mail/`.
 */
export type Mail =
  | { template: "verify-email" | "reset-password"; params: { token_id: string } }
  | { template: "signup-attempt"; params: Record<string, never> }
  | { template: "new-device"; params: { device_name: string | null; network: string | null; at: string } }
  | { template: "password-changed"; params: { at: string } }
  | { template: "plan-changed"; params: { from_plan: string; to_plan: string; at: string } }
  | { template: "payment-failed"; params: { plan: string; at: string; grace_until: string | null } };
export type LastMail = { template: "deletion-requested" | "deletion-finished"; params: { at: string } };

/**
 * Mails a user, in the caller's transaction: it goes out when that commits, and not at all when it does not. At least
 * once: a process that dies between sending and noting it makes it go twice, under one Message-ID.
 */
export async function sendMail(sql: Queryable, userId: string, mail: Mail): Promise<void> {
  if (await insertUserMail(sql, { userId, ...mail })) await notify(sql, "mail", "");
}

/** Mails the address of an account that is going, and has it no more: this row stays when the user's rows are erased. */
export async function sendLastMail(sql: Queryable, recipient: string, mail: LastMail): Promise<void> {
  await insertLastMail(sql, { recipient, ...mail });
  await notify(sql, "mail", "");
}
