import type { GatewayRuns } from "./gatewayRuns.ts";
import { agentOf, unavailable, type GatewayStore } from "./gatewayStore.ts";

const defaults = {
  modelProvider: "openai-custom",
  model: "gpt-5-nano",
  contextTokens: 128000,
  thinkingDefault: "off",
  modelSelectionTarget: "session",
};

/** The payload of `chat.history`: the newest `limit` rows before `offset`, oldest first. Throws for a deleted agent. */
export function chatHistory(
  parts: { store: GatewayStore; runs: GatewayRuns },
  params: { sessionKey: string; limit?: number; offset?: number },
): Record<string, unknown> {
  const { sessionKey, limit = 200, offset } = params;
  const agentId = agentOf(sessionKey) ?? "main";
  if (parts.store.isDeleted(agentId)) {
    throw new Error(unavailable(agentId));
  }
  const session = parts.store.find(sessionKey);
  const rows = session?.rows ?? [];
  const end = Math.max(0, rows.length - (offset ?? 0));
  const messages = rows.slice(Math.max(0, end - limit), end);
  const hasMore = end - limit > 0;
  const active = parts.runs.runsOf(sessionKey);
  const current = active[0];
  const cursor = session
    ? { deltaCursor: btoa(JSON.stringify({ agentId, lastSeq: session.nextSeq - 1, version: 1 })) }
    : {};
  return {
    sessionKey,
    ...(session ? { sessionId: session.sessionId } : {}),
    messages,
    pendingInputs: { items: [], total: 0 },
    ...(offset === undefined ? cursor : { offset }),
    ...(hasMore ? { nextOffset: (offset ?? 0) + messages.length } : {}),
    hasMore,
    totalMessages: rows.length,
    defaults,
    sessionInfo: {
      key: sessionKey,
      kind: "direct",
      agentId,
      isMain: false,
      updatedAt: session?.updatedAt ?? null,
      ...(session ? { sessionId: session.sessionId, createdAt: session.createdAt, abortedLastRun: false } : {}),
      ...(session && session.status !== "idle" ? { status: session.status } : {}),
      hasActiveRun: active.length > 0,
      activeRunIds: active.map((one) => one.runId),
      activeLeafEntryId: rows.at(-1)?.__openclaw.id ?? null,
    },
    thinkingLevel: "off",
    ...(current
      ? { inFlightRun: { runId: current.runId, text: current.run.text, startedAt: current.run.startedAt } }
      : {}),
  };
}
