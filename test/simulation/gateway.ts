import { GatewayError } from "../../src/clients/gatewayConnection.ts";
import type { HistoryRow, RunEvent } from "../../src/clients/gatewayFrames.ts";
import { scriptOf, type ModelMood, type ModelStep } from "./model.ts";
import type { World } from "./world.ts";

/** A process's connections to the gateway: what it sends there comes in order, or is lost with the connection. */
export interface Link {
  send(label: string, deliver: () => void): void;
  event(event: RunEvent): void;
  lose(): void;
}

interface Run {
  key: string;
  text: string;
  steps: ModelStep[];
  attempt: number;
  item: number;
  raw: string;
  closed: string[];
  live: boolean;
}

interface Session {
  rows: HistoryRow[];
  run: Run | null;
  waiting: { key: string; text: string }[];
}

/** What a run ended as: what the same key is told from then on. */
type Ended = "ok" | "timeout" | "error";

const MODEL_WEIGHT = 4;

/**
 * The gateway as recorded (design/openclaw.md §5, design/transcripts): keys, history, steering, aborts. It keeps its
 * history over a kill, and forgets the keys.
 */
export class SimulatedGateway {
  up = true;
  private boot = 1;
  readonly links = new Set<Link>();
  /** Agents that are not in its configuration. */
  readonly missing = new Set<string>();
  /** Each time the model was asked: for which key, in which life, and whether it was answered, or its turn over. */
  readonly asked: { key: string; boot: number; known: boolean; over: boolean }[] = [];
  readonly steered: string[] = [];
  /** All whole answers of a key. */
  readonly answers = new Map<string, string[]>();
  /** Keys whose run was retried: what it said first is void. */
  readonly retried = new Set<string>();
  private readonly sessions = new Map<string, Session>();
  private readonly keys = new Map<string, { text: string; ended: Ended | null }>();

  constructor(
    private readonly world: World,
    private readonly seed: number,
    private readonly mood: ModelMood,
    private readonly isOver: (key: string) => boolean,
  ) {}

  /** Dies like a killed process; `politely`: tells first that its runs are aborted by the restart. */
  kill(politely: boolean): void {
    if (!this.up) return;
    for (const { run } of this.sessions.values())
      if (politely && run) this.emit({ kind: "aborted", runId: run.key, reason: "restart" });
    this.up = false;
    this.boot += 1;
    this.keys.clear();
    for (const session of this.sessions.values()) {
      if (session.run) session.run.live = false;
      session.run = null;
      session.waiting = [];
    }
    for (const link of this.links) link.lose();
  }

  start(): void {
    this.up = true;
  }

  running(): string[] {
    return [...this.sessions.values()].flatMap(({ run }) => (run ? [run.key] : []));
  }

  history(agentId: string, limit: number): HistoryRow[] {
    return this.session(agentId).rows.slice(-limit);
  }

  /** `afterwards` happens when the answer is on its way. Throws what the gateway refuses. */
  send(
    agentId: string,
    key: string,
    text: string,
  ): { status: "started" | "running" | "finished"; afterwards: () => void } {
    const nothing = () => undefined;
    if (this.missing.has(agentId))
      throw new GatewayError("refused", "INVALID_REQUEST", `Agent "${agentId}" no longer exists in configuration`);
    const seen = this.keys.get(key);
    if (seen?.ended === null) return { status: "running", afterwards: nothing };
    if (seen?.ended === "error") throw new GatewayError("refused", "UNAVAILABLE", "agent failed before reply");
    if (seen) return { status: "finished", afterwards: nothing };
    this.keys.set(key, { text, ended: null });
    return { status: "started", afterwards: () => this.begin(agentId, key, text) };
  }

  abort(key: string): void {
    for (const session of this.sessions.values()) {
      const { run } = session;
      if (run?.key !== key) continue;
      session.waiting = [];
      const text = run.closed.join("") + run.raw.trim();
      this.emit({ kind: "aborted", runId: key, reason: "rpc" });
      if (text !== "")
        this.addRow(session, { content: text, stopReason: "stop", provider: "openclaw", openclawAbort: {} }, key);
      this.end(session, run, "timeout");
    }
  }

  private begin(agentId: string, key: string, text: string): void {
    if (!this.up) return;
    const session = this.session(agentId);
    if (session.run) {
      this.steered.push(key);
      session.waiting.push({ key, text });
      this.keys.set(key, { text, ended: "ok" });
      return this.emit({ kind: "final", runId: key });
    }
    const users = session.rows.filter((row) => row.role === "user");
    const at = users.findIndex((row) => row.idempotencyKey === `${key}:user`);
    if (at < 0) this.addUserRow(session, key, text);
    this.play(session, key, text, at >= 0 && at < users.length - 1);
  }

