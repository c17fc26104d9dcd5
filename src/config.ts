import { z } from "zod";

/** How an environment variable is read, and the line that documents it in `.env.example`. */
const text = (description: string) => z.string().trim().min(1).describe(description);
const url = (description: string, protocols: RegExp) =>
  z.url({ protocol: protocols }).refine(isDecodable, "must be percent-encoded").describe(description);
const integer = (description: string, min: number, max: number) =>
  z.coerce.number().int().min(min).max(max).describe(description);
const flag = (description: string) =>
  z
    .enum(["true", "false", "1", "0"])
    .transform((value) => value === "true" || value === "1")
    .describe(description);

// The clients decode user name and password, and would throw a sentence that names no variable.
function isDecodable(value: string): boolean {
  try {
    return decodeURIComponent(value) !== "";
  } catch {
    return false;
  }
}

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
  OPENAI_BASE_URL: url("The model provider that the gateway calls", /^https?$/).default("https://api.openai.com/v1"),
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
  GATEWAY_MAX_RUNS: true,
  TURN_TOTAL_MS: true,
});

export function loadGatewayConfig(env: Record<string, string | undefined>): z.output<typeof gatewayEnvironment> {
  return parse(gatewayEnvironment, env);
}

/** Reads the environment once. Pure: an empty variable counts as absent. Throws ConfigError with all faults at once. */
export function loadConfig(env: Record<string, string | undefined>): Config {
  const { REVEAL_EMAIL_TAKEN, ...rest } = parse(environmentSchema, env);
  return { ...rest, REVEAL_EMAIL_TAKEN: REVEAL_EMAIL_TAKEN ?? rest.NODE_ENV === "development" };
}

function parse<S extends z.ZodType>(schema: S, env: Record<string, string | undefined>): z.output<S> {
  const present = Object.fromEntries(
    Object.entries(env).filter(([, value]) => value !== undefined && value.trim() !== ""),
  );
  const result = schema.safeParse(present);
  if (!result.success) throw new ConfigError(result.error.issues.map((issue) => renderFault(issue, present)));
  return result.data;
}

// zod's own messages may quote the input; these never do.
function renderFault(issue: z.core.$ZodIssue, present: Record<string, unknown>): string {
  const name = issue.path.join(".");
  if (!(name in present)) return `${name} is missing: ${describeVariable(name)}`;
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
