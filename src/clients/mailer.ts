import { createTransport } from "nodemailer";
import type { Config } from "../config.ts";
import type { Log } from "../lib/log.ts";
import type { MailContent } from "../lib/mailTemplate.ts";
import { createMailFolder } from "./mailFolder.ts";

/** A mail to send. The same `id` is the same mail: it gets the same Message-ID, however often it is sent. */
export interface OutgoingMail extends MailContent {
  id: string;
  template: string;
  recipient: string;
  createdAt: Date;
}

/** Where mails go. */
export interface Mailer {
  /** Resolves when the mail was taken. Rejects with MailError, also when `signal` aborts. */
  send(mail: OutgoingMail, signal: AbortSignal): Promise<void>;
  close(): void;
}

/** Why a mail was not taken: codes only, since a server's sentence may quote the address. */
export class MailError extends Error {
  /** `forGood`: this address will never take it. */
  constructor(
    readonly reason: string,
    readonly forGood: boolean,
  ) {
    super(`the mail was not taken: ${reason}`);
    this.name = "MailError";
  }
}

/** How many mails go out at a time. */
export const MAILS_AT_ONCE = 4;
const CONNECT_MS = 10_000;
const SILENT_MS = 20_000;
const TOTAL_MS = 40_000;

/** A mailer as the configuration says: SMTP, a folder, or null when mails can't go anywhere and wait in the outbox. */
export function createMailer(
  config: Pick<Config, "SMTP_URL" | "MAIL_DIR" | "MAIL_FROM" | "NODE_ENV">,
  log: Log,
): Mailer | null {
  const { SMTP_URL, MAIL_DIR, NODE_ENV } = config;
  if (SMTP_URL) return createSmtpMailer(SMTP_URL, config.MAIL_FROM);
  if (NODE_ENV === "production")
    log.warn(
      MAIL_DIR
        ? "MAILS ARE NOT SENT but written to MAIL_DIR: set SMTP_URL"
        : "MAILS ARE NOT SENT, they wait: set SMTP_URL",
    );
  if (!MAIL_DIR) return null;
  const folder = createMailFolder(MAIL_DIR);
  return {
    send: (mail) =>
      folder.write(mail, config.MAIL_FROM).catch((error: unknown) => {
        throw new MailError(codeOf(error, "code"), false);
      }),
    close: () => undefined,
  };
}

function createSmtpMailer(url: string, from: string): Mailer {
  const transport = createTransport({
    ...smtpOptions(url),
    pool: true,
    maxConnections: MAILS_AT_ONCE,
    // One more, for a connection that the server closed while it was idle; the outbox does the rest.
    maxRequeues: 1,
    connectionTimeout: CONNECT_MS,
    greetingTimeout: CONNECT_MS,
    dnsTimeout: CONNECT_MS,
    socketTimeout: SILENT_MS,
    logger: false,
    disableFileAccess: true,
    disableUrlAccess: true,
  });
  // The mails' own promises reject; without a listener this would end the process.
  transport.on("error", () => undefined);
  const host = /@([^\s<>@]+)>?\s*$/.exec(from)?.[1] ?? "localhost";
  return {
    async send(mail, signal) {
      const sending = transport.sendMail({
        messageId: `<${mail.id}@${host}>`,
        from,
        to: { name: "", address: mail.recipient },
        date: mail.createdAt,
        subject: mail.subject,
        text: mail.text,
        html: mail.html,
        headers: { "Auto-Submitted": "auto-generated", "X-Auto-Response-Suppress": "All" },
        signal: AbortSignal.any([signal, AbortSignal.timeout(TOTAL_MS)]),
      });
      await sending.catch((error: unknown) => {
        throw toMailError(error);
      });
    },
    close: () => transport.close({ force: true }),
  };
}

/**
 * `smtps:` is TLS, `smtp:` becomes TLS (STARTTLS) where the server offers it. A password never goes over a network in
 * the clear: with one, STARTTLS is a must unless the server is on this machine or the URL says `?ignoreTLS=true`.
 */
export function smtpOptions(smtpUrl: string) {
  const url = new URL(smtpUrl);
  const local = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(url.hostname);
  const open = local || url.searchParams.get("ignoreTLS") === "true";
  return { url: smtpUrl, ...(url.password !== "" && url.protocol === "smtp:" && !open ? { requireTLS: true } : {}) };
}

function toMailError(error: unknown): MailError {
  const [code, command] = [codeOf(error, "code"), codeOf(error, "command")];
  const answer = codeOf(error, "responseCode");
  const enhanced = /^\d{3}[ -](\d\.\d{1,3}\.\d{1,3})\b/.exec(codeOf(error, "response"))?.[1] ?? "";
  const reason = [code, answer, enhanced, command].filter((part) => part !== "").join(" ") || "unknown";
  const refused = code === "EENVELOPE" && command === "RCPT TO" && answer.startsWith("5");
  return new MailError(reason.slice(0, 100), refused);
}

function codeOf(error: unknown, field: string): string {
  const value = error instanceof Error && field in error ? (error as unknown as Record<string, unknown>)[field] : "";
  return typeof value === "string" || typeof value === "number" ? String(value) : "";
}
