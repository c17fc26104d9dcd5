import type { ChatMessage, ChatRequest } from "./openai.ts";

export type NoteName = "AGENTS" | "SOUL" | "IDENTITY" | "USER" | "MEMORY";
/** One tool call of the turn that is being answered, with what came back; no result means that it is still open. */
export type ToolRun = { tool: string; note: NoteName | undefined; failed: boolean; missing: boolean; result: string };

/** All that a stateless model knows of a turn, taken out of the request that the gateway sends. */
export type TurnView = {
  /** The workspace files as the system prompt shows them; a file that is not there is absent. */
  notes: Partial<Record<NoteName, string>>;
  /** What the person wrote, without the gateway's time stamp and U+2060 marks. */
  text: string;
  images: number;
  /** The gateway's time stamp, such as `Mon 2026-11-23 01:57 UTC`; "" when there is none. */
  now: string;
  earlierTexts: string[];
  /** The assistant's message before this turn, "" at the start of a session. */
  lastAnswer: string;
  tools: Set<string>;
  toolRuns: ToolRun[];
};

const heading = /^## (?:.*[/\\])?(AGENTS|SOUL|IDENTITY|USER|MEMORY)\.md$/;
const stamp = /^\s*\[([A-Z][a-z]{2} \d{4}-\d{2}-\d{2} \d{2}:\d{2}[^\]\n]{0,12})\] ?/;
const internalBlock = /<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>[\s\S]*?<<<END_OPENCLAW_INTERNAL_CONTEXT>>>/g;

/** The text of a message, its parts joined by line breaks. */
export function messageText(message: ChatMessage | undefined): string {
  if (typeof message?.content === "string") return message.content;
  return (message?.content ?? []).map((part) => part.text ?? "").join("\n");
}

/** Takes out what the gateway put around a person's words. */
export function personText(raw: string): string {
  return raw.replaceAll("\u2060", "").replace(stamp, "").replace(internalBlock, "").trim();
}

/** The workspace files inside a system prompt, each without white space around it. */
export function readNotes(systemPrompt: string): Partial<Record<NoteName, string>> {
  const notes: Partial<Record<NoteName, string>> = {};
  let current: NoteName | undefined;
  for (const line of systemPrompt.split("\n")) {
    const name = heading.exec(line)?.[1] as NoteName | undefined;
    if (name !== undefined) {
      current = name;
      notes[name] = "";
    } else if (line.startsWith("<!--") && line.includes("openclaw:")) current = undefined;
    else if (current !== undefined) notes[current] += `${line}\n`;
  }
  for (const name of Object.keys(notes) as NoteName[]) {
    const content = notes[name]?.trim() ?? "";
    if (content.startsWith("[MISSING]")) delete notes[name];
    else notes[name] = content;
  }
  return notes;
}

function noteOf(path: unknown): NoteName | undefined {
  return typeof path === "string" ? (/(AGENTS|SOUL|IDENTITY|USER|MEMORY)\.md$/.exec(path)?.[1] as NoteName) : undefined;
}

function parseObject(text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? { ...value } : {};
  } catch {
    return {};
  }
}

function readToolRuns(messages: ChatMessage[]): ToolRun[] {
  return messages
    .flatMap((message) => message.tool_calls ?? [])
    .map((call) => {
      const answer = messages.find((message) => message.role === "tool" && message.tool_call_id === call.id);
      const result = messageText(answer);
      return {
        tool: call.function.name,
        note: noteOf(parseObject(call.function.arguments).path),
        failed: answer === undefined || parseObject(result).status === "error",
        missing: /^Optional file not found|"error": "File not found/m.test(result),
        result,
      };
    });
}

/** Reads a request of the gateway (or of any other client) into what the persona needs to know. */
export function readTurn(request: ChatRequest): TurnView {
  const { messages } = request;
  const people = messages.filter((message) => message.role === "user" && personText(messageText(message)) !== "");
  // A picture without a word is a turn of its own, so the last user message counts even when it has no text.
  const last = messages.findLast((message) => message.role === "user");
  const lastIndex = last === undefined ? -1 : messages.lastIndexOf(last);
  const before = messages.slice(0, Math.max(lastIndex, 0));
  const rawText = messageText(last);
  const system = messages.filter((message) => message.role === "system" || message.role === "developer");
  const parts = Array.isArray(last?.content) ? last.content : [];
  return {
    notes: readNotes(system.map(messageText).join("\n")),
    text: personText(rawText),
    images: parts.filter((part) => part.type === "image_url").length,
    now: stamp.exec(rawText.replaceAll("\u2060", ""))?.[1] ?? "",
    earlierTexts: people.filter((message) => message !== last).map((message) => personText(messageText(message))),
    lastAnswer: messageText(before.findLast((m) => m.role === "assistant" && messageText(m).trim() !== "")),
    tools: new Set((request.tools ?? []).map((offer) => offer.function.name)),
    toolRuns: readToolRuns(messages.slice(lastIndex + 1)),
  };
}
