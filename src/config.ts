import { z } from "zod";
import { operationSettings } from "./lib/operationSettings.ts";
import { pricesSetting } from "./lib/prices.ts";
import { flag, integer, isAppleKey, list, origins, text, url } from "./lib/settings.ts";

/** Every variable that Reef reads. A secret has no default; `npm start` makes what is missing for a trial. */
export const environmentSchema = z.object({
  NODE_ENV: z
    .enum(["development", "production", "test"])
    .default("production")
    .describe("development, production or test"),
  HOST: text("Address to listen on").default("127.0.0.1"),
  PORT: integer("Port to listen on", 0, 65535).default(3000),
  PROCESSES: integer(
    "How many processes listen on the port; one more, and it takes all new connections",
    1,
    64,
  ).default(1),
  LOG_LEVEL: z
    .enum(["trace", "debug", "info", "warn", "error", "silent"])
    .default("info")
    .describe("Least severe log lines written"),
  DATABASE_URL: url("Postgres 14 or later, e.g. postgres://reef:secret@127.0.0.1:5432/reef", /^postgres(ql)?$/),
  DATABASE_POOL: integer("Connections to Postgres per process", 2, 200).default(20),
  REDIS_URL: url("Redis 6 or later, e.g. redis://127.0.0.1:6379", /^rediss?$/),
  REDIS_PREFIX: z
    .string()
    .describe("Put before every Redis key; keeps two installations on one Redis apart")
    .default(""),
  JWT_SECRET: z
    .string()
    .min(32, "must have at least 32 characters")
    .describe("Signs access and refresh tokens; at least 32 characters"),
  REVEAL_EMAIL_TAKEN: flag(
    "Whether sign-up says that an address has an account; by default only in development",
  ).optional(),
  APP_URL: url(
    "Where links in mails, and Stripe's pages, lead: the app or its web page",
    /^(https?|[a-z][a-z0-9+.-]*)$/,
  ).default("http://localhost:3000"),
  SMTP_URL: url(
    "Mail server, e.g. smtps://user:secret@smtp.example.com; without it mails are files",
    /^smtps?$/,
  ).optional(),
  MAIL_FROM: text("Sender of mails")
    .regex(/^([^<>\r\n]*<[^\s<>@]+@[^\s<>@]+>|[^\s<>@]+@[^\s<>@]+)$/, "must be an address or Name <address>")
    .default("Reef <no-reply@localhost>"),
  MAIL_DIR: text("Folder that mails are written to where there is no SMTP_URL").optional(),
  TRUSTED_PROXIES: integer("Proxies of ours in front, each adding to X-Forwarded-For", 0, 10).default(0),
  CORS_ORIGINS: origins("Web pages that may call the API, e.g. https://app.example.com,https://example.com").default(
    [],
  ),
  SIGNUPS_PER_HOUR: integer("Sign-ups an hour from one address (IPv6: from one /64)", 1, 1_000_000).default(20),
  APPLE_CLIENT_IDS: list("Bundle ids of the apps that sign in with Apple").default([]),
  APPLE_TEAM_ID: text("Apple developer team; needed to revoke an account's token on deletion").optional(),
  APPLE_KEY_ID: text("Id of the key in APPLE_PRIVATE_KEY").optional(),
  APPLE_PRIVATE_KEY: z
    .string()
    .transform((value) => value.replaceAll("\\n", "\n"))
    .refine(isAppleKey, "must be the text of the .p8 file (an EC key on P-256)")
    .describe("Apple's sign-in key: the .p8 file's text, line ends as \\n")
    .optional(),
  APPLE_URL: url("Apple's sign-in service", /^https?$/).default("https://appleid.apple.com"),
  GOOGLE_CLIENT_IDS: list(
    "OAuth client ids of the apps that sign in with Google, the one their tokens are for included",
  ).default([]),
  GOOGLE_ISSUER: url("Google's issuer of identity tokens", /^https?$/).default("https://accounts.google.com"),
  GOOGLE_KEYS_URL: url("Google's public keys", /^https?$/).default("https://www.googleapis.com/oauth2/v3/certs"),
  STRIPE_SECRET_KEY: text("Stripe's secret key; without it nothing is sold").optional(),
  STRIPE_API_BASE: url("Stripe's API", /^https?$/).default("https://api.stripe.com"),
  STRIPE_WEBHOOK_SECRETS: list("Signing secrets of the webhook (whsec_…); several while they are rotated").default([]),
  BILLING_GRACE_DAYS: integer(
    "Days that a plan is kept when a payment failed; without it as long as Stripe tries again",
    0,
    365,
  ).optional(),
  BILLING_RECONCILE_MS: integer("How often all subscriptions are compared with Stripe", 1000, 604_800_000).default(
    21_600_000,
  ),
  ROLE: z
    .enum(["all", "front"])
    .default("all")
    .describe(
      "all: serves people and answers for its gateway; front: serves people only, has no gateway, and needs none of its settings",
    ),
  GATEWAY_ID: z
    .string()
    .regex(/^[a-z0-9][a-z0-9-]{0,40}$/, "must be a short lower-case name")
    .default("main")
    .describe("Name of the gateway in the database"),
  OPENCLAW_GATEWAY_URL: url("The OpenClaw gateway, e.g. ws://127.0.0.1:18789", /^wss?$/),
  OPENCLAW_GATEWAY_TOKEN: z.string().min(16, "must have at least 16 characters").describe("The gateway's shared token"),
  OPENCLAW_GATEWAY_DIR: text("The gateway's folder: openclaw.json, state/, workspaces/, home/"),
  GATEWAY_WORKING_SET: integer("Assistants configured (awake) at a time", 1, 500).default(30),
  GATEWAY_MAX_RUNS: integer("Answers written at a time on the gateway", 1, 500).default(16),
  GATEWAY_IDLE_SLEEP_MS: integer("An assistant unused this long goes to sleep", 1000, 86_400_000).default(1_800_000),
  GATEWAY_RELOAD_DEBOUNCE_MS: integer("Changes this close together are one reload", 10, 10_000).default(250),
  GATEWAY_APPLY_TIMEOUT_MS: integer("How long a reload may take", 1000, 600_000).default(60_000),
  OPENAI_BASE_URL: url("The provider of model and voice, for the gateway and the API", /^https?$/).default(
    "https://api.openai.com/v1",
  ),
  OPENAI_API_KEY: text("The provider's key; without it npm start brings a scripted provider, elsewhere nothing speaks")
    .regex(/^[\x21-\x7e]+$/, "must be one word of plain characters")
    .optional(),
  TRANSCRIPTION_MODEL: text("The provider's model that writes down what was said").default("whisper-1"),
  // Less than a speech may take (services/speaking.ts): its end there is the reader's slowness, and paid.
  VOICE_TIMEOUT_MS: integer("How long one call for voice waits for the provider in all", 100, 240_000).default(120_000),
  VOICE_MEMORY_BYTES: integer(
    "Bytes of recordings and speech held by a process at a time, beyond it 503; memory in use may reach ten times that",
    50 * 1024 * 1024,
    64 * 1024 ** 3,
  ).default(64 * 1024 * 1024),
  VOICE_FIRST_BYTE_MS: integer(
    "How long the provider of voice may be silent before its answer and within it; long audio gets more",
    50,
    600_000,
  ).default(20_000),
  PRICES: pricesSetting,
  TURN_FIRST_TEXT_MS: integer("Budget from dispatch to the first text of an answer", 100, 600_000).default(90_000),
  TURN_BETWEEN_TEXT_MS: integer("Budget between two pieces of text", 100, 600_000).default(60_000),
  TURN_TOTAL_MS: integer("Budget of an answer in all", 100, 3_600_000).default(300_000),
  TURN_WAIT_MS: integer("Budget in the queue, waking the assistant included", 100, 3_600_000).default(600_000),
  TURN_LEASE_MS: integer("A process silent this long loses its running turns to another", 500, 60_000).default(3_000),
  INVARIANTS_EVERY_MS: integer(
    "How often one of the processes counts violated invariants for /metrics; less often when that takes long",
    50,
    86_400_000,
  ).default(60_000),
  CHAT_MAX_LOOP_DELAY_MS: integer(
    "New chat sockets get 503 while the event loop is this late on average",
    10,
    60_000,
  ).default(250),
  ...operationSettings,
  CHAT_PING_MS: integer(
    "Interval of WebSocket pings; a client silent for 2.4 of them is closed (4408)",
    50,
    120_000,
  ).default(25_000),
});

