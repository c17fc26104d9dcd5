import type { HistoryRow } from "../clients/gatewayFrames.ts";
import { toStorable } from "../lib/text.ts";

/** More than one turn has; a page of the history that holds it whole. */
export const HISTORY_ROWS = 200;

/** What the gateway's history tells of one turn, after a crash or at its end; `key` is the one it was taken under last. */
export type RunRecord =
  | { kind: "absent" }
  /** Taken, and perhaps running. `begun`: the model has said or done something; `text`: in whole model messages. */
  | { kind: "unanswered"; key: string; begun: boolean; text: string }
  | { kind: "answered"; key: string; text: string; usage: RunUsage }
  /** It ended without an answer; `text` is what it had said, `usage` that of the model calls which came to their end. */
  | { kind: "broken"; key: string; text: string; usage: RunUsage | null };

/** Tokens and cost of all model calls of a turn. */
export interface RunUsage {
  inputTokens: number;
  outputTokens: number;
  costMicroUsd: number;
}

/**
 * Reads a turn out of the history. The user row is known by `"<key>:user"`, rows of the answer by their run id; rows
 * that the gateway made up itself (abort and error notes) are no answers.
 */
export function readRun(rows: HistoryRow[], turnId: string): RunRecord {
  const keys = rows.flatMap((row) => keyOf(row, turnId) ?? []);
  const key = keys.at(-1);
  if (key === undefined) return { kind: "absent" };
  const mine = rows.filter((row) => row.role === "assistant" && row.__openclaw.runId === key);
  const spoken = mine.filter(
    (row) => row.openclawAbort === undefined && row.stopReason !== "error" && row.provider !== "openclaw",
  );
  const last = spoken.at(-1);
  if (last && last.stopReason !== undefined && last.stopReason !== "toolUse" && last.stopReason !== "aborted") {
    return { kind: "answered", key, text: joinText(spoken), usage: sumUsage(mine) };
  }
  if (mine.some((row) => row.stopReason === "error" || row.stopReason === "aborted" || row.openclawAbort !== undefined))
    return { kind: "broken", key, text: brokenText(mine, spoken), usage: knownUsage(mine) };
  return { kind: "unanswered", key, begun: mine.length > 0, text: joinText(spoken) };
}

/** Whether a turn is in these rows from its beginning on. */
export function holdsBeginning(rows: HistoryRow[], turnId: string): boolean {
  return rows.some((row) => row.role === "user" && keyOf(row, turnId) !== undefined);
}

/** The key of a row of this turn: the turn's id, alone or with a number (see services/gatewayRun.ts). */
function keyOf(row: HistoryRow, turnId: string): string | undefined {
  const key =
    row.role === "user"
      ? (row.idempotencyKey ?? row.__openclaw.idempotencyKey)?.replace(/:user$/, "")
      : row.__openclaw.runId;
  return key === turnId || key?.startsWith(`${turnId}.`) ? key : undefined;
}

// The note of an abort repeats all that was said, glued together; an error's note may be the gateway's own words.
function brokenText(mine: HistoryRow[], spoken: HistoryRow[]): string {
  const note = mine.find((row) => row.openclawAbort !== undefined);
  const glued = spoken.map(textOfRow).join("");
  if (!note || !textOfRow(note).startsWith(glued)) return joinText(spoken);
  return joinText([...spoken, { ...note, content: textOfRow(note).slice(glued.length) }]);
}

function joinText(rows: HistoryRow[]): string {
  const texts = rows.map(textOfRow);
  return toStorable(texts.filter((text) => text !== "").join("\n\n"));
}

function textOfRow(row: HistoryRow): string {
  if (typeof row.content === "string") return row.content.trim();
  const parts = (row.content ?? []).filter((part) => part.type === "text");
  return parts
    .map((part) => part.text ?? "")
    .join("")
    .trim();
}

// A call that was cut off has none, so all zeros is not known.
function knownUsage(rows: HistoryRow[]): RunUsage | null {
  const usage = sumUsage(rows);
  return usage.inputTokens + usage.outputTokens > 0 ? usage : null;
}

// One stored row can stand twice in the history (its text and its tool call): its usage counts once.
function sumUsage(rows: HistoryRow[]): RunUsage {
  const usages = new Map<string, NonNullable<HistoryRow["usage"]>>();
  rows.forEach((row, index) => row.usage && usages.set(row.__openclaw.id ?? String(index), row.usage));
  const total = { inputTokens: 0, outputTokens: 0, costMicroUsd: 0 };
  for (const usage of usages.values()) {
    total.inputTokens += usage.input;
    total.outputTokens += usage.output;
    total.costMicroUsd += usage.cost.total * 1_000_000;
  }
  return { ...total, costMicroUsd: Math.ceil(total.costMicroUsd) };
}
