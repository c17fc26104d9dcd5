import { expect, test } from "bun:test";
import type { HistoryRow } from "../../src/clients/gatewayFrames.ts";
import { addEvent, emptyAnswer, restartAnswer } from "../../src/services/answerText.ts";
import { readRun } from "../../src/services/runHistory.ts";

const KEY = "turn";
const user: HistoryRow = { role: "user", content: "hello", idempotencyKey: `${KEY}:user`, __openclaw: {} };
const row = (more: Partial<HistoryRow>): HistoryRow => ({ role: "assistant", ...more, __openclaw: { runId: KEY } });

test("an aborted run is broken, with all that it had said, in the pieces in which it was said", () => {
  const rows = [
    user,
    row({ content: [{ type: "text", text: "Let me look." }] }),
    row({ content: [{ type: "toolCall" }], stopReason: "toolUse" }),
    row({ content: "Let me look.It is", stopReason: "stop", provider: "openclaw", openclawAbort: { aborted: true } }),
  ];
  expect(readRun(rows, KEY)).toEqual({ kind: "broken", key: KEY, text: "Let me look.\n\nIt is", usage: null });
});

test("of an aborted run the tokens of the model calls that had ended are known", () => {
  const usage = { input: 700, output: 30, cost: { total: 0.000047 } };
  const rows = [
    user,
    row({ content: [{ type: "text", text: "Let me look." }], stopReason: "toolUse", usage }),
    row({
      content: "Let me look.It is",
      stopReason: "stop",
      provider: "openclaw",
      openclawAbort: { aborted: true },
      usage: { input: 0, output: 0, cost: { total: 0 } },
    }),
  ];
  expect(readRun(rows, KEY)).toMatchObject({ usage: { inputTokens: 700, outputTokens: 30, costMicroUsd: 47 } });
});

test("of a failed run only what the model said counts, not the gateway's note", () => {
  const rows = [
    user,
    row({ content: "First." }),
    row({ content: "The agent run failed before producing a reply.", stopReason: "error" }),
  ];
  expect(readRun(rows, KEY)).toEqual({ kind: "broken", key: KEY, text: "First.", usage: null });
});

test("an answer that is followed from the middle shows nothing behind what was not heard", () => {
  const answer = emptyAnswer();
  restartAnswer(answer, "First.");
  const say = (text: string, item: number) => addEvent(answer, { kind: "text", runId: KEY, itemId: `a:${item}`, text });
  expect(say("Second.", 2)).toBe("First.\n\nSecond.");
  restartAnswer(answer, "First.\n\nSecond.");
  addEvent(answer, { kind: "tool", runId: KEY });
  expect(say("Fourth.", 4)).toBe("");
  restartAnswer(answer, "First.\n\nSecond.\n\nThird.");
  expect(say("Fourth.", 4)).toBe("\n\nThird.\n\nFourth.");
});
