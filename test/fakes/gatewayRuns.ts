import { interpret } from "./gatewayCommands.ts";
import { injected, textContent, usageOf } from "./gatewayModel.ts";
import { emitRow, Run, type Emit, type RunEnd } from "./gatewayRun.ts";
import { agentOf, unavailable, type GatewayStore, type StoredSession } from "./gatewayStore.ts";
import type { FakeAnswer, FakeRow, FakeSendOutcome, FakeTurn } from "./gatewayTypes.ts";

export type RpcError = {
  code: string;
  message: string;
  retryable?: boolean;
  retryAfterMs?: number;
  details?: Record<string, unknown>;
};
export type Reply = { ok: true; payload: unknown } | { ok: false; error: RpcError; payload?: unknown };
export type SendParams = { sessionKey: string; message: string; idempotencyKey: string };
type Sent = { text: string; end: RunEnd | null; endedAt: number };
type Live = { run: Run; session: StoredSession; runId: string };

export interface RunsOptions {
  store: GatewayStore;
  emit: Emit;
  configured: (agentId: string) => boolean;
  answer: () => FakeAnswer;
  onModelCall: (turn: FakeTurn) => void;
}

const plain = (text: string) => text.replaceAll("\u2060", "");
const invalid = (message: string, details?: Record<string, unknown>): Reply => ({
  ok: false,
  error: { code: "INVALID_REQUEST", message, ...(details ? { details } : {}) },
});
const conflict = invalid(
  "This message ID was already used for different input. Check the conversation history and use a new message ID to send again.",
  { reason: "chat-request-conflict" },
);
const recoveryText =
  "[System] Your previous turn was interrupted by a gateway restart while OpenClaw was waiting on tool/model work. Continue " +
  "from the existing transcript and finish the interrupted response.";

function rowText(row: FakeRow): string {
  if (typeof row.content === "string") return plain(row.content);
  return row.content.map((part) => (typeof part["text"] === "string" ? part["text"] : "")).join("");
}

/** Every run of the process: what `chat.send` starts, steers or refuses, and what ends it. */
export class GatewayRuns {
  draining = false;
  private dead = false;
  private readonly sent = new Map<string, Sent>();
  private readonly live = new Map<string, Live>();
  private readonly waiting = new Map<string, { key: string; message: string }[]>();
  private idle: (() => void)[] = [];

  constructor(private readonly options: RunsOptions) {}

  running(): string[] {
    return [...this.live.keys()];
  }

  runsOf(sessionKey: string): { runId: string; run: Run }[] {
    return [...this.live.values()].filter((one) => one.session.key === sessionKey);
  }

  /** Answers a `chat.send`; `start` begins the run and is called after the response went out. */
  send(params: SendParams): { reply: Reply; outcome: FakeSendOutcome; start?: () => void } {
    const { sessionKey, message, idempotencyKey: key } = params;
    const agentId = agentOf(sessionKey);
    if (this.draining) return { reply: restarting, outcome: "refused" };
    if (!agentId || !this.options.configured(agentId))
      return { reply: invalid(`Agent "${agentId}" no longer exists in configuration`), outcome: "refused" };
    const meant = interpret(message);
    if (meant.kind === "stop") return { reply: this.abort({ sessionKey }, "stop-command"), outcome: "stop_word" };
    const again = this.repeated(params);
    if (again) return again;
    this.sent.set(key, { text: message, end: null, endedAt: 0 });
    const reply: Reply = { ok: true, payload: { runId: key, status: "started" } };
    return { reply, outcome: "started", start: () => this.begin(params) };
  }

  /** Aborts the run with that id (whatever the session key says, as the real one does), or all of the session. */
  abort(target: { sessionKey: string; runId?: string }, origin: "rpc" | "stop-command" = "rpc"): Reply {
    const { sessionKey, runId } = target;
    const runs =
      runId === undefined ? this.runsOf(sessionKey) : [this.live.get(runId)].filter((one) => one !== undefined);
    for (const one of runs) this.waiting.delete(this.live.get(one.runId)!.session.key);
    for (const one of runs) one.run.abort(origin);
    return { ok: true, payload: { ok: true, aborted: runs.length > 0, runIds: runs.map((one) => one.runId) } };
  }

