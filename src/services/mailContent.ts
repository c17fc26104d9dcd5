import { readMailTemplate } from "../clients/mailTemplates.ts";
import { findMailReader, type MailReader, type OutboxMail } from "../db/outbox.ts";
import { findPaid } from "../db/subscriptions.ts";
import type { Deps } from "../deps.ts";
import { renderMailTemplate, showable, type MailContent } from "../lib/mailTemplate.ts";
import type { LastMail, Mail } from "./mail.ts";
import { findLivingToken } from "./oneTimeTokens.ts";

type ContentDeps = Pick<Deps, "config" | "sql">;
/** A mail as it is sent now; null when nobody needs it any more (its link is used, expired or superseded). */
export async function renderMail(deps: ContentDeps, row: OutboxMail): Promise<MailContent | null> {
  const reader = row.userId === null ? null : await findMailReader(deps.sql, row.userId);
  if (row.userId !== null && !reader) return null;
  const mail = row as unknown as Mail | LastMail;
  const link = await linkOf(deps, row, mail);
  if (link === null) return null;
  const values = { ...commonValues(reader), ...ownValues(mail, reader?.timezone ?? "UTC"), link };
  return renderMailTemplate(await readMailTemplate(row.template), values);
}

async function linkOf(deps: ContentDeps, row: OutboxMail, mail: Mail | LastMail): Promise<string | null> {
  const app = (path: string) => appLink(deps.config.APP_URL, path);
  if (mail.template === "verify-email" || mail.template === "reset-password") {
    const kind = mail.template === "verify-email" ? "verify_email" : "reset_password";
    const token = await findLivingToken(deps, { id: mail.params.token_id, kind });
    return token === null ? null : app(`${mail.template}?token=${token}`);
  }
  if (mail.template === "payment-failed") return (await isStillOwed(deps, row, mail)) ? app("subscription") : null;
  if (mail.template === "new-device" || mail.template === "password-changed") return app("security");
  return app("");
}

async function isStillOwed(
  { sql }: ContentDeps,
  { userId }: OutboxMail,
  { params }: Extract<Mail, { template: "payment-failed" }>,
): Promise<boolean> {
  const paid = userId === null ? null : await findPaid(sql, userId);
  return paid?.pastDueSince?.toISOString() === params.at;
}

/** An address in the app; `reef://` and `https://example.com/app/` work alike. */
export function appLink(appUrl: string, path: string): string {
  return appUrl.endsWith("://") ? appUrl + path : `${appUrl.replace(/\/+$/, "")}/${path}`;
}

// Until an address is verified the name next to it may be a stranger's, and is not repeated to its owner.
function commonValues(reader: MailReader | null): Record<string, string> {
  const name = reader?.emailVerified ? showable(reader.name ?? "") : "";
  return { greeting: name === "" ? "Hello," : `Hello ${name},` };
}

function ownValues(mail: Mail | LastMail, timezone: string): Record<string, string> {
  switch (mail.template) {
    case "verify-email":
    case "reset-password":
    case "signup-attempt":
      return {};
    case "new-device":
      return {
        device: showable(mail.params.device_name ?? "") || "a device without a name",
        network: mail.params.network ?? "unknown",
        time: renderTime(mail.params.at, timezone),
      };
    case "plan-changed":
      return {
        from_plan: showable(mail.params.from_plan),
        to_plan: showable(mail.params.to_plan),
        time: renderTime(mail.params.at, timezone),
      };
    case "payment-failed":
      return {
        plan: showable(mail.params.plan),
        time: renderTime(mail.params.at, timezone),
        kept:
          mail.params.grace_until === null
            ? "We will try again in the next days, and your plan stays as it is meanwhile."
            : `Your plan stays as it is until ${renderTime(mail.params.grace_until, timezone)}.`,
      };
    case "password-changed":
    case "deletion-requested":
    case "deletion-finished":
      return { time: renderTime(mail.params.at, timezone) };
  }
}

/** A moment in a person's own zone, which is named; in UTC where only Postgres knows the zone. */
export function renderTime(at: string, timezone: string): string {
  const format = (timeZone: string) =>
    new Intl.DateTimeFormat("en-GB", { dateStyle: "long", timeStyle: "short", timeZone }).format(new Date(at));
  try {
    return `${format(timezone)} (${timezone})`;
  } catch {
    return `${format("UTC")} (UTC)`;
  }
}
