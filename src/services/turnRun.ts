import type { RunEvent } from "../clients/gatewayFrames.ts";
import { GatewayError } from "../clients/gatewayConnection.ts";
import { markStreaming, renewLeases, requeueTurn, type ClaimedTurn } from "../db/turns.ts";
import { getUsage, recordTurnCost } from "../db/usage.ts";
import type { Timer } from "../lib/clock.ts";
import { secondsSince } from "../lib/ids.ts";
import type { Log } from "../lib/log.ts";
import { askUntilAnswered, sleep } from "../lib/retry.ts";
import { addEvent, emptyAnswer, restartAnswer, saidIn, textOf } from "./answerText.ts";
import type { ChatHub } from "./chatHub.ts";
import { finishTurn, type Outcome } from "./conversations.ts";
import { GatewayRun, type RunDeps } from "./gatewayRun.ts";
import type { RunRecord } from "./runHistory.ts";
import { tellTurnEnd } from "./turnEnd.ts";
import { TurnTrace } from "./turnTrace.ts";
import { renderUsageFrame } from "./usage.ts";

const SEND_AGAIN_MS = 500;
/** The gateway gives no reason: not the provider's fault. */
const UNEXPLAINED = "unavailable";
/** A turn that so many processes began and none ended may be what ends them. */
const MAX_ATTEMPTS = 10;

/**
 * One turn in progress in this process, from its claim to its end.
 * States: sending → following → ending → over. `sending` may repeat: a turn is sent again, under the same key, until
 * the gateway's history shows that it was taken; `ending` repeats until Postgres has it. Leaves by `onOver`.
 */
export class TurnRun {
  private readonly log: Log;
  private readonly answer = emptyAnswer();
  private readonly over = new AbortController();
  private readonly run: GatewayRun;
  private readonly trace: TurnTrace;
  private readonly total: Timer;
  private between: Timer | undefined;
  private attempting: Promise<void> | null = null;
  private ending = false;
  /** Whether every event since the run's start was heard, so that the text put together here is the whole answer. */
  private complete: boolean;
  private retryReason: string | null = null;

  constructor(
    private readonly deps: RunDeps,
    private readonly hub: ChatHub,
    readonly turn: ClaimedTurn,
    ready: Promise<unknown> | undefined,
    private readonly onOver: () => void,
  ) {
    this.log = deps.log.child({ turn_id: turn.id, assistant_id: turn.assistantId, user_id: turn.userId });
    this.trace = new TurnTrace(deps, turn);
    this.run = new GatewayRun(deps, turn, this.over.signal, ready);
    this.complete = turn.attempts === 1;
    this.answer.gap = !this.complete;
    const leftMs = Math.max(0, deps.config.TURN_TOTAL_MS - turn.ageMs);
    this.total = deps.clock.setTimeout(() => void this.end(() => this.giveUp("total")), leftMs);
    this.expectText(deps.config.TURN_FIRST_TEXT_MS, "first text");
    void this.begin();
  }

  /** What the gateway says of this run. */
  handle(event: RunEvent): void {
    if (this.ending || !this.run.owns(event)) return;
    if (event.kind === "final") return void this.end(() => this.finalOutcome());
    if (event.kind === "error") {
      this.log.warn({ reason: event.reason }, "model failed");
      this.deps.metrics.modelFailed(event.reason);
      if (event.reason === UNEXPLAINED && saidIn(this.answer) === "") return void this.sendUnderNewKey();
      const code = event.reason === "format" ? "turn_failed" : "assistant_unavailable";
      return void this.end(async () => this.failure(code));
    }
    if (event.kind === "aborted") return this.aborted(event.reason);
    this.follow(event);
  }

  /** The connection is back: events may have been missed meanwhile. */
  reconnected(): void {
    this.complete = false;
    this.answer.gap = true;
    if (!this.ending) void this.attempt();
  }

  readonly stop = (): void => void this.end(() => this.stopOutcome());

  /** The lease is somebody else's, or the turn is over: unless this is its end, forget it without a word. */
  lost(): void {
    if (!this.ending) this.leave();
  }

  private async begin(): Promise<void> {
    if (this.turn.attempts > 1) this.answer.sent = await this.hub.sentText(this.turn);
    this.tellText(this.answer.sent.length);
    if (this.turn.stopRequested) return this.stop();
    if (this.turn.attempts > MAX_ATTEMPTS) return void this.end(() => this.giveUp("attempts"));
    await this.attempt();
  }

