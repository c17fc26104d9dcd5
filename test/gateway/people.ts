import { join } from "node:path";
import type { ServerFrame } from "../../src/protocol/chat.ts";
import type { AssistantBody } from "../../src/protocol/api.ts";
import { messageText, personText } from "../fakes/projectContext.ts";
import type { ChatRequest } from "../fakes/openai.ts";
import type { Stack } from "./realGateway.ts";

type MessageFrame = Extract<ServerFrame, { type: "message" }>;

/** Waits until `check` gives something other than null, undefined or false; throws after `withinMs`. */
export async function until<T>(what: string, check: () => T | Promise<T>, withinMs = 30_000): Promise<NonNullable<T>> {
  const deadline = Date.now() + withinMs;
  for (;;) {
    const found = await check();
    if (found !== null && found !== undefined && found !== false) return found;
    if (Date.now() > deadline) throw new Error(`Waited ${withinMs} ms in vain: ${what}.`);
    await Bun.sleep(20);
  }
}

export const PASSWORD = "correct horse battery";

/** A person with one awake assistant. */
export interface Person {
  userId: string;
  token: string;
  assistantId: string;
  agentId: string;
  /** The assistant's folder in the gateway. */
  workspace: string;
}

/** Signs somebody up with the largest plan, creates the assistant and waits until the gateway has it. */
export async function createPerson(stack: Stack): Promise<Person> {
  const email = `${crypto.randomUUID()}@example.com`;
  const body = { email, password: PASSWORD };
  const signedIn = await request(stack, "POST", "/api/auth/signup", "", body);
  const { access_token: token, user } = signedIn as { access_token: string; user: { id: string } };
  await stack.sql`insert into subscriptions (user_id, plan, source) values (${user.id}, 'premium', 'grant')`;
  const { id, agent_id: agentId } = (await request(stack, "POST", "/api/assistants", token, {})) as AssistantBody;
  await waitForState(stack, id, "awake");
  return { userId: user.id, token, assistantId: id, agentId, workspace: join(stack.dir, "workspaces", agentId) };
}

export async function waitForState(stack: Stack, assistantId: string, state: string): Promise<void> {
  await until(`the assistant is ${state}`, async () => {
    const [row] = await stack.sql<{ state: string }[]>`select state from assistants where id = ${assistantId}`;
    return row?.state === state;
  });
}

/** Calls the HTTP API; throws with the answer's text when it is not a success. */
export async function request(
  stack: Stack,
  method: string,
  path: string,
  token: string,
  body?: object,
): Promise<unknown> {
  const response = await fetch(stack.url() + path, {
    method,
    headers: { "content-type": "application/json", authorization: `Bearer ${token}` },
    ...(body ? { body: JSON.stringify(body) } : {}),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
  return text === "" ? null : JSON.parse(text);
}

/** A person's open chat socket. */
export interface Chat {
  frames: ServerFrame[];
  /** Sends a message; resolves with its turn when it is acknowledged. */
  send(text: string): Promise<string>;
  /** The stored answer to a turn. */
  answerTo(turnId: string): Promise<MessageFrame>;
  /** `send` and `answerTo`. */
  say(text: string): Promise<MessageFrame>;
  /** What was streamed of a turn's answer up to now. */
  streamed(turnId: string): string;
  close(): void;
}

/** Opens the chat of a person's assistant, from the message after `afterSeq` where given. */
export async function openChat(stack: Stack, person: Person, afterSeq?: number): Promise<Chat> {
  const after = afterSeq === undefined ? "" : `&after_seq=${afterSeq}`;
  const url = `${stack.url().replace("http", "ws")}/ws/chat?agent_id=${person.agentId}${after}`;
  const socket = new WebSocket(url, ["reef.v1", `bearer.${person.token}`]);
  const frames: ServerFrame[] = [];
  socket.onmessage = (event) => void frames.push(JSON.parse(String(event.data)) as ServerFrame);
  const find = <T extends ServerFrame["type"]>(
    type: T,
    wanted: (frame: Extract<ServerFrame, { type: T }>) => boolean,
  ) =>
    frames.find(
      (frame): frame is Extract<ServerFrame, { type: T }> =>
        frame.type === type && wanted(frame as Extract<ServerFrame, { type: T }>),
    );
  const chat: Chat = {
    frames,
    async send(text) {
      const clientId = crypto.randomUUID();
      socket.send(JSON.stringify({ type: "message", content: text, client_id: clientId }));
      return (await until("the message is acknowledged", () => find("ack", (ack) => ack.client_id === clientId)))
        .turn_id;
    },
    answerTo: (turnId) =>
      until("the turn is answered", () =>
        find("message", (message) => message.turn_id === turnId && message.role === "assistant"),
      ),
    say: async (text) => chat.answerTo(await chat.send(text)),
    streamed: (turnId) =>
      frames.flatMap((frame) => (frame.type === "chunk" && frame.turn_id === turnId ? [frame.content] : [])).join(""),
    close: () => socket.close(),
  };
  await until("the chat is open", () => find("connected", () => true));
  return chat;
}

/** What the person said last, as the model got it: without the gateway's time stamp and our U+2060. */
export function lastSaid(asked: ChatRequest): string {
  return personText(messageText(asked.messages.findLast((message) => message.role === "user")));
}

/** How many messages of a person in this request hold `text`. */
export function timesSaid(asked: ChatRequest, text: string): number {
  return asked.messages.filter((message) => message.role === "user" && messageText(message).includes(text)).length;
}

/** What the tools answered since the person's last message. */
export function toolResults(asked: ChatRequest): string[] {
  const from = asked.messages.findLastIndex((message) => message.role === "user");
  return asked.messages.slice(from + 1).flatMap((message) => (message.role === "tool" ? [messageText(message)] : []));
}

/** Today's count of a person's messages, and the reservations by status. */
export async function readUsage(stack: Stack, person: Person): Promise<{ used: number; statuses: string[] }> {
  const [day] = await stack.sql<{ used: number }[]>`
    select coalesce(sum(text_messages), 0)::int as used from daily_usage where user_id = ${person.userId}`;
  const logs = await stack.sql<{ status: string }[]>`
    select status from usage_logs where user_id = ${person.userId} order by id`;
  return { used: day?.used ?? 0, statuses: logs.map((log) => log.status) };
}

/** Everything that Reef stored of a person's conversation, as one text. */
export async function readRows(stack: Stack, person: Person): Promise<string> {
  const messages = await stack.sql`select * from messages where assistant_id = ${person.assistantId}`;
  const turns = await stack.sql`select * from turns where assistant_id = ${person.assistantId}`;
  return JSON.stringify([messages, turns]);
}
