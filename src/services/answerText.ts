import type { RunEvent } from "../clients/gatewayFrames.ts";

/** Between two model messages of one answer, e.g. before and after a tool call. */
const SEPARATOR = "\n\n";

/**
 * The text of one answer while it is written. A model message is named `<attempt>:<n>`: another n is the next message,
 * another attempt means that the gateway retries, and what the broken attempt had begun is void.
 * `sent` is what clients have seen: text can't be unsaid, so after a retry that says something else nothing more is
 * sent until the stored message, which is authoritative.
 */
export interface AnswerText {
  closed: string;
  current: string;
  itemId: string;
  sent: string;
}

export function emptyAnswer(): AnswerText {
  return { closed: "", current: "", itemId: "", sent: "" };
}

export function textOf(answer: AnswerText): string {
  return [answer.closed, answer.current].filter((part) => part !== "").join(SEPARATOR);
}

/** All that was said, as far as anybody knows: what clients have seen of an earlier run, what the history tells. */
export function saidIn(answer: AnswerText, told = ""): string {
  const known = [textOf(answer), answer.sent, told];
  return known.reduce((longest, text) => (text.length > longest.length ? text : longest));
}

/** Takes an event in; returns the text that clients have not seen yet ("" for none) and moves `sent` on. */
export function addEvent(answer: AnswerText, event: RunEvent): string {
  if (event.kind === "text") {
    const [attempt] = event.itemId.split(":");
    const [previous] = answer.itemId.split(":");
    if (answer.itemId !== event.itemId && previous === attempt) closeMessage(answer);
    answer.itemId = event.itemId;
    answer.current = event.text;
  } else if (event.kind === "preamble" && event.text.length > answer.current.length) {
    answer.current = event.text;
  } else if (event.kind === "tool") {
    closeMessage(answer);
  }
  const text = textOf(answer);
  if (!text.startsWith(answer.sent)) return "";
  const fresh = text.slice(answer.sent.length);
  answer.sent = text;
  return fresh;
}

/** The run begins anew (the gateway had lost it): what it said is void, what clients have seen stays seen. */
export function restartAnswer(answer: AnswerText): void {
  Object.assign(answer, { closed: "", current: "", itemId: "" });
}

function closeMessage(answer: AnswerText): void {
  answer.closed = textOf(answer);
  answer.current = "";
}
