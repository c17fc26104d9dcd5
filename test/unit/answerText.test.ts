import { expect, test } from "bun:test";
import type { RunEvent } from "../../src/clients/gatewayFrames.ts";
import { neutralizeCommands } from "../../src/clients/gateway.ts";
import { addEvent, emptyAnswer, restartAnswer, textOf } from "../../src/services/answerText.ts";
import { readRun } from "../../src/services/runHistory.ts";

const text = (itemId: string, said: string): RunEvent => ({ kind: "text", runId: "r", itemId, text: said });
const tool: RunEvent = { kind: "tool", runId: "r" };

test("messages of one turn are told apart; chunks join to the whole", () => {
  const answer = emptyAnswer();
  const chunks = [
    text("a:1", "Let me"),
    text("a:1", "Let me write."),
    tool,
    text("a:2", "Done."),
    text("a:2", "Done. Bye."),
  ].map((event) => addEvent(answer, event));
  expect(textOf(answer)).toBe("Let me write.\n\nDone. Bye.");
  expect(chunks.join("")).toBe(textOf(answer));
});

test("text that only the preamble event tells is not lost", () => {
  const answer = emptyAnswer();
  for (const event of [{ kind: "preamble", runId: "r", text: "Let me look." } as const, tool, text("a:2", "Found.")])
    addEvent(answer, event);
  expect(textOf(answer)).toBe("Let me look.\n\nFound.");
});

test("a retried attempt is void; the same words again are not sent twice; other words wait for the stored message", () => {
  const same = emptyAnswer();
  expect(addEvent(same, text("a:1", "Some words"))).toBe("Some words");
  expect(addEvent(same, text("b:1", "Some"))).toBe("");
  expect(addEvent(same, text("b:1", "Some words more"))).toBe(" more");
  const other = emptyAnswer();
  addEvent(other, text("a:1", "Some words"));
  expect(addEvent(other, text("b:1", "Quite different and longer"))).toBe("");
  expect(textOf(other)).toBe("Quite different and longer");
});

test("a run that begins anew keeps what clients have seen", () => {
  const answer = emptyAnswer();
  addEvent(answer, text("a:1", "First part"));
  restartAnswer(answer);
  expect(addEvent(answer, text("c:1", "First part, second"))).toBe(", second");
});

test("history: absent, unanswered, answered with the usage of all its model calls, broken", () => {
  const user = { role: "user", content: "x", idempotencyKey: "k:user", __openclaw: {} };
  const usage = (input: number) => ({ input, output: 1, cost: { total: 0.000001 } });
  const row = (id: string, said: string, stopReason: string, input: number) => ({
    role: "assistant",
    content: [{ type: "text", text: said }],
    stopReason,
    usage: usage(input),
    __openclaw: { id, runId: "k" },
  });
  expect(readRun([], "k")).toEqual({ kind: "absent" });
  expect(readRun([user], "k")).toEqual({ kind: "unanswered", key: "k", begun: false, text: "" });
  const begun = readRun([user, row("1", "Let me.", "toolUse", 10)], "k");
  expect(begun).toEqual({ kind: "unanswered", key: "k", begun: true, text: "Let me." });
  const answered = readRun([user, row("1", "Let me.", "toolUse", 10), row("2", "Done.", "stop", 20)], "k");
  expect(answered).toEqual({
    kind: "answered",
    key: "k",
    text: "Let me.\n\nDone.",
    usage: { inputTokens: 30, outputTokens: 2, costMicroUsd: 2 },
  });
  const broken = readRun([user, row("1", "The agent run failed", "error", 0)], "k");
  expect(broken).toEqual({
    kind: "broken",
    key: "k",
    text: "",
    usage: { inputTokens: 0, outputTokens: 1, costMicroUsd: 1 },
  });
});

test("history: a turn that was sent again under another key is told by that one; other turns are not it", () => {
  const user = (key: string) => ({ role: "user", content: "x", idempotencyKey: `${key}:user`, __openclaw: {} });
  const said = (runId: string) => ({ role: "assistant", content: "Hi.", stopReason: "stop", __openclaw: { runId } });
  expect(readRun([user("k.1"), said("k.1")], "k")).toMatchObject({ kind: "answered", key: "k.1", text: "Hi." });
  expect(readRun([user("k1"), said("k1")], "k")).toEqual({ kind: "absent" });
});

test("commands become plain text", () => {
  expect(neutralizeCommands("/a and /b\n/c a/d")).toBe("\u2060\u2060/a and \u2060/b\n\u2060/c a/d");
});