  /** Sends the turn, or finds out what became of it. Runs at the start and after each lost connection. */
  private attempt(): Promise<void> {
    this.attempting ??= this.tryOnce().finally(() => (this.attempting = null));
    return this.attempting;
  }

  private async tryOnce(): Promise<void> {
    try {
      if (this.turn.attempts > 1 || !this.complete) {
        const record = await this.run.readRecord();
        this.run.adopt(record);
        if (record.kind === "answered") return void this.end(async () => this.answeredOutcome(record));
        if (record.kind === "broken") return void this.end(async () => this.failure("turn_failed", record.text));
        restartAnswer(this.answer, record.kind === "absent" ? "" : record.text);
      }
      await this.run.prepare();
      // Whoever ended the turn meanwhile found nothing to abort: a run begun now would be nobody's.
      if (this.isOver()) return;
      const status = await this.trace.sending(() => this.run.send());
      if (status === "started") restartAnswer(this.answer);
      if (status === "finished") void this.end(() => this.finalOutcome());
    } catch (error) {
      await this.afterFailedSend(error);
    }
  }

  private async afterFailedSend(error: unknown): Promise<void> {
    const remedy = this.run.remedyFor(error);
    const why = error instanceof GatewayError ? { code: error.code } : { err: error };
    this.log.warn({ ...why, remedy }, "turn could not be sent");
    if (remedy === "fail") return void this.end(async () => this.failure("turn_failed"));
    if (remedy === "wake" || remedy === "give back") return this.giveBack(remedy === "wake");
    this.complete = false;
    if (remedy === "again") await this.sendAgain();
  }

  private async sendAgain(): Promise<void> {
    await sleep(SEND_AGAIN_MS, this.over.signal, this.deps.clock);
    // After this attempt has ended, or it would wait for itself.
    this.deps.clock.setTimeout(() => !this.isOver() && void this.attempt(), 0);
  }

  /** A reload of the gateway can end a run before the model has begun (2026.9.3). */
  private async sendUnderNewKey(): Promise<void> {
    const another = this.run.takeNewKey();
    await this.attempting;
    const record = await this.run.readRecord().catch(() => null);
    await sleep(SEND_AGAIN_MS, this.over.signal, this.deps.clock);
    const begun = record === null || (record.kind === "unanswered" ? record.begun : record.kind !== "absent");
    if (another && !begun) await this.attempt();
    else void this.end(async () => this.failure("assistant_unavailable"));
  }

  /** Back to the queue: it wakes an assistant that is asleep, and knows who has a connection to the gateway. */
  private async giveBack(asleep: boolean): Promise<void> {
    if (this.isOver()) return;
    // Before it is in the queue again: this process may be the one that claims it.
    this.leave();
    const { id, assistantId, gatewayId } = this.turn;
    await this.deps.sql
      .begin((sql) => requeueTurn(sql, { id, owner: this.deps.processId, assistantId, gatewayId, asleep }))
      .catch((err: unknown) => this.log.warn({ err }, "turn could not be given back; its lease will run out"));
  }

  private follow(event: RunEvent): void {
    const { config } = this.deps;
    const offset = this.answer.sent.length;
    const fresh = addEvent(this.answer, event);
    if (event.kind === "retrying") {
      this.retryReason = event.reason;
      return this.tellText(offset);
    }
    this.expectText(this.answer.sent === "" ? config.TURN_FIRST_TEXT_MS : config.TURN_BETWEEN_TEXT_MS, "text");
    if (fresh === "") return;
    this.retryReason = null;
    this.tellText(offset);
    if (offset > 0) return;
    this.deps.metrics.firstText.observe(secondsSince(this.turn.id));
    this.trace.firstText();
    const streaming = markStreaming(this.deps.sql, { id: this.turn.id, owner: this.deps.processId });
    streaming.catch((err: unknown) => this.log.warn({ err }, "turn not marked as streaming"));
  }

  private aborted(reason: string): void {
    // "rpc": somebody aborted it, and it was not us. "stop": the model said nothing.
    if (reason === "rpc" || reason === "stop") void this.end(async () => this.failure("turn_failed"));
    // Else the gateway goes down with the run: after its return the turn is sent again.
    else this.complete = false;
  }

  /** Settles the turn: finds the outcome, stores it, then tells everybody. Null: it is another process's by now. */
  private async end(decide: () => Promise<Outcome | null>): Promise<void> {
    if (this.isOver()) return;
    this.ending = true;
    const outcome = await decide();
    if (outcome) await this.settle(outcome);
    this.leave();
  }