export type Config = z.output<typeof environmentSchema> & { REVEAL_EMAIL_TAKEN: boolean };

/** A bad configuration: every fault by the variable's name, never with its value. The process exits with 78. */
export class ConfigError extends Error {
  readonly faults: string[];
  constructor(faults: string[]) {
    super(`The configuration has ${faults.length} fault(s):\n${faults.map((fault) => `  ${fault}`).join("\n")}`);
    this.name = "ConfigError";
    this.faults = faults;
  }
}

/** The part that the step before a gateway's start needs. */
const gatewayEnvironment = environmentSchema.pick({
  OPENCLAW_GATEWAY_DIR: true,
  OPENAI_BASE_URL: true,
  CANARY_MODEL_URL: true,
  PRICES: true,
  GATEWAY_MAX_RUNS: true,
  TURN_TOTAL_MS: true,
});

export function loadGatewayConfig(env: Record<string, string | undefined>): z.output<typeof gatewayEnvironment> {
  return parse(gatewayEnvironment, env);
}

/** The part that the process beside a gateway needs (src/files.ts). */
const filesEnvironment = environmentSchema
  .pick({
    OPENCLAW_GATEWAY_DIR: true,
    GATEWAY_FILES_HOST: true,
    GATEWAY_FILES_PORT: true,
    GATEWAY_FILES_TOKEN: true,
    LOG_LEVEL: true,
  })
  .required({ GATEWAY_FILES_TOKEN: true });
