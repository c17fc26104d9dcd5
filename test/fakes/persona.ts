import { editBetween } from "./fileEdits.ts";
import type { Answer, ChatRequest, Step } from "./openai.ts";
import { readKnowledge } from "./personaFacts.ts";
import { type Change, emptyNotes, nextQuestion, notesAfter, type Outcome, questions } from "./personaPhrases.ts";
import { understand } from "./personaTalk.ts";
import { type NoteName, readTurn, type ToolRun, type TurnView } from "./projectContext.ts";

export type PersonaOptions = {
  /** Pause between two words, shortened in long answers; 0 streams at once. Default 25. */
  wordDelayMs?: number;
};

const longestAnswerMs = 1200;
const writeAttempts = 2;

function* stream(text: string, wordDelayMs: number): Iterable<Step> {
  const words = text.match(/\s*\S+|\s+$/g) ?? [text];
  const delayMs = Math.min(wordDelayMs, Math.floor(longestAnswerMs / words.length));
  for (const word of words) {
    if (delayMs > 0) yield { delayMs };
    yield { text: word };
  }
}

type NotePlan = "done" | "failed" | { call: Step };

/** The next tool call for one note, seen what was already tried in this turn. */
function planNote(note: NoteName, change: Change["apply"], view: TurnView): NotePlan {
  const runs = view.toolRuns.filter((run) => run.note === note);
  const writes = runs.filter((run) => run.tool !== "read");
  if (writes.some((run) => !run.failed)) return "done";
  if (writes.length >= writeAttempts) return "failed";
  const lastRead = runs.findLast((run) => run.tool === "read");
  const inPrompt = view.notes[note];
  // What the prompt shows can be cut short or old, so after a failed edit only the file itself is believed.
  const needsRead = lastRead === undefined && (writes.length > 0 || inPrompt === undefined);
  if (needsRead) return { call: { tool: "read", arguments: { path: `${note}.md`, optional: true } } };
  return writeNote(note, change, lastRead, inPrompt ?? "");
}

function writeNote(note: NoteName, change: Change["apply"], read: ToolRun | undefined, inPrompt: string): NotePlan {
  if (read?.failed) return "failed";
  const before = read?.missing ? "" : (read?.result ?? inPrompt);
  if (before.trim() === "") {
    const content = `${change(emptyNotes[note] ?? "")}\n`;
    return { call: { tool: "write", arguments: { path: `${note}.md`, content } } };
  }
  const edit = editBetween(before, change(before));
  if (edit === undefined) return "done";
  return { call: { tool: "edit", arguments: { path: `${note}.md`, edits: [edit] } } };
}

function mergeByNote(changes: readonly Change[]): Map<NoteName, Change["apply"]> {
  const merged = new Map<NoteName, Change["apply"]>();
  for (const { note, apply } of changes) {
    const earlier = merged.get(note);
    merged.set(note, earlier === undefined ? apply : (content) => apply(earlier(content)));
  }
  return merged;
}

function planTurn(view: TurnView, outcome: Outcome): { calls: Step[]; saved: boolean } {
  const changes = mergeByNote(outcome.changes ?? []);
  if (changes.size === 0) return { calls: [], saved: true };
  if (!view.tools.has("edit") || !view.tools.has("read") || !view.tools.has("write"))
    return { calls: [], saved: false };
  const plans = [...changes].map(([note, change]) => planNote(note, change, view));
  const calls = plans.flatMap((plan) => (typeof plan === "object" ? [plan.call] : []));
  return { calls, saved: !plans.includes("failed") };
}

/** Without the file tools the conversation itself is all there is to remember. */
function withHistory(view: TurnView): TurnView {
  if (view.tools.has("edit")) return view;
  const heard = view.earlierTexts.reduce((notes, text) => {
    const earlier = { ...view, notes, text, lastAnswer: "" };
    return notesAfter(notes, understand(earlier).changes ?? []);
  }, view.notes);
  return { ...view, notes: heard };
}

const notSaved = "I could not write that down just now, so I'll only know it in this conversation.";

/**
 * A small scripted model with the manners of a real one. It keeps no state: all it knows is in each request, and what it
 * is told it writes into its notes with the file tools that the request offers.
 */
export function personaAnswer(options: PersonaOptions = {}): Answer {
  const wordDelayMs = options.wordDelayMs ?? 25;
  return function* (request: ChatRequest): Iterable<Step> {
    const view = withHistory(readTurn(request));
    const known = readKnowledge(view.notes);
    const outcome = understand(view);
    const { calls, saved } = planTurn(view, outcome);
    if (calls.length > 0) return yield* calls;
    const say = saved ? outcome.say : `${outcome.say.split(/(?<=[.!?]) /)[0] ?? ""} ${notSaved}`;
    const newborn = view.lastAnswer === "" && known.name === "" && nextQuestion(known) === questions.name;
    const ask = newborn && !outcome.asks ? ` ${questions.name}` : "";
    yield* stream(say + ask, wordDelayMs);
  };
}
