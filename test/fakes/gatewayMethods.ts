import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { deleteAgent, listAgents } from "./gatewayAgents.ts";
import type { GatewayConfig } from "./gatewayConfig.ts";
import { chatHistory } from "./gatewayHistory.ts";
import { textContent } from "./gatewayModel.ts";
import type { GatewayRuns, Reply, RpcError } from "./gatewayRuns.ts";
import type { GatewayStore } from "./gatewayStore.ts";

export interface MethodParts {
  dir: string;
  config: GatewayConfig;
  store: GatewayStore;
  runs: GatewayRuns;
  unfinishedDeletions: Map<string, string>;
}

export type Scope = "operator.read" | "operator.write" | "operator.admin";
type Method = { scope: Scope; required: string[]; optional: string[] };

export const methods: Record<string, Method> = {
  health: { scope: "operator.read", required: [], optional: ["probe"] },
  "chat.history": {
    scope: "operator.read",
    required: ["sessionKey"],
    optional: ["limit", "offset", "cursor", "maxChars", "agentId"],
  },
  "chat.send": {
    scope: "operator.write",
    required: ["sessionKey", "message", "idempotencyKey"],
    optional: ["attachments", "timeoutMs", "thinking", "deliver", "agentId", "sessionId"],
  },
  "chat.abort": { scope: "operator.write", required: ["sessionKey"], optional: ["runId", "agentId"] },
  "agents.list": { scope: "operator.read", required: [], optional: [] },
  "agents.delete": { scope: "operator.admin", required: ["agentId"], optional: ["deleteFiles"] },
  "config.get": { scope: "operator.read", required: [], optional: [] },
  "sessions.messages.subscribe": { scope: "operator.read", required: ["key"], optional: ["agentId"] },
  "sessions.messages.unsubscribe": { scope: "operator.read", required: ["key"], optional: ["agentId"] },
  "sessions.reset": { scope: "operator.admin", required: ["key"], optional: ["agentId", "reason"] },
  "sessions.delete": { scope: "operator.admin", required: ["key"], optional: ["agentId", "deleteTranscript"] },
};

const refused = (code: string, message: string, details?: Record<string, unknown>): RpcError => ({
  code,
  message,
  ...(details ? { details } : {}),
});

/** Why a request is refused before its method runs: scope, unknown method, parameters; null when it may run. */
export function refusal(method: string, params: Record<string, unknown>, scopes: readonly string[]): RpcError | null {
  const known = methods[method];
  const needed = known?.scope ?? "operator.admin";
  const granted =
    scopes.includes("operator.admin") ||
    scopes.includes(needed) ||
    (needed === "operator.read" && scopes.includes("operator.write"));
  if (!granted) {
    const details = { code: "MISSING_SCOPE", missingScope: needed, requiredScopes: [needed] };
    return refused("FORBIDDEN", `missing scope: ${needed}`, details);
  }
  if (!known) return refused("INVALID_REQUEST", `unknown method: ${method}`);
  const wrong = wrongParams(known, params);
  return wrong ? refused("INVALID_REQUEST", `invalid ${method} params: ${wrong}`) : null;
}

function wrongParams(method: Method, params: Record<string, unknown>): string | null {
  const { required, optional } = method;
  const missing = required.find((name) => !(name in params));
  if (missing) return `must have required property '${missing}'`;
  const unexpected = Object.keys(params).find((name) => !required.includes(name) && !optional.includes(name));
  if (unexpected) return `at root: unexpected property '${unexpected}'`;
  const untyped = required.find((name) => typeof params[name] !== "string");
  if (untyped) return `at /${untyped}: must be string`;
  const { limit, offset } = params;
  if (limit !== undefined && !(Number.isInteger(limit) && Number(limit) >= 1)) return "at /limit: must be >= 1";
  if (typeof limit === "number" && limit > 1000) return "at /limit: must be <= 1000";
  if (offset !== undefined && !(Number.isInteger(offset) && Number(offset) >= 0)) return "at /offset: must be >= 0";
  return null;
}

/** Runs every method but `chat.send`. `subscriptions` is the calling connection's own set of session keys. */
export function call(
  parts: MethodParts,
  method: string,
  params: Record<string, unknown>,
  subscriptions: Set<string>,
): Reply {
  const { store, runs, config } = parts;
  const word = (name: string) => (typeof params[name] === "string" ? params[name] : "");
  const count = (name: string) => (typeof params[name] === "number" ? { [name]: params[name] } : {});
  const key = word("key");
  const sessionKey = word("sessionKey");
  const ok = (payload: unknown): Reply => ({ ok: true, payload });
  switch (method) {
    case "chat.history":
      return ok(chatHistory({ store, runs }, { sessionKey, ...count("limit"), ...count("offset") }));
    case "chat.abort":
      return runs.abort({ sessionKey, ...(params["runId"] === undefined ? {} : { runId: word("runId") }) });
    case "agents.list":
      return ok(listAgents(config));
    case "agents.delete": {
      const where = { dir: parts.dir, config, store, runs, unfinished: parts.unfinishedDeletions };
      return deleteAgent(where, word("agentId").toLowerCase(), params["deleteFiles"] !== false);
    }
    case "config.get":
      return ok(config.get());
    case "sessions.messages.subscribe":
      subscriptions.add(key);
      return ok({ subscribed: true, key });
    case "sessions.messages.unsubscribe":
      subscriptions.delete(key);
      return ok({ subscribed: false, key });
    case "sessions.reset":
      return ok(resetSession(parts, key));
    case "sessions.delete":
      return ok(deleteSession(parts, key));
    default:
      return ok({ ok: true, ts: Date.now() });
  }
}

function resetSession({ store, runs }: MethodParts, key: string): Record<string, unknown> {
  runs.abort({ sessionKey: key });
  const session = store.obtain(key);
  const had = session.rows.length > 0;
  session.rows = [];
  session.status = "idle";
  if (had) store.append(session, { role: "system", content: textContent("Reset"), kind: "reset" });
  store.save(session);
  const entry = {
    sessionId: session.sessionId,
    updatedAt: session.updatedAt,
    createdAt: session.createdAt,
    systemSent: false,
  };
  return { ok: true, key, entry, resolved: { modelProvider: "openai-custom", model: "gpt-5-nano" } };
}

// The real gateway keeps a deleted session's text as an archive beside the database: personal data, too.
function deleteSession({ store, runs }: MethodParts, key: string): Record<string, unknown> {
  runs.abort({ sessionKey: key });
  const session = store.find(key);
  if (!session) return { ok: true, key, deleted: false, archived: [] };
  const folder = join(dirname(dirname(store.databaseFile(key.split(":")[1] ?? ""))), "sessions");
  mkdirSync(folder, { recursive: true });
  const archive = join(
    folder,
    `${session.sessionId}.jsonl.deleted.${new Date().toISOString().replaceAll(":", "-")}.zst`,
  );
  writeFileSync(archive, session.rows.map((row) => JSON.stringify(row)).join("\n"));
  store.remove(key);
  return { ok: true, key, deleted: true, archived: [archive] };
}
