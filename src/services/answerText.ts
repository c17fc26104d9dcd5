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
  /** Followed from the middle: of the message that is being said nothing was heard yet. */
  deaf: boolean;
  /** Something before the next text is missing here: clients get no more until it is known. */
  gap: boolean;
}

export function emptyAnswer(): AnswerText {
  return { closed: "", current: "", itemId: "", sent: "", deaf: false, gap: false };
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
    answer.deaf = false;
  } else if (event.kind === "preamble" && event.text.length > answer.current.length) {
    answer.current = event.text;
  } else if (event.kind === "tool") {
    if (answer.deaf && answer.current === "") answer.gap = true;
    closeMessage(answer);
  }
  const text = textOf(answer);
  if (answer.gap || !text.startsWith(answer.sent)) return "";
  const fresh = text.slice(answer.sent.length);
  answer.sent = text;
  return fresh;
}

/**
 * The run begins anew (the gateway had lost it), or is followed from here on: then `closed` is what it has said before
 * in whole messages. What clients have seen stays seen.
 */
export function restartAnswer(answer: AnswerText, closed?: string): void {
  Object.assign(answer, { closed: closed ?? "", current: "", itemId: "", deaf: closed !== undefined, gap: false });
}

function closeMessage(answer: AnswerText): void {
  answer.closed = textOf(answer);
  answer.current = "";
}
