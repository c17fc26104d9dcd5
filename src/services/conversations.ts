import { findAssistant } from "../db/assistants.ts";
import type { Queryable } from "../db/connect.ts";
import { isNewMessage, lockConversation, setLastSeq } from "../db/conversation.ts";
import { findMessageByClientId, insertMessage, listMessages, type Message } from "../db/messages.ts";
import { notify } from "../db/notify.ts";
import {
  endTurn,
  findTurn,
  hasWaitingSleeper,
  insertTurn,
  notifyIfQueued,
  requestStop,
  type ClaimedTurn,
  type Turn,
} from "../db/turns.ts";
import { getUsage, type Usage } from "../db/usage.ts";
import type { Deps } from "../deps.ts";
import { AppError, ERRORS, type ErrorCode } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import { traced, type SpanAttributes } from "../lib/trace.ts";
import type { RunUsage } from "./runHistory.ts";
import { findCheapRefusal, isRefused, reserveUsage, settleUsage, type Refused, type UsageDeps } from "./usage.ts";

/** An accepted message; `repeated` when the same client_id had been accepted before. */
export interface Accepted {
  message: Message;
  turn: Turn;
  repeated: boolean;
  /** The day after it; null for a repeated one. */
  usage: Usage | null;
  /** Turns that this process claimed with it and must start now: this one, unless it has to wait. */
  claimed: ClaimedTurn[];
}

/** Claims what may run now, in the caller's transaction, without waiting for anybody (services/turnEngine.ts). */
export type Claim = (sql: Queryable) => Promise<ClaimedTurn[]>;

type SqlDeps = Pick<Deps, "sql">;
type AcceptDeps = UsageDeps & Pick<Deps, "traces">;
type Input = { userId: string; assistantId: string; clientId: string; content: string };

const ONE_MESSAGE = { textMessages: 1 };

/** What a message may bring along. */
interface Along {
  /** A repeated one is known by its client_id alone: what is heard in the same sound differs from time to time. */
  anyText?: boolean;
  /** Done in the transaction that accepts it; not for a repeated one. */
  settle?: (sql: Queryable) => Promise<void>;
}

/**
 * Accepts a message: reservation, message and queued turn in one transaction, in which this process also claims the turn
 * when its assistant is free. Only after it may anything be acknowledged. The same client_id gives the same answer again.
 * An expected "no" comes back as a value: the day's messages are used up, or `assistant_not_found`, `assistant_paused`,
 * `account_suspended`, `client_id_conflict`.
 */
export async function acceptMessage(
  deps: AcceptDeps,
  claim: Claim,
  input: Input,
  along: Along = {},
): Promise<Accepted | Refused | AppError> {
  const attributes = { "reef.user_id": input.userId, "reef.assistant_id": input.assistantId };
  const about = { name: "accept message", kind: "internal", attributes } as const;
  const accepted = await traced(deps.traces, about, () => accept(deps, claim, input, along), describe);
  if ("turn" in accepted && !accepted.repeated) deps.traces.current()?.join?.(accepted.turn.id);
  return accepted;
}

function describe(accepted: Accepted | Refused | AppError): SpanAttributes {
  if (accepted instanceof AppError) return { "error.type": accepted.code };
  if (isRefused(accepted)) return { "error.type": "quota", "reef.kind": accepted.kind };
  return { "reef.turn_id": accepted.turn.id, "reef.repeated": accepted.repeated };
}

async function accept(
  deps: AcceptDeps,
  claim: Claim,
  input: Input,
  along: Along,
): Promise<Accepted | Refused | AppError> {
  const content = input.content.toWellFormed();
  const refused = await findCheapRefusal(deps, input.userId, ONE_MESSAGE);
  // What was accepted before is not refused now, and nothing else has another answer because Redis knows of a full day.
  if (refused && (await isNewMessage(deps.sql, input))) return refused;
  return deps.sql.begin(async (sql) => {
    // Statements that don't wait for each other's answers go out together and are done in order, the lock first.
    const [conversation, earlier, today] = await Promise.all([
      lockConversation(sql, input),
      findMessageByClientId(sql, input),
      getUsage(sql, input.userId),
    ]);
    if (!conversation || conversation.status === "deleted") return new AppError("assistant_not_found");
    if (earlier) return repeatAnswer(sql, input.userId, earlier, along.anyText ? earlier.content : content);
    // Read after the lock, so that nobody talks on after their suspension.
    if (!today.active) return new AppError("account_suspended");
    if (conversation.status === "paused") return new AppError("assistant_paused");
    const turnId = newId();
    const { userId, assistantId } = input;
    const reservation = { userId, key: turnId, usage: today, amounts: ONE_MESSAGE, expiresInMs: null };
    const usage = await reserveUsage(deps, sql, reservation);
    if (isRefused(usage)) return usage;
    const { gatewayId } = conversation;
    const seq = conversation.lastSeq + 1;
    const [turn, message, , , claimed] = await Promise.all([
      insertTurn(sql, { id: turnId, assistantId, userId, gatewayId, seq }),
      insertMessage(sql, {
        id: newId(),
        assistantId,
        userId,
        turnId,
        seq,
        role: "user",
        content,
        clientId: input.clientId,
        finish: "complete",
      }),
      setLastSeq(sql, { userId, assistantId, seq }),
      notify(sql, "message", `${assistantId}:${seq}`),
      conversation.state === "awake" ? claim(sql) : [],
      conversation.state === "awake" ? null : notify(sql, "gateway", gatewayId),
      notifyIfQueued(sql, gatewayId),
      along.settle?.(sql),
    ]);
    return { message, turn, repeated: false, usage, claimed };
  });
}