  /** Takes up the runs that the last process left unfinished, or only marks them as over. */
  recover(agentId: string, resume: boolean): void {
    for (const session of this.options.store.sessionsOf(agentId)) {
      if (session.activeRunId === undefined) continue;
      delete session.activeRunId;
      session.status = "failed";
      this.options.store.save(session);
      if (!resume) continue;
      const runId = crypto.randomUUID();
      const source = {
        kind: "internal_system",
        sourceSessionKey: session.key,
        sourceTool: "main_session_restart_recovery",
      };
      this.addUserRow(session, runId, recoveryText, source);
      void this.play(session, runId, recoveryText);
    }
  }

  /** Resolves when nothing runs, or after `ms`. */
  async drained(ms: number): Promise<void> {
    if (this.live.size === 0) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, ms);
    this.idle.push(resolve);
    await promise;
    clearTimeout(timer);
  }

  busy(agentId: string): boolean {
    return [...this.live.values()].some((one) => agentOf(one.session.key) === agentId);
  }

  /** All runs die without an event, for good: a restarted process makes a new object. */
  kill(): void {
    this.dead = true;
    for (const one of this.live.values()) one.run.kill();
    this.live.clear();
    this.waiting.clear();
  }

  private repeated(params: SendParams): { reply: Reply; outcome: FakeSendOutcome; start?: () => void } | null {
    const { sessionKey, message, idempotencyKey: key } = params;
    const seen = this.sent.get(key);
    if (!seen) {
      // A restarted process knows the keys from the history alone.
      const row = this.options.store.find(sessionKey)?.rows.find((one) => one.idempotencyKey === `${key}:user`);
      return row && row.content !== message ? { reply: conflict, outcome: "conflict" } : null;
    }
    if (seen.text !== message) return { reply: conflict, outcome: "conflict" };
    if (!seen.end) return { reply: { ok: true, payload: { runId: key, status: "in_flight" } }, outcome: "in_flight" };
    const { how, summary } = seen.end;
    const payload = { runId: key, status: how, ...(summary === undefined ? {} : { summary }) };
    if (how === "error") {
      return {
        reply: { ok: false, payload, error: { code: "UNAVAILABLE", message: summary ?? "" } },
        outcome: "error",
      };
    }
    return {
      reply: { ok: true, payload: how === "ok" ? payload : { ...payload, endedAt: seen.endedAt } },
      outcome: how,
    };
  }

  private begin(params: SendParams): void {
    const { sessionKey, message, idempotencyKey: key } = params;
    const { store, emit } = this.options;
    if (store.isDeleted(agentOf(sessionKey)!)) {
      const errorMessage = `Error: ${unavailable(agentOf(sessionKey)!)}`;
      this.settle(key, { how: "error", summary: errorMessage });
      emit("chat", { runId: key, sessionKey, seq: 1, state: "error", errorMessage }, sessionKey);
      return;
    }
    const session = store.obtain(sessionKey);
    if (this.runsOf(sessionKey).length > 0) {
      this.waiting.set(sessionKey, [...(this.waiting.get(sessionKey) ?? []), { key, message }]);
      this.settle(key, { how: "ok" });
      emit("chat", { runId: key, sessionKey, seq: 1, state: "final" }, sessionKey);
      return;
    }
    const meant = interpret(message);
    if (meant.kind === "command") {
      this.addUserRow(session, key, message);
      this.commandReply(session, key, meant.reply, true);
      this.settle(key, { how: "ok" });
    } else if (meant.kind === "text") this.runText(session, key, message, meant);
  }

  private runText(session: StoredSession, key: string, message: string, meant: { text: string; cut: string[] }): void {
    const users = session.rows.filter((row) => row.role === "user");
    const at = users.findIndex((row) => row.idempotencyKey === `${key}:user`);
    if (at >= 0 && at < users.length - 1) {
      // The key's row lies behind a later one: the real gateway starts a run that fails at once.
      void this.play(session, key, "", { failed: true });
      return;
    }
    if (at < 0) this.addUserRow(session, key, message);
    const done = this.play(session, key, plain(meant.text));
    if (meant.cut.length > 0)
      void done.then(() => meant.cut.forEach((reply) => this.commandReply(session, key, reply, false)));
  }

  private play(
    session: StoredSession,
    runId: string,
    text: string,
    options: { failed?: boolean; silent?: boolean } = {},
  ): Promise<void> {
    const { store, emit } = this.options;
    const ended = (end: RunEnd | null) => this.over(session, runId, end);
    const run = new Run({ store, emit, session, runId, silent: options.silent ?? false, onEnd: ended });
    this.live.set(runId, { run, session, runId });
    session.activeRunId = runId;
    session.status = "running";
    store.save(session);
    const turn = { agentId: agentOf(session.key)!, sessionKey: session.key, runId, text, history: this.said(session) };
    if (options.failed) return run.play(failingAnswer(), text);
    this.options.onModelCall(turn);
    return run.play(this.options.answer()(turn), text);
  }

  private over(session: StoredSession, runId: string, end: RunEnd | null): void {
    this.live.delete(runId);
    if (end) this.settle(runId, end);
    const next = end?.how === "timeout" ? undefined : this.waiting.get(session.key)?.shift();
    // What was steered in is answered afterwards by a run with an id of its own.
    if (next) queueMicrotask(() => this.followUp(session, next));
    else if (this.live.size === 0) for (const resolve of this.idle.splice(0)) resolve();
  }

  private followUp(session: StoredSession, next: { key: string; message: string }): void {
    if (this.dead) return;
    const runId = crypto.randomUUID();
    this.addUserRow(session, next.key, next.message);
    const done = this.play(session, runId, plain(next.message), { silent: true });
    void done.then(() => {
      const last = session.rows.at(-1);
      if (last?.__openclaw.runId === runId) this.emitFinal(session, runId, rowText(last), { text: rowText(last) });
    });
  }

  private said(session: StoredSession): FakeTurn["history"] {
    // Partial texts of aborted runs and other injected rows are not shown to the model.
    return session.rows
      .filter((row) => (row.role === "user" || row.role === "assistant") && row.model !== injected.model)
      .map((row) => ({ role: row.role === "user" ? ("user" as const) : ("assistant" as const), text: rowText(row) }))
      .filter((row) => row.text !== "");
  }

  private settle(key: string, end: RunEnd): void {
    const seen = this.sent.get(key);
    if (seen) this.sent.set(key, { ...seen, end, endedAt: Date.now() });
  }

  private addUserRow(session: StoredSession, key: string, content: string, provenance?: FakeRow["provenance"]): void {
    const row = {
      role: "user" as const,
      content,
      idempotencyKey: `${key}:user`,
      ...(provenance ? { provenance } : {}),
    };
    emitRow(this.options.emit, session, this.options.store.append(session, row));
  }

  private commandReply(session: StoredSession, key: string, text: string, keep: boolean): void {
    const row = {
      role: "assistant" as const,
      content: textContent(text),
      stopReason: "stop",
      usage: usageOf(0, 0),
      ...injected,
    };
    if (keep) this.options.store.append(session, { ...row, idempotencyKey: key });
    this.emitFinal(session, key, text, keep ? { ...injected, idempotencyKey: key } : { text });
  }

  private emitFinal(session: StoredSession, runId: string, text: string, more: Record<string, unknown>): void {
    const message = {
      role: "assistant",
      content: textContent(text),
      timestamp: Date.now(),
      stopReason: "stop",
      usage: usageOf(0, 0),
    };
    const about = { runId, sessionKey: session.key, seq: 1, state: "final" };
    this.options.emit("chat", { ...about, message: { ...message, ...more } }, session.key);
  }
}

const restarting: Reply = {
  ok: false,
  error: {
    code: "UNAVAILABLE",
    message: "chat.send unavailable during gateway restart",
    retryable: true,
    retryAfterMs: 1000,
    details: { method: "chat.send", reason: "gateway-restarting", phase: "accepting" },
  },
};

async function* failingAnswer() {
  yield { error: "unexplained" as const };
}
