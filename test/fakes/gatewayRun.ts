import { errors, injected, model, textContent, usageOf } from "./gatewayModel.ts";
import { agentOf, type GatewayStore, type NewRow, type StoredSession } from "./gatewayStore.ts";
import type { FakeAnswer, FakeError, FakeStep, FakeUsage } from "./gatewayTypes.ts";

export type RunEnd = { how: "ok" | "timeout" | "error"; summary?: string };
export type Emit = (event: string, payload: Record<string, unknown>, sessionKey?: string) => void;
export interface RunParts {
  store: GatewayStore;
  emit: Emit;
  session: StoredSession;
  runId: string;
  /** A steered message's run says no `status`, as the real one. */
  silent?: boolean;
  onEnd: (end: RunEnd | null) => void;
}

/** One run: what the model does, as events and rows. A run may hold several model messages, glued without a separator. */
export class Run {
  readonly startedAt = Date.now();
  private seq = 0;
  private glued = "";
  private raw = "";
  private visible = "";
  private attempt = crypto.randomUUID();
  private item = 1;
  private attempts = 1;
  private usage: { input: number; output: number } | null = null;
  private ended = false;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private readonly cut = Promise.withResolvers<"ended">();

  constructor(private readonly parts: RunParts) {}

  get text(): string {
    return this.glued + this.visible;
  }

  /** Runs to its end; never rejects. `userText` counts as the prompt's tokens when no step says the usage. */
  async play(answer: ReturnType<FakeAnswer>, userText: string): Promise<void> {
    this.usage = null;
    for (const phase of ["preparing_workspace", "preparing_context"]) this.status(phase);
    this.agent("lifecycle", { phase: "start", startedAt: this.startedAt });
    this.status("starting_model");
    const steps = answer[Symbol.asyncIterator]();
    try {
      while (!this.ended) {
        const next = await Promise.race([steps.next(), this.cut.promise]);
        if (next === "ended") break;
        if (next.done) this.finish(userText);
        else await this.step(next.value, userText);
      }
    } catch (error) {
      this.fail("unexplained", error instanceof Error ? error.message : String(error));
    }
    void steps.return?.();
  }

  /** Stops the run with its partial text, as `chat.abort` or a stop word does. */
  abort(origin: "rpc" | "stop-command"): void {
    if (this.ended) return;
    const { runId } = this.parts;
    const text = this.text;
    const message = text ? { message: this.message(text) } : {};
    this.chat({ state: "aborted", stopReason: origin === "rpc" ? "rpc" : "stop", ...message });
    const marks = { idempotencyKey: `${runId}:assistant`, openclawAbort: { aborted: true as const, origin, runId } };
    const row: NewRow = {
      role: "assistant",
      content: textContent(text),
      stopReason: "stop",
      usage: usageOf(0, 0),
      ...injected,
    };
    if (text) this.appendIfKept({ ...row, ...marks, runId });
    this.end("killed", { how: "timeout", summary: "aborted" });
  }

  /** Dies without a word, as in a killed process. */
  kill(): void {
    this.ended = true;
    clearTimeout(this.timer);
    this.cut.resolve("ended");
  }

  private async step(step: FakeStep, userText: string): Promise<void> {
    if ("text" in step) this.say(step.text);
    else if ("delayMs" in step) await this.pause(step.delayMs);
    else if ("wait" in step) await Promise.race([step.wait, this.cut.promise]);
    else if ("tool" in step) this.tool(step, userText);
    else if ("replace" in step) this.replace(step.replace);
    else if ("usage" in step) this.usage = step.usage;
    else if ("retrying" in step) this.retry();
    else if ("error" in step) this.fail(step.error);
    else await this.cut.promise;
  }

  private pause(ms: number): Promise<unknown> {
    const slept = new Promise<void>((resolve) => {
      this.timer = setTimeout(resolve, ms);
    });
    return Promise.race([slept, this.cut.promise]);
  }

  // White space at the edges of a model message is never shown; inside it waits for the text behind it.
  private say(text: string): void {
    this.raw += text;
    const visible = this.raw.trim();
    const delta = visible.slice(this.visible.length);
    if (!delta) return;
    this.visible = visible;
    this.agent("assistant", { text: visible, delta, itemId: `${this.attempt}:${this.item}` });
    this.chat({ state: "delta", deltaText: delta, message: this.message(this.text) }, false);
  }

  private replace(text: string): void {
    this.glued = "";
    this.raw = this.visible = text;
    this.chat({ state: "delta", deltaText: text, replace: true, message: this.message(text) });
  }

  private tool(step: { tool: string; preamble?: string }, userText: string): void {
    const toolCallId = `call_${crypto.randomUUID().replaceAll("-", "").slice(0, 24)}`;
    const about = { itemId: `tool:${toolCallId}`, kind: "tool", title: step.tool, name: step.tool, toolCallId };
    const id = crypto.randomUUID();
    const before = this.raw || (step.preamble ?? "");
    const seq = before ? this.parts.session.nextSeq++ : undefined;
    const same = seq === undefined ? { id } : { id, seq };
    const fallback = { replacementText: before, source: "segment", itemId: `commentary-0-${toolCallId}` };
    const { runId } = this.parts;
    if (before)
      this.append({
        role: "assistant",
        content: textContent(before),
        openclawStreamFallback: fallback,
        runId,
        ...same,
      });
    const call = [{ type: "toolCall", id: toolCallId, name: step.tool, arguments: {} }];
    const usage = this.takeUsage(userText);
    this.append({
      role: "assistant",
      content: call,
      ...model,
      usage,
      stopReason: "toolUse",
      responseId: "x",
      runId,
      ...same,
    });
    this.agent("item", { ...about, phase: "start", status: "running", startedAt: Date.now() });
    this.agent("item", { ...about, phase: "end", status: "completed", endedAt: Date.now() });
    const result = { toolCallId, toolName: step.tool, isError: false, content: textContent("ok") };
    this.append({ role: "toolResult", ...result, runId });
    this.nextMessage();
    this.item += 1;
  }