  private play(session: Session, key: string, text: string, failing: boolean): void {
    const times = this.asked.filter((one) => one.key === key).length;
    const steps: ModelStep[] = failing
      ? [{ do: "fail", reason: "unavailable" }]
      : scriptOf(this.seed, text, times, this.mood);
    const run: Run = { key, text, steps: [...steps], attempt: times * 10, item: 1, raw: "", closed: [], live: true };
    session.run = run;
    if (!failing) {
      const known = (this.answers.get(key) ?? []).length > 0;
      this.asked.push({ key, boot: this.boot, known, over: this.isOver(key) });
    }
    this.next(session, run);
  }

  private next(session: Session, run: Run): void {
    const label = `model ${run.text}: ${run.steps[0]?.do ?? "final"}`;
    const act = () => {
      if (run.live) this.step(session, run);
    };
    const owner = this.world.outside;
    this.world.add({ channel: this.world.unique("model"), owner, label, weight: MODEL_WEIGHT, run: act });
  }

  private step(session: Session, run: Run): void {
    const step = run.steps.shift();
    const { key: runId } = run;
    if (!step) return this.finish(session, run);
    if (step.do === "hang") return;
    if (step.do === "fail") return this.fail(session, run, step.reason);
    if (step.do === "pause")
      return void this.world.clockOf(this.world.outside).setTimeout(() => this.next(session, run), step.ms);
    if (step.do === "say") {
      run.raw += step.text;
      this.emit({ kind: "text", runId, itemId: `${run.attempt}:${run.item}`, text: run.raw.trim() });
    } else if (step.do === "tool") this.tool(session, run);
    else {
      this.retried.add(runId);
      this.emit({ kind: "retrying", runId, reason: "busy" });
      Object.assign(run, { attempt: run.attempt + 1, item: 1, raw: "" });
    }
    this.next(session, run);
  }

  private tool(session: Session, run: Run): void {
    const said = run.raw.trim();
    if (said !== "") {
      run.closed.push(said);
      this.addRow(session, { content: said }, run.key);
    }
    this.addRow(session, { content: [{ type: "toolCall" }], stopReason: "toolUse" }, run.key);
    this.emit({ kind: "tool", runId: run.key });
    Object.assign(run, { item: run.item + 1, raw: "" });
  }

  private finish(session: Session, run: Run): void {
    const said = run.raw.trim();
    if (said === "") this.emit({ kind: "aborted", runId: run.key, reason: "stop" });
    else {
      this.answers.set(run.key, [...(this.answers.get(run.key) ?? []), textOf(run)]);
      this.addRow(session, { content: said, stopReason: "stop", provider: "openai-custom" }, run.key);
      this.emit({ kind: "final", runId: run.key });
    }
    this.end(session, run, "ok");
  }

  private fail(session: Session, run: Run, reason: string): void {
    this.addRow(session, { content: textOf(run) || "failed", stopReason: "error" }, run.key);
    this.emit({ kind: "error", runId: run.key, reason });
    this.end(session, run, "error");
  }

  private end(session: Session, run: Run, how: Ended): void {
    run.live = false;
    session.run = null;
    const seen = this.keys.get(run.key);
    if (seen) seen.ended = how;
    const steered = how === "timeout" ? undefined : session.waiting.shift();
    if (!steered) return;
    // What was steered in is answered by a run with an id of its own.
    this.addUserRow(session, steered.key, steered.text);
    this.play(session, `${steered.key}/steered`, steered.text, false);
  }

  private session(agentId: string): Session {
    const known = this.sessions.get(agentId);
    if (known) return known;
    const session: Session = { rows: [], run: null, waiting: [] };
    this.sessions.set(agentId, session);
    return session;
  }

  private addUserRow(session: Session, key: string, content: string): void {
    session.rows.push({ role: "user", content, idempotencyKey: `${key}:user`, __openclaw: {} });
  }

  private addRow(session: Session, row: Partial<HistoryRow>, runId: string): void {
    const usage = { input: 10, output: 5, cost: { total: 0.00001 } };
    session.rows.push({ role: "assistant", usage, ...row, __openclaw: { id: String(session.rows.length), runId } });
  }

  private emit(event: RunEvent): void {
    for (const link of this.links) link.event(event);
  }
}

function textOf(run: Run): string {
  return [...run.closed, run.raw.trim()].filter((text) => text !== "").join("\n\n");
}
