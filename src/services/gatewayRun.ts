import { GatewayError } from "../clients/gatewayConnection.ts";
import type { RunEvent } from "../clients/gatewayFrames.ts";
import type { ClaimedTurn } from "../db/turns.ts";
import type { Deps } from "../deps.ts";
import { sleep } from "../lib/retry.ts";
import { HISTORY_ROWS, holdsBeginning, readRun, type RunRecord } from "./runHistory.ts";

/** What one turn in progress touches. */
export type RunDeps = Pick<
  Deps,
  "sql" | "redis" | "gateway" | "workspaces" | "config" | "log" | "clock" | "processId" | "metrics" | "traces"
>;

/** What a failed attempt to send calls for. `later`: the next connection tries again, and the budgets bound it. */
type Remedy = "again" | "later" | "give back" | "wake" | "fail";

/** Where a turn that has just ended is found, unless it used many tools. */
const NEWEST_ROWS = 12;
const ABORT_WAIT_MS = 15_000;
const MAX_KEYS = 2;

/**
 * One turn as the gateway has it: under which key it was sent, what became of it, how it is aborted. The key is the
 * turn's id, the second time `<id>.1`: the gateway never runs one key twice, not even one whose run did not begin.
 */
export class GatewayRun {
  private key: string;
  /** Whether the gateway may know the turn. */
  private sent: boolean;

  constructor(
    private readonly deps: Pick<Deps, "gateway" | "workspaces" | "clock">,
    private readonly turn: ClaimedTurn,
    private readonly over: AbortSignal,
    /** The workspace is being made ready already. */
    private ready: Promise<unknown> | undefined,
  ) {
    this.key = turn.id;
    this.sent = turn.attempts > 1;
  }

  /** Whether an event is of the run under the present key. */
  owns(event: RunEvent): boolean {
    return event.runId === this.key;
  }

  /** Makes the workspace ready for the prompt. */
  async prepare(): Promise<void> {
    const { ready } = this;
    this.ready = undefined;
    await (ready ?? this.deps.workspaces.guard(this.turn));
  }

  async send(): Promise<"started" | "running" | "finished"> {
    const { agentId, content } = this.turn;
    try {
      const status = await this.deps.gateway.sendMessage({ agentId, key: this.key, text: content });
      this.sent = true;
      return status;
    } catch (error) {
      if (!isUnsent(error)) this.sent = true;
      throw error;
    }
  }

  /** What to do after this failure. What was surely never sent need not wait for this process's connection. */
  remedyFor(error: unknown): Remedy {
    // A disk or an answer that makes no sense may do so only for a moment; the budget bounds it.
    if (!(error instanceof GatewayError)) return "again";
    if (isUnsent(error) && !this.sent) return "give back";
    if (error.kind !== "refused") return error.code === "TIMEOUT" ? "again" : "later";
    if (/no longer exists in configuration|unknown agent/i.test(error.message)) return "wake";
    return error.code === "UNAVAILABLE" ? "again" : "fail";
  }

  /** Takes another key, for a run that ended before it began; false when there were enough of them. */
  takeNewKey(): boolean {
    const used = Number(this.key.slice(this.turn.id.length + 1));
    if (used + 1 >= MAX_KEYS) return false;
    this.key = `${this.turn.id}.${used + 1}`;
    return true;
  }

  /** What the gateway's history tells of the turn, whoever sent it. */
  readRecord(): Promise<RunRecord> {
    return this.read(HISTORY_ROWS);
  }

  /** Goes on under the key that it was taken under: another process may have sent it. */
  adopt(record: RunRecord): void {
    if (record.kind !== "absent") this.key = record.key;
  }

  /** The same for a turn that has just ended: it is among the newest rows. */
  async readEnded(): Promise<RunRecord> {
    return this.read(NEWEST_ROWS);
  }

  /**
   * The next turn may start only when this run is over, or the gateway would steer that one into this. Returns what only
   * the history knows of the answer where not every event of it was heard (`complete` false).
   */
  async abort(complete: boolean): Promise<string> {
    const until = this.deps.clock.now() + ABORT_WAIT_MS;
    while (this.deps.clock.now() < until && !this.over.aborted) {
      try {
        await this.deps.gateway.abortRun({ agentId: this.turn.agentId, key: this.key });
        const record = complete ? null : await this.readRecord();
        return record && "text" in record ? record.text : "";
      } catch {
        await sleep(250, this.over, this.deps.clock);
      }
    }
    return "";
  }

  private async read(limit: number): Promise<RunRecord> {
    const rows = await this.deps.gateway.readHistory({ agentId: this.turn.agentId, limit });
    if (limit < HISTORY_ROWS && !holdsBeginning(rows, this.turn.id)) return this.read(HISTORY_ROWS);
    return readRun(rows, this.turn.id);
  }
}

function isUnsent(error: unknown): boolean {
  return error instanceof GatewayError && error.kind === "unsent";
}
