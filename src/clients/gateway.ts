import type { Log } from "../lib/log.ts";
import { openGatewayConnection, type GatewayHello } from "./gatewayConnection.ts";
import {
  agentsSchema,
  configSchema,
  historySchema,
  readRunEvent,
  sendAnswerSchema,
  type HistoryRow,
  type RunEvent,
} from "./gatewayFrames.ts";
import { z } from "zod";

/** Any suffix but `main`, which can't be deleted. Every assistant has one conversation. */
const SESSION_SUFFIX = "app";
/** The most that the gateway gives of one message; without asking it cuts at 8,000. */
const HISTORY_TEXT_CHARACTERS = 500_000;
const DELETE_MS = 120_000;
const WORD_JOINER = "\u2060";

export interface GatewayListeners {
  /** Both connections are up, perhaps to another process than before (`bootId` tells). */
  onReady?: (hello: GatewayHello) => void;
  onLost?: () => void;
  onRun?: (event: RunEvent) => void;
  /** The gateway has read its configuration file again. */
  onConfigChanged?: () => void;
}

export interface GatewayClient {
  id: string;
  isReady(): boolean;
  hello(): GatewayHello | null;
  listen(listeners: GatewayListeners): void;
  /**
   * Hands a message to an agent. `key` is the turn id and becomes the run id; the same key again never runs twice in
   * one gateway process: `started` now, still `running`, or `finished`.
   */
  sendMessage(input: { agentId: string; key: string; text: string }): Promise<"started" | "running" | "finished">;
  abortRun(input: { agentId: string; key: string }): Promise<void>;
  /** The newest rows of the conversation, oldest first. */
  readHistory(input: { agentId: string; limit: number }): Promise<HistoryRow[]>;
  listAgents(): Promise<string[]>;
  /** Closes the agent's files and marks its id as dead for ever; an unknown id is no error. */
  deleteAgent(agentId: string): Promise<void>;
  /** Begins the agent's conversation anew: what runs is aborted, what was said is gone. */
  forgetConversation(agentId: string): Promise<void>;
  readConfigStatus(): Promise<{ valid: boolean; applied: boolean; hash: string; issues: string[] }>;
  close(): void;
}

/**
 * The client of one gateway: two connections, since users' text must never travel on one that may administrate
 * (a leading `/` is a command there). Chat has read and write, administration has no users' text.
 */
export function createGatewayClient(options: { id: string; url: string; token: string; log: Log }): GatewayClient {
  const listeners: GatewayListeners[] = [];
  let hello: GatewayHello | null = null;
  const isReady = () => chat.isReady() && admin.isReady();
  const shared = {
    url: options.url,
    token: options.token,
    log: options.log.child({ gateway: options.id }),
    onHello: (from: GatewayHello) => {
      hello = from;
      if (isReady()) for (const listener of listeners) listener.onReady?.(from);
    },
    onLost: () => {
      for (const listener of listeners) listener.onLost?.();
    },
  };
  const chat = openGatewayConnection({
    ...shared,
    name: "chat",
    scopes: ["operator.read", "operator.write"],
    caps: [],
    onEvent: (event, payload) => {
      if (event === "config.changed") for (const listener of listeners) listener.onConfigChanged?.();
      const run = readRunEvent(event, payload);
      if (run) for (const listener of listeners) listener.onRun?.(run);
    },
  });
  const admin = openGatewayConnection({
    ...shared,
    name: "admin",
    scopes: ["operator.read", "operator.admin"],
    // Else the gateway sends every text a second time, only to be thrown away here.
    caps: ["session-scoped-events"],
    onEvent: () => undefined,
  });

  return {
    id: options.id,
    isReady,
    hello: () => hello,
    listen: (added) => void listeners.push(added),
    async sendMessage({ agentId, key, text }) {
      const params = { sessionKey: sessionKeyOf(agentId), message: neutralizeCommands(text), idempotencyKey: key };
      const answer = await chat.call("chat.send", params, sendAnswerSchema);
      if (answer.status === "started") return "started";
      return answer.status === "in_flight" ? "running" : "finished";
    },
    async abortRun({ agentId, key }) {
      await chat.call("chat.abort", { sessionKey: sessionKeyOf(agentId), runId: key }, z.unknown());
    },
    async readHistory({ agentId, limit }) {
      return (
        await chat.call(
          "chat.history",
          { sessionKey: sessionKeyOf(agentId), limit, maxChars: HISTORY_TEXT_CHARACTERS },
          historySchema,
        )
      ).messages;
    },
    async listAgents() {
      return (await admin.call("agents.list", {}, agentsSchema)).agents.map((agent) => agent.id);
    },
    async deleteAgent(agentId) {
      // Nothing else may change the configuration while it works, so its end is waited for, however busy it is.
      await admin.call("agents.delete", { agentId, deleteFiles: true }, z.unknown(), DELETE_MS);
    },
    async forgetConversation(agentId) {
      const key = sessionKeyOf(agentId);
      // One whose answer is still being tried is waited for, which may take long all the same.
      await chat.call("chat.abort", { sessionKey: key }, z.unknown());
      await admin.call("sessions.delete", { key, deleteTranscript: true }, z.unknown(), DELETE_MS);
    },
    async readConfigStatus() {
      const config = await admin.call("config.get", {}, configSchema);
      return {
        valid: config.valid,
        applied: config.configRevisionHash !== undefined && config.configRevisionHash === config.appliedConfigHash,
        hash: config.appliedConfigHash ?? "",
        issues: config.issues.map((issue) => `${issue.path}: ${issue.message}`),
      };
    },
    close() {
      chat.close();
      admin.close();
    },
  };
}

function sessionKeyOf(agentId: string): string {
  return `agent:${agentId}:${SESSION_SUFFIX}`;
}

/**
 * The gateway reads chat text as a command surface: a leading or free-standing `/word` is a command, and whole messages
 * such as "stop" abort. An invisible U+2060 in front, and before each `/` at a line start or after white space, makes
 * all of it plain text (openclaw 2026.9.3; proved in test/gateway/commands.test.ts).
 */
export function neutralizeCommands(text: string): string {
  return WORD_JOINER + text.replace(/(^|\s)\//gm, `$1${WORD_JOINER}/`);
}
