import type { Config } from "../config.ts";
import { newId } from "../lib/ids.ts";
import type { Mailer } from "./mailer.ts";

/** An alarm in words for whoever is on duty. */
export interface AlarmMessage {
  status: "firing" | "resolved";
  key: string;
  severity: "warning" | "critical";
  summary: string;
  host: string;
  /** ISO 8601. */
  since: string;
  count: number;
}

/** Tells the operators. */
export interface AlarmSender {
  /** False: neither a webhook nor an address is configured, so nobody can be told. */
  isConfigured: boolean;
  /** Resolves when every configured way has taken it. Rejects with PartlyTold when one has and one has not, else: tell again. */
  send(alarm: AlarmMessage): Promise<void>;
}

/** Somebody was told, but one of the ways is broken. */
export class PartlyTold extends Error {}

const TIMEOUT_MS = 10_000;

/**
 * A sender as the configuration says: ALARM_WEBHOOK_URL gets the message as JSON, with a `text` that Slack, Mattermost
 * and their like show; ALARM_EMAIL gets a mail by the same mailer as everybody's.
 */
export function createAlarmSender(
  config: Pick<Config, "ALARM_WEBHOOK_URL" | "ALARM_EMAIL">,
  mailer: Mailer | null,
): AlarmSender {
  const { ALARM_WEBHOOK_URL: webhook, ALARM_EMAIL: address } = config;
  return {
    isConfigured: webhook !== undefined || (address !== undefined && mailer !== null),
    async send(alarm) {
      const ways = [
        ...(webhook === undefined ? [] : [post(webhook, alarm)]),
        ...(address === undefined || mailer === null ? [] : [mailTo(mailer, address, alarm)]),
      ];
      const results = await Promise.allSettled(ways);
      const failed = results.find((result) => result.status === "rejected");
      if (!failed) return;
      const { reason } = failed as { reason: Error };
      throw results.some(({ status }) => status === "fulfilled")
        ? new PartlyTold(reason.message, { cause: reason })
        : reason;
    },
  };
}

async function post(url: string, alarm: AlarmMessage): Promise<void> {
  const response = await fetch(url, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ text: renderLine(alarm), ...alarm }),
    redirect: "error",
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  await response.body?.cancel();
  if (!response.ok) throw new Error(`the alarm webhook answered ${response.status}`);
}

async function mailTo(mailer: Mailer, recipient: string, alarm: AlarmMessage): Promise<void> {
  const line = renderLine(alarm);
  const text = `${line}\n\nOn ${alarm.host}, since ${alarm.since}, seen ${alarm.count} time(s). Key: ${alarm.key}\n`;
  const html = `<p>${escapeHtml(line)}</p><p>${escapeHtml(text.slice(line.length).trim())}</p>`;
  const mail = {
    id: newId(),
    template: "alarm",
    recipient,
    createdAt: new Date(),
    subject: line.slice(0, 150),
    text,
    html,
  };
  await mailer.send(mail, AbortSignal.timeout(TIMEOUT_MS));
}

function renderLine({ status, severity, summary }: AlarmMessage): string {
  return `[Reef ${status === "resolved" ? "resolved" : severity}] ${summary}`;
}

function escapeHtml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