export type FilesConfig = z.output<typeof filesEnvironment>;

export function loadFilesConfig(env: Record<string, string | undefined>): FilesConfig {
  return parse(filesEnvironment, env);
}

/** A process without a gateway is not asked for these, and what is given is not its own. */
const NO_GATEWAY = {
  GATEWAY_ID: "none",
  OPENCLAW_GATEWAY_URL: "ws://127.0.0.1:1",
  OPENCLAW_GATEWAY_TOKEN: "no gateway, no token",
  OPENCLAW_GATEWAY_DIR: "/nonexistent",
};

/** The part that preparing the database needs. */
export function loadDatabaseConfig(env: Record<string, string | undefined>): { DATABASE_URL: string } {
  return parse(environmentSchema.pick({ DATABASE_URL: true }), env);
}

/** Reads the environment once. Pure: an empty variable counts as absent. Throws ConfigError with all faults at once. */
export function loadConfig(env: Record<string, string | undefined>): Config {
  const { REVEAL_EMAIL_TAKEN, ...rest } = parse(environmentSchema, {
    ...env,
    ...(env["ROLE"]?.trim() === "front" && NO_GATEWAY),
  });
  const apple = ["APPLE_TEAM_ID", "APPLE_KEY_ID", "APPLE_PRIVATE_KEY"] as const;
  const absent = apple.filter((name) => rest[name] === undefined);
  if (absent.length === 1 || absent.length === 2)
    throw new ConfigError(absent.map((name) => `${name} is missing: ${apple.join(", ")} belong together`));
  // The health check, exports and those who end lost turns would take it for no gateway at all.
  if (rest.ROLE !== "front" && rest.GATEWAY_ID === NO_GATEWAY.GATEWAY_ID)
    throw new ConfigError([
      `GATEWAY_ID must not be "${NO_GATEWAY.GATEWAY_ID}", which names processes without a gateway`,
    ]);
  if (rest.GATEWAY_FILES_URL !== undefined && rest.GATEWAY_FILES_TOKEN === undefined)
    throw new ConfigError(["GATEWAY_FILES_TOKEN is missing: GATEWAY_FILES_URL needs it"]);
  return { ...rest, REVEAL_EMAIL_TAKEN: REVEAL_EMAIL_TAKEN ?? rest.NODE_ENV === "development" };
}

/** Reads some of the variables, as `loadConfig` all. */
export function parse<S extends z.ZodType>(schema: S, env: Record<string, string | undefined>): z.output<S> {
  const present = Object.fromEntries(
    Object.entries(env).filter(([, value]) => value !== undefined && value.trim() !== ""),
  );
  const result = schema.safeParse(present);
  if (!result.success)
    throw new ConfigError([...new Set(result.error.issues.map((issue) => renderFault(issue, present)))]);
  return result.data;
}

// zod's own messages may quote the input; these never do.
function renderFault(issue: z.core.$ZodIssue, present: Record<string, unknown>): string {
  const [name, ...within] = issue.path.map(String) as [string, ...string[]];
  if (!(name in present)) return `${name} is missing: ${describeVariable(name)}`;
  // What is in the value has names that are a part of it.
  if (within.length > 0) return `${name} is not valid: ${describeVariable(name)}`;
  if (issue.code === "too_small" || issue.code === "too_big") return `${name}: ${issue.message}`;
  if (["invalid_format", "custom"].includes(issue.code) && issue.message.startsWith("must"))
    return `${name} ${issue.message}`;
  return `${name} is not valid: ${describeVariable(name)}`;
}

function describeVariable(name: string): string {
  const field = environmentSchema.shape[name as keyof typeof environmentSchema.shape];
  return field?.description ?? descriptionInside(field) ?? "see .env.example";
}

/** The description of a schema, also when `.default()` or `.optional()` was put around it. */
export function descriptionInside(schema: z.ZodType | undefined): string | undefined {
  if (!schema) return undefined;
  if (schema.description) return schema.description;
  const inner =
    (schema.def as { innerType?: z.ZodType; in?: z.ZodType }).innerType ?? (schema.def as { in?: z.ZodType }).in;
  return descriptionInside(inner);
}
