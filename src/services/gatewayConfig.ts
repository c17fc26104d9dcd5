import type { Config } from "../config.ts";

/** An agent as the gateway's configuration names it. Nothing a person typed: the gateway fills in `${NAME}` everywhere. */
export interface ConfiguredAgent {
  agentId: string;
  model: string;
}

/** What else the configuration says: settings of Reef, and where files are (clients/workspaces.ts). */
export interface GatewaySettings {
  config: Pick<Config, "OPENAI_BASE_URL" | "CANARY_MODEL_URL" | "PRICES" | "GATEWAY_MAX_RUNS" | "TURN_TOTAL_MS">;
  workspaces: { workspaceOf(agentId: string): string; logFile: string };
}

const DENIED_TOOLS = [
  "group:runtime",
  "group:sessions",
  "group:web",
  "group:ui",
  "group:automation",
  "group:messaging",
  "group:nodes",
  "group:agents",
  "group:media",
  "group:memory",
  "group:plugins",
  "apply_patch",
];

/** The gateway refuses a configuration without agents, and the deletion of its only one. Nobody ever talks to this one. */
export const PLACEHOLDER_AGENT = "reef_placeholder";

/**
 * The isolation canary's pair (services/canary.ts): the operator's own, configured only while it runs. Their model is a
 * script of ours on a provider that nobody else's agent has, and that is not even there between two runs.
 */
export const CANARY = { attacker: "reef_canary_a", neighbour: "reef_canary_b" } as const;
export const CANARY_AGENTS: ConfiguredAgent[] = Object.values(CANARY).map((agentId) => ({
  agentId,
  model: "canary/script",
}));
/** Not a secret: it keeps the real one from being sent there. */
export const CANARY_MODEL_KEY = "reef-canary";

const OFF = { enabled: false };

/**
 * Renders the whole configuration of an OpenClaw gateway (2026.9.3): the same bytes for the same state. Everything is
 * off but chat with three file tools that are held to the agent's own workspace. The port is not in it: it is given
 * on the command line. Secrets stay in the gateway's environment (`${NAME}` is filled in by the gateway).
 */
export function renderGatewayConfig(settings: GatewaySettings, agents: ConfiguredAgent[]): string {
  const placeholder = { agentId: PLACEHOLDER_AGENT, model: "openai-custom/gpt-5-nano" };
  const sorted = agents.toSorted((a, b) => (a.agentId < b.agentId ? -1 : 1));
  const entries = [placeholder, ...sorted].map(({ agentId, model }) => [
    agentId,
    // No fallbacks: a canary whose script is away must not ask the real, paid provider.
    {
      name: "Assistant",
      workspace: settings.workspaces.workspaceOf(agentId),
      model: CANARY_AGENTS.some((canary) => canary.agentId === agentId) ? { primary: model, fallbacks: [] } : model,
    },
  ]);
  const config = {
    gateway: renderServer(),
    models: {
      mode: "replace",
      catalogRefresh: OFF,
      providers: { canary: renderCanary(settings.config), "openai-custom": renderProvider(settings.config) },
    },
    agents: { ownership: "explicit", defaults: renderDefaults(settings.config), entries: Object.fromEntries(entries) },
    tools: renderTools(),
    memory: { search: OFF },
    // "enforce" would prune conversations that rest for a month.
    session: { dmScope: "main", maintenance: { mode: "warn" } },
    skills: { allowBundled: [], load: { watch: false } },
    plugins: OFF,
    cron: OFF,
    update: { checkOnStart: false, auto: OFF },
    telemetry: OFF,
    discovery: { mdns: { mode: "off" } },
    browser: OFF,
    commands: renderCommands(),
    messages: { queue: { mode: "followup" } },
    // Without a file of its own it writes to a folder that all gateways of the machine share.
    logging: {
      level: "warn",
      consoleLevel: "warn",
      file: settings.workspaces.logFile,
      maxFileBytes: 10_000_000,
      // A tool that fails is told with its arguments and the file's content (2026.9.3). What is longer than 17 characters
      // keeps its ends, so it is taken in pieces.
      redactPatterns: ["/(?<= failed: [\\s\\S]*)[\\s\\S]{1,17}/g"],
    },
  };
  return `${JSON.stringify(config, null, 2)}\n`;
}

function renderServer() {
  return {
    mode: "local",
    bind: "loopback",
    auth: { mode: "token", token: "${OPENCLAW_GATEWAY_TOKEN}" },
    reload: { mode: "hybrid" },
    controlUi: OFF,
    terminal: OFF,
    http: { endpoints: { chatCompletions: OFF, responses: OFF } },
    nodes: { allowSkills: false, pluginTools: OFF },
  };
}

function renderProvider({ OPENAI_BASE_URL, PRICES }: GatewaySettings["config"]) {
  const price = PRICES["gpt-5-nano"];
  return {
    baseUrl: OPENAI_BASE_URL,
    apiKey: "${OPENAI_API_KEY}",
    api: "openai-completions",
    models: [
      {
        id: "gpt-5-nano",
        name: "GPT-5 nano",
        reasoning: false,
        input: ["text", "image"],
        contextWindow: 128000,
        maxTokens: 8192,
        // USD per million tokens: what the gateway then says an answer cost.
        cost: {
          input: price?.input ?? 0,
          output: price?.output ?? 0,
          cacheRead: price?.cachedInput ?? price?.input ?? 0,
          cacheWrite: 0,
        },
      },
    ],
  };
}

function renderCanary({ CANARY_MODEL_URL }: GatewaySettings["config"]) {
  const cost = { input: 0, output: 0, cacheRead: 0, cacheWrite: 0 };
  const limits = { reasoning: false, input: ["text"], contextWindow: 128000, maxTokens: 8192 };
  return {
    baseUrl: `${new URL(CANARY_MODEL_URL).origin}/v1`,
    apiKey: CANARY_MODEL_KEY,
    api: "openai-completions",
    models: [{ id: "script", name: "Script", ...limits, cost }],
  };
}

function renderDefaults(config: GatewaySettings["config"]) {
  return {
    model: "openai-custom/gpt-5-nano",
    skipBootstrap: true,
    skills: [],
    // Named for one agent: else the gateway keeps a (sleeping) timer row for each, and a reload in which writing one of
    // them fails makes the whole gateway restart itself (2026.9.3).
    heartbeat: { every: "0m", agentId: PLACEHOLDER_AGENT },
    maxConcurrent: Math.max(64, config.GATEWAY_MAX_RUNS),
    utilityModel: "",
    sandbox: { mode: "off" },
    // Only a net: the turn's own budget ends it first and says so to the person.
    timeoutSeconds: Math.ceil(config.TURN_TOTAL_MS / 1000) + 30,
  };
}

function renderTools() {
  return {
    deny: DENIED_TOOLS,
    allow: ["read", "write", "edit"],
    fs: { workspaceOnly: true },
    toolSearch: false,
    codeMode: false,
    updatePlan: false,
    elevated: OFF,
    agentToAgent: OFF,
  };
}

function renderCommands() {
  return {
    restart: false,
    text: false,
    native: false,
    nativeSkills: false,
    bash: false,
    config: false,
    mcp: false,
    plugins: false,
    debug: false,
  };
}