  private async settle(outcome: Outcome): Promise<void> {
    const message = await this.untilStored("turn could not be stored yet", () =>
      finishTurn(this.deps, this.turn, this.deps.processId, outcome),
    );
    if (!message) return this.log.info("turn had ended before, or elsewhere");
    tellTurnEnd(this.deps, this.hub, this.turn, message, outcome);
    await this.announceUsage();
    const code = outcome.status === "failed" ? outcome.code : undefined;
    this.log.info({ status: outcome.status, code, characters: outcome.text.length }, "turn ended");
    if (outcome.status !== "failed" && outcome.usage === null)
      await this.recordCost().catch((err: unknown) => this.log.warn({ err }, "what the turn cost is not known"));
    await this.run.prepare().catch(() => 0);
  }

  private async announceUsage(): Promise<void> {
    const usage = await getUsage(this.deps.sql, this.turn.userId).catch(() => null);
    if (usage) this.hub.announce(this.turn.assistantId, renderUsageFrame(usage));
  }

  private failure(code: "turn_failed" | "assistant_unavailable", told = ""): Outcome {
    return { status: "failed", text: saidIn(this.answer, told), code };
  }

  private answeredOutcome(record: Extract<RunRecord, { kind: "answered" }>): Outcome {
    const heard = textOf(this.answer);
    const text = this.complete && heard !== "" ? heard : record.text;
    return text === "" ? this.failure("turn_failed") : { status: "done", text, usage: record.usage };
  }

  // The gateway says it is done. With all the text here nobody waits for its history, which only knows what it cost.
  private async finalOutcome(): Promise<Outcome> {
    const heard = textOf(this.answer);
    if (this.complete && heard !== "") return { status: "done", text: heard, usage: null };
    const record = await this.run.readEnded().catch(() => null);
    return record?.kind === "answered" ? this.answeredOutcome(record) : this.failure("turn_failed");
  }

  private async recordCost(): Promise<void> {
    const record = await this.run.readEnded();
    const usage = "usage" in record ? record.usage : null;
    if (usage) await recordTurnCost(this.deps.sql, { id: this.turn.id, userId: this.turn.userId, ...usage });
  }

  private async giveUp(budget: string): Promise<Outcome | null> {
    this.log.warn({ budget, retry_reason: this.retryReason }, "turn ran out of its budget");
    if (!(await this.holdsLease())) return null;
    await this.attempting;
    const record = await this.run.readRecord().catch(() => null);
    if (record?.kind === "answered") return this.answeredOutcome(record);
    const told = await this.run.abort(this.complete);
    const reachable = this.retryReason === null && this.deps.gateway.isReady();
    return this.failure(reachable ? "turn_failed" : "assistant_unavailable", told);
  }

  private async stopOutcome(): Promise<Outcome | null> {
    if (!(await this.holdsLease())) return null;
    await this.attempting;
    const told = await this.run.abort(this.complete);
    return { status: "stopped", text: saidIn(this.answer, told), usage: null };
  }

  // A process that stood still may have been replaced: it must not abort what another one follows by now.
  private async holdsLease(): Promise<boolean> {
    const lease = { owner: this.deps.processId, ids: [this.turn.id], leaseMs: this.deps.config.TURN_LEASE_MS };
    const held = await this.untilStored("lease could not be read", () => renewLeases(this.deps.sql, lease));
    return held?.length === 1;
  }

  private untilStored<T>(what: string, ask: () => Promise<T>): Promise<T | null> {
    const told = (err: unknown) => this.log.warn({ err }, `${what}; trying again`);
    return askUntilAnswered(ask, this.over.signal, told, this.deps.clock);
  }

  private tellText(offset: number): void {
    this.hub.textGrew(this.turn, { text: this.answer.sent, offset, retrying: this.retryReason });
  }

  private expectText(ms: number, budget: string): void {
    this.deps.clock.clearTimeout(this.between);
    this.between = this.deps.clock.setTimeout(() => void this.end(() => this.giveUp(budget)), ms);
  }

  private isOver(): boolean {
    return this.ending || this.over.signal.aborted;
  }

  /** Forgets the turn, which stays as it is in the database. */
  leave(): void {
    if (this.over.signal.aborted) return;
    this.over.abort();
    this.trace.left();
    this.deps.clock.clearTimeout(this.total);
    this.deps.clock.clearTimeout(this.between);
    this.onOver();
  }
}
