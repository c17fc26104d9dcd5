import type { RunEvent } from "../clients/gatewayFrames.ts";
import { GatewayError } from "../clients/gatewayConnection.ts";
import { markStreaming, requeueTurn, type ClaimedTurn } from "../db/turns.ts";
import type { Deps } from "../deps.ts";
import { sleep } from "../lib/retry.ts";
import { addEvent, emptyAnswer, restartAnswer, textOf } from "./answerText.ts";
import type { ChatHub } from "./chatHub.ts";
import { finishTurn, type Outcome } from "./conversations.ts";
import { holdsBeginning, readRun, type RunRecord } from "./runHistory.ts";
import { getTextUsage, recordTurnCost } from "../db/usage.ts";
import { ERRORS } from "../lib/errors.ts";

type RunDeps = Pick<Deps, "sql" | "gateway" | "workspaces" | "config" | "log" | "processId">;

const HISTORY_ROWS = 200;
/** Where a turn that has just ended is found, unless it used many tools. */
const NEWEST_ROWS = 12;
const ABORT_WAIT_MS = 15_000;

export type TurnRun = ReturnType<typeof startTurnRun>;

/**
 * One turn in progress in this process, from its claim to its end.
 * States: sending → following → ending → ended. `sending` may repeat: a turn is sent again, under the same key, until
 * the gateway's history shows that it was taken; `ending` repeats until Postgres has it. Leaves by `onEnd`.
 */
