import { z } from "zod";
import { integer, list, text, url } from "./settings.ts";

/** What the timers' jobs, backups, alarms, the files process, the canary and traces are told: a part of src/config.ts. */
export const operationSettings = {
  SLEEP_INACTIVE_DAYS: integer("A free plan's assistant unused this long is put to sleep", 1, 3650).default(14),
  AUDIT_KEEP_DAYS: integer("How long the audit log is kept", 30, 3650).default(400),
  ALARM_WEBHOOK_URL: url(
    "Where alarms are posted as JSON with a text, e.g. an incoming webhook of a chat",
    /^https?$/,
  ).optional(),
  ALARM_EMAIL: z.email().describe("Who gets alarms by mail").optional(),
  ALARM_REPEAT_MS: integer("How often an alarm that lasts is told again", 60_000, 604_800_000).default(21_600_000),
  BACKUP_DIR: text("Folder of the backups on this machine").default("/var/backups/reef"),
  BACKUP_MAX_AGE_MS: integer("A newest backup older than this is an alarm", 60_000, 2_592_000_000).default(108_000_000),
  BACKUP_AGE_RECIPIENTS: list(
    "Public age keys (age1…) that secrets in a backup are encrypted for; their private half is kept elsewhere",
  ).default([]),
  BACKUP_SECRETS_DIR: text("Folder of the env files; they are in a backup as secrets.tar.age").default("/etc/reef"),
  BACKUP_POSTGRES_CONTAINER: text(
    "Docker container of Postgres, whose own pg_dump and pg_restore are taken; without it those installed here, else the container that publishes the port",
  ).optional(),
  RESTIC_REPOSITORY: text(
    "Second place of the backups, as restic names it, e.g. s3:https://s3.example.com/reef",
  ).optional(),
  RESTIC_PASSWORD: text("Encrypts the second place; with another one nothing can be read").optional(),
  GATEWAY_FILES_URL: url(
    "The gateway's folder served from its own host (src/files.ts), e.g. http://10.0.0.2:18790; without it the folder is here",
    /^https?$/,
  ).optional(),
  GATEWAY_FILES_TOKEN: z
    .string()
    .min(16, "must have at least 16 characters")
    // It travels in a header, which drops spaces at its ends and holds no letters of other scripts.
    .regex(/^[\x21-\x7e]+$/, "must be one word of plain characters")
    .describe("Shared by src/files.ts and those who ask it")
    .optional(),
  GATEWAY_FILES_HOST: text(
    "Address that src/files.ts listens on; another than loopback only in a private network",
  ).default("127.0.0.1"),
  GATEWAY_FILES_PORT: integer("Port that src/files.ts listens on", 0, 65535).default(18790),
  GATEWAY_RESTART_DIR: text(
    "Where the health check leaves a file named like the gateway to have it restarted (reef-restart-gateway@.path)",
  ).optional(),
  CANARY_MODEL_URL: url(
    "Where the isolation canary serves its scripted model while it runs, as the gateway reaches it: an address of the machine that the job runs on, with a port",
    /^http$/,
  ).default("http://127.0.0.1:18799"),
  CANARY_MAX_AGE_MS: integer(
    "A gateway whose isolation was not proved for this long gets no new assistants",
    60_000,
    2_592_000_000,
  ).default(21_600_000),
  OTEL_EXPORTER_OTLP_ENDPOINT: url(
    "Collector of traces (OTLP over HTTP), e.g. http://127.0.0.1:4318",
    /^https?$/,
  ).optional(),
};