  private retry(): void {
    this.attempts += 1;
    const about = { attempt: this.attempts, maxAttempts: 10, reason: "rate_limit" };
    this.chat({ state: "status", phase: "starting_model", retry: about });
    const words = {
      message: `Retrying… ${this.attempts}/10`,
      retryAttempt: this.attempts - 1,
      maxRetries: 9,
      delayMs: 1000,
    };
    this.agent("run_status", { phase: "retrying", ...words, ...about }, false);
    for (const phase of ["preparing_context", "starting_model"]) this.status(phase);
    this.nextMessage();
    this.attempt = crypto.randomUUID();
    this.item = 1;
  }

  private nextMessage(): void {
    this.glued = this.text;
    this.raw = this.visible = "";
  }

  private finish(userText: string): void {
    const { runId } = this.parts;
    const text = this.text;
    const usage = this.takeUsage(userText);
    const row = { role: "assistant" as const, ...model, usage, stopReason: "stop", responseId: "x", runId };
    try {
      if (this.raw) this.append({ ...row, content: textContent(this.raw) });
    } catch (error) {
      this.fail("unexplained", error instanceof Error ? error.message : String(error));
      return;
    }
    this.agent("lifecycle", { phase: "finishing", stopReason: "stop", aborted: false, livenessState: "working" });
    this.agent("lifecycle", { phase: "end", stopReason: "stop", aborted: false, startedAt: this.startedAt });
    // An empty answer ends as an abort that nobody asked for.
    if (text) this.chat({ state: "final", stopReason: "stop", message: this.message(text) }, false);
    else this.chat({ state: "aborted", stopReason: "stop" }, false);
    this.end("done", { how: "ok" });
  }

  private fail(reason: FakeError, message?: string): void {
    if (this.ended) return;
    const { runId, emit, session } = this.parts;
    const { kind, message: usual } = errors[reason];
    const errorMessage = message ?? usual;
    const about = {
      provider: model.provider,
      model: model.model,
      failoverReason: reason,
      providerRuntimeFailureKind: kind,
    };
    const detail = reason === "unexplained" ? {} : { errorDetail: about };
    const errorKind = reason === "timeout" ? { errorKind: "timeout" } : {};
    const content = textContent(this.text || "The agent run failed before producing a reply.");
    const row = { role: "assistant" as const, content, ...model, usage: usageOf(0, 0), stopReason: "error" };
    if (reason !== "unexplained") this.appendIfKept({ ...row, idempotencyKey: `${runId}:terminal-error`, runId });
    this.chat({ state: "error", errorMessage, ...errorKind, ...detail });
    const summary = `⚠️ Agent failed before reply: ${errorMessage}\nTo view logs, run \`openclaw logs --follow\` in a terminal.`;
    this.end("failed", { how: "error", summary });
    // The real gateway says it twice: the second time without the reason and without the agent.
    const again = { runId, sessionKey: session.key, seq: 1, state: "error", errorMessage: summary };
    emit("chat", again, session.key);
  }

  private end(status: StoredSession["status"], end: RunEnd): void {
    const { session, store, onEnd } = this.parts;
    this.kill();
    session.status = status;
    delete session.activeRunId;
    try {
      store.save(session);
    } catch {
      // The agent was deleted while it ran: there is nothing left to save to.
    }
    onEnd(end);
  }

  private takeUsage(userText: string): FakeUsage {
    const usage = this.usage ?? { input: 100 + Math.ceil(userText.length / 4), output: Math.ceil(this.raw.length / 4) };
    this.usage = null;
    return usageOf(usage.input, usage.output);
  }

  private append(row: NewRow): void {
    const stored = this.parts.store.append(this.parts.session, row);
    emitRow(this.parts.emit, this.parts.session, stored);
  }

  private appendIfKept(row: NewRow): void {
    try {
      this.append(row);
    } catch {
      // A deleted agent's database takes no row; the run ends all the same.
    }
  }

  private status(phase: string): void {
    if (this.parts.silent) return;
    this.chat({ state: "status", phase });
    this.agent("run_status", { phase }, false);
  }

  private message(text: string) {
    return { role: "assistant", content: textContent(text), timestamp: Date.now() };
  }

  private chat(fields: Record<string, unknown>, advance = true): void {
    if (advance) this.seq += 1;
    const { runId, session, emit } = this.parts;
    emit(
      "chat",
      { runId, sessionKey: session.key, agentId: agentOf(session.key), seq: this.seq, ...fields },
      session.key,
    );
  }

  private agent(stream: string, data: Record<string, unknown>, advance = true): void {
    if (advance) this.seq += 1;
    const { runId, session, emit } = this.parts;
    const about = { sessionKey: session.key, sessionId: session.sessionId, agentId: agentOf(session.key) };
    emit("agent", { runId, stream, data, ...about, seq: this.seq, ts: Date.now(), isHeartbeat: false }, session.key);
  }
}

/** `session.message` goes to the connections that subscribed to the session, and to no others. */
export function emitRow(emit: Emit, session: StoredSession, row: { __openclaw: { id: string; seq: number } }): void {
  const about = { sessionKey: session.key, agentId: agentOf(session.key), messageId: row.__openclaw.id };
  emit("session.message", { ...about, message: row, messageSeq: row.__openclaw.seq }, session.key);
}
