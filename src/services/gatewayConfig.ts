/** An agent as the gateway's configuration names it. Nothing a person typed: the gateway fills in `${NAME}` everywhere. */
export interface ConfiguredAgent {
  agentId: string;
  model: string;
  workspace: string;
}

export interface GatewaySettings {
  providerUrl: string;
  maxRuns: number;
  turnTotalMs: number;
  placeholderWorkspace: string;
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

const OFF = { enabled: false };

/**
 * Renders the whole configuration of an OpenClaw gateway (2026.9.3): the same bytes for the same state. Everything is
 * off but chat with three file tools that are held to the agent's own workspace. The port is not in it: it is given
 * on the command line. Secrets stay in the gateway's environment (`${NAME}` is filled in by the gateway).
 */
export function renderGatewayConfig(agents: ConfiguredAgent[], settings: GatewaySettings): string {
  const placeholder = {
    agentId: PLACEHOLDER_AGENT,
    model: "openai-custom/gpt-5-nano",
    workspace: settings.placeholderWorkspace,
  };
  const sorted = agents.toSorted((a, b) => (a.agentId < b.agentId ? -1 : 1));
  const entries = [placeholder, ...sorted].map((agent) => [agent.agentId, renderAgent(agent)]);
  const config = {
    gateway: renderServer(),
    models: {
      mode: "replace",
      catalogRefresh: OFF,
      providers: { "openai-custom": renderProvider(settings.providerUrl) },
    },
    agents: { ownership: "explicit", defaults: renderDefaults(settings), entries: Object.fromEntries(entries) },
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
    logging: { level: "warn", consoleLevel: "warn" },
  };
  return `${JSON.stringify(config, null, 2)}\n`;
}

function renderAgent(agent: ConfiguredAgent) {
  return { name: "Assistant", workspace: agent.workspace, model: agent.model };
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

function renderProvider(baseUrl: string) {
  return {
    baseUrl,
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
        // USD per million tokens.
        cost: { input: 0.05, output: 0.4, cacheRead: 0.005, cacheWrite: 0 },
      },
    ],
  };
}

function renderDefaults(settings: GatewaySettings) {
  return {
    model: "openai-custom/gpt-5-nano",
    skipBootstrap: true,
    skills: [],
    heartbeat: { every: "0m" },
    maxConcurrent: Math.max(64, settings.maxRuns),
    utilityModel: "",
    sandbox: { mode: "off" },
    // Only a net: the turn's own budget ends it first and says so to the person.
    timeoutSeconds: Math.ceil(settings.turnTotalMs / 1000) + 30,
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