export function startTurnRun(deps: RunDeps, hub: ChatHub, turn: ClaimedTurn, onEnd: () => void) {
  const log = deps.log.child({ turn_id: turn.id, user_id: turn.userId });
  const answer = emptyAnswer();
  const dropped = new AbortController();
  let complete = turn.attempts === 1;
  let ending = false;
  let retryReason: string | null = null;
  let attempting: Promise<void> | null = null;
  let between: ReturnType<typeof setTimeout> | undefined;
  const total = setTimeout(() => void end(() => giveUp("total")), deps.config.TURN_TOTAL_MS);

  const expectText = (ms: number, budget: string) => {
    clearTimeout(between);
    between = setTimeout(() => void end(() => giveUp(budget)), ms);
  };
  /** Sends the turn, or finds out what became of it. Runs at the start and after each lost connection. */
  const attempt = (): Promise<void> => {
    attempting ??= tryOnce().finally(() => (attempting = null));
    return attempting;
  };
  const tryOnce = async () => {
    try {
      if (turn.attempts > 1 || !complete) {
        const record = await readRecord();
        if (record.kind === "answered") return void end(async () => answeredOutcome(record));
        if (record.kind === "broken") return void end(async () => failure("turn_failed"));
      }
      await deps.workspaces.guard({ agentId: turn.agentId, displayName: turn.displayName });
      const status = await deps.gateway.sendMessage({ agentId: turn.agentId, key: turn.id, text: turn.content });
      if (status === "started") restartAnswer(answer);
      if (status === "finished") void end(finalOutcome);
    } catch (error) {
      await afterFailedSend(error);
    }
  };
  const afterFailedSend = async (error: unknown) => {
    if (!(error instanceof GatewayError)) {
      // A disk or an answer that makes no sense may do so only for a moment; the budget bounds it.
      log.error({ err: error }, "turn could not be sent; trying again");
      return retryLater();
    }
    // No connection, or an answer lost with it: `reconnected` tries again, and the budgets bound it.
    if (error.kind !== "refused") {
      complete = false;
      if (error.code === "TIMEOUT") await retryLater();
      return;
    }
    if (/no longer exists in configuration|unknown agent/i.test(error.message))
      return drop(() => requeueTurn(deps.sql, { id: turn.id, owner: deps.processId, assistantId: turn.assistantId }));
    if (error.code === "UNAVAILABLE") return retryLater();
    log.warn({ code: error.code }, "gateway refused the turn");
    void end(async () => failure("turn_failed"));
  };
  const retryLater = async () => {
    await sleep(500, dropped.signal);
    complete = false;
    if (!ending && !dropped.signal.aborted) setTimeout(() => void attempt(), 0);
  };
  const readRecord = async (): Promise<RunRecord> => {
    return readRun(await deps.gateway.readHistory({ agentId: turn.agentId, limit: HISTORY_ROWS }), turn.id);
  };
  const readEnded = async (): Promise<RunRecord> => {
    const newest = await deps.gateway.readHistory({ agentId: turn.agentId, limit: NEWEST_ROWS });
    return holdsBeginning(newest, turn.id) ? readRun(newest, turn.id) : readRecord();
  };
  const failure = (code: "turn_failed" | "assistant_unavailable"): Outcome => ({
    status: "failed",
    text: textOf(answer),
    code,
  });
  const answeredOutcome = (record: Extract<RunRecord, { kind: "answered" }>): Outcome => {
    const text = complete && textOf(answer) !== "" ? textOf(answer) : record.text;
    return text === "" ? failure("turn_failed") : { status: "done", text, usage: record.usage };
  };
  // The gateway says it is done. With all the text here nobody waits for its history, which only knows what it cost.
  const finalOutcome = async (): Promise<Outcome> => {
    const said = textOf(answer);
    if (complete && said !== "") return { status: "done", text: said, usage: null };
    const record = await readEnded().catch(() => null);
    if (record?.kind === "answered") return answeredOutcome(record);
    return failure("turn_failed");
  };
  const recordCost = async () => {
    const record = await readEnded();
    if (record.kind === "answered")
      await recordTurnCost(deps.sql, { id: turn.id, userId: turn.userId, ...record.usage });
  };
  const giveUp = async (budget: string): Promise<Outcome> => {
    log.warn({ budget, retry_reason: retryReason }, "turn ran out of its budget");
    await abortForSure();
    return failure(retryReason === null ? "turn_failed" : "assistant_unavailable");
  };
  const stopOutcome = async (): Promise<Outcome> => {
    await abortForSure();
    return { status: "stopped", text: textOf(answer), usage: null };
  };
  // The next turn may start only when this run is over, or the gateway would steer that one into this.
  const abortForSure = async () => {
    const until = Date.now() + ABORT_WAIT_MS;
    while (Date.now() < until && !dropped.signal.aborted) {
      try {
        return await deps.gateway.abortRun({ agentId: turn.agentId, key: turn.id });
      } catch {
        await sleep(250, dropped.signal);
      }
    }
  };
  /** Settles the turn: finds the outcome, stores it (trying until Postgres has it), then tells everybody. */
  const end = async (decide: () => Promise<Outcome>) => {
    if (ending || dropped.signal.aborted) return;
    ending = true;
    clearTimeout(total);
    clearTimeout(between);
    const outcome = await decide();
    for (let tries = 0; !dropped.signal.aborted; tries++) {
      try {
        const message = await finishTurn(deps, turn, outcome);
        if (message) hub.messageStored(turn.assistantId, message.seq, message);
        if (message) await announceEnd(outcome);
        break;
      } catch (err) {
        if (tries % 10 === 0) log.warn({ err }, "turn could not be stored yet; trying again");
        await sleep(Math.min(2000, 100 * 2 ** tries), dropped.signal);
      }
    }
    if (outcome.status === "done" && outcome.usage === null)
      await recordCost().catch((err: unknown) => log.warn({ err }, "what the turn cost is not known"));
    log.info(
      {
        status: outcome.status,
        code: outcome.status === "failed" ? outcome.code : undefined,
        characters: outcome.text.length,
      },
      "turn ended",
    );
    await deps.workspaces.guard({ agentId: turn.agentId, displayName: turn.displayName }).catch(() => 0);
    leave();
  };
  const announceEnd = async (outcome: Outcome) => {
    if (outcome.status === "failed") {
      hub.announce(turn.assistantId, {
        type: "error",
        code: outcome.code,
        message: ERRORS[outcome.code].message,
        turn_id: turn.id,
      });
    }
    const usage = await getTextUsage(deps.sql, turn.userId).catch(() => null);
    if (usage)
      hub.announce(turn.assistantId, { type: "usage", text_messages: { used: usage.used, limit: usage.limit } });
  };
  const leave = () => {
    dropped.abort();
    clearTimeout(total);
    clearTimeout(between);
    onEnd();
  };
  const drop = async (before: () => Promise<void>) => {
    await before().catch((err: unknown) => log.warn({ err }, "turn could not be given back; its lease will run out"));
    leave();
  };
  const aborted = (reason: string) => {
    if (reason === "rpc") void end(async () => ({ status: "stopped", text: textOf(answer), usage: null }));
    else if (reason === "stop") void end(async () => failure("turn_failed"));
    // Else the gateway goes down with the run: after its return the turn is sent again.
    else complete = false;
  };
  const follow = (event: RunEvent) => {
    const first = answer.sent === "";
    const offset = answer.sent.length;
    const fresh = addEvent(answer, event);
    if (event.kind !== "retrying")
      expectText(answer.sent === "" ? deps.config.TURN_FIRST_TEXT_MS : deps.config.TURN_BETWEEN_TEXT_MS, "text");
    else retryReason = event.reason;
    if (event.kind === "text") retryReason = null;
    if (fresh === "") return;
    hub.textGrew(turn.assistantId, turn.id, answer.sent, offset);
    if (first)
      markStreaming(deps.sql, { id: turn.id, owner: deps.processId }).catch((err: unknown) =>
        log.warn({ err }, "turn not marked as streaming"),
      );
  };

  const begin = async () => {
    if (turn.attempts > 1) answer.sent = await hub.sentText(turn.assistantId, turn.id);
    hub.textGrew(turn.assistantId, turn.id, answer.sent, answer.sent.length);
    await attempt();
  };

  expectText(deps.config.TURN_FIRST_TEXT_MS, "first text");
  void begin();
  return {
    turn,
    handle(event: RunEvent): void {
      if (ending) return;
      if (event.kind === "final") return void end(finalOutcome);
      if (event.kind === "error") {
        log.warn({ reason: event.reason }, "model failed");
        return void end(async () => failure(event.reason === "format" ? "turn_failed" : "assistant_unavailable"));
      }
      if (event.kind === "aborted") return aborted(event.reason);
      follow(event);
    },
    /** The connection is back: events may have been missed meanwhile. */
    reconnected(): void {
      complete = false;
      if (!ending) void attempt();
    },
    stop: () => void end(stopOutcome),
    /** The lease is somebody else's, or the turn is over: unless this is its end, forget it without a word. */
    lost: () => {
      if (!ending) leave();
    },
    forget: () => leave(),
  };
}