/** What was accepted under a client_id before; null: nothing was. */
export async function findAccepted(
  deps: SqlDeps,
  key: { userId: string; assistantId: string; clientId: string },
): Promise<Accepted | null> {
  const earlier = await findMessageByClientId(deps.sql, key);
  return earlier && repeat(deps.sql, key.userId, earlier);
}

async function repeat(sql: Queryable, userId: string, earlier: Message): Promise<Accepted> {
  const turn = await findTurn(sql, { userId, id: earlier.turnId });
  return { message: earlier, turn: turn!, repeated: true, usage: null, claimed: [] };
}

async function repeatAnswer(
  sql: Queryable,
  userId: string,
  earlier: Message,
  content: string,
): Promise<Accepted | AppError> {
  return earlier.content === content ? repeat(sql, userId, earlier) : new AppError("client_id_conflict");
}

/** How a turn ended. `text` is what was said; empty where nothing was. */
export type Outcome =
  | { status: "done"; text: string; usage: RunUsage | null }
  | { status: "stopped"; text: string; usage: RunUsage | null }
  | { status: "failed"; text: string; code: Extract<ErrorCode, "turn_failed" | "assistant_unavailable"> };

/**
 * Ends a turn, once: the answer's row, the turn's end and the settled reservation in one transaction. Nothing that
 * failed or was never answered is charged. `owner` is the process that holds the turn's lease, null for a queued turn.
 * Null when it had ended before or is another process's by now: then nothing changed.
 */
export async function finishTurn(
  deps: UsageDeps,
  turn: Pick<Turn, "id" | "userId" | "assistantId" | "gatewayId">,
  owner: string | null,
  outcome: Outcome,
): Promise<Message | null> {
  const usage = outcome.status === "failed" ? null : outcome.usage;
  const charged = outcome.status === "done" || (outcome.status === "stopped" && outcome.text !== "");
  const cost = {
    inputTokens: usage?.inputTokens ?? null,
    outputTokens: usage?.outputTokens ?? null,
    costMicroUsd: usage?.costMicroUsd ?? null,
  };
  return deps.sql.begin(async (sql) => {
    const errorCode = outcome.status === "failed" ? outcome.code : null;
    const end = { id: turn.id, userId: turn.userId, owner, status: outcome.status, errorCode, ...cost };
    const [conversation, ended, sleeperWaits] = await Promise.all([
      lockConversation(sql, turn),
      endTurn(sql, end),
      hasWaitingSleeper(sql, turn.gatewayId),
    ]);
    if (!conversation || !ended) return null;
    const seq = conversation.lastSeq + 1;
    const [message] = await Promise.all([
      insertMessage(sql, {
        id: newId(),
        assistantId: turn.assistantId,
        userId: turn.userId,
        turnId: turn.id,
        seq,
        role: "assistant",
        content: outcome.status === "failed" && outcome.text === "" ? ERRORS[outcome.code].message : outcome.text,
        clientId: null,
        finish: ({ done: "complete", stopped: "stopped", failed: "error" } as const)[outcome.status],
      }),
      setLastSeq(sql, { userId: turn.userId, assistantId: turn.assistantId, seq }),
      settleUsage(deps, sql, {
        userId: turn.userId,
        key: turn.id,
        status: charged ? "committed" : "released",
        cost: { model: conversation.model, ...cost },
      }),
      notify(sql, "message", `${turn.assistantId}:${seq}`),
      notifyIfQueued(sql, turn.gatewayId),
      // Somebody may be waiting for this one to end: a sleeper for its place, or its own deletion.
      sleeperWaits || conversation.status !== "active" ? notify(sql, "gateway", turn.gatewayId) : null,
    ]);
    return message;
  });
}

/** Stops one turn of the assistant, or all that have not ended. */
export async function stopTurns(
  deps: SqlDeps,
  input: { userId: string; assistantId: string; turnId: string | null },
): Promise<void> {
  await deps.sql.begin((sql) => requestStop(sql, input));
}

/** A page of a conversation. Throws `assistant_not_found`. */
export async function readConversation(
  deps: SqlDeps,
  input: { userId: string; assistantId: string; afterSeq: number | null; beforeSeq: number | null; limit: number },
): Promise<{ items: Message[]; agentId: string; lastSeq: number; hasMore: boolean }> {
  const assistant = await findAssistant(deps.sql, { userId: input.userId, id: input.assistantId });
  if (!assistant) throw new AppError("assistant_not_found");
  const rows = await listMessages(deps.sql, { ...input, limit: input.limit + 1 });
  const hasMore = rows.length > input.limit;
  const items = hasMore ? (input.afterSeq === null ? rows.slice(1) : rows.slice(0, -1)) : rows;
  return { items, agentId: assistant.agentId, lastSeq: assistant.lastSeq, hasMore };
}
