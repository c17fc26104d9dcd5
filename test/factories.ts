import { newId } from "../src/lib/ids.ts";
import type { Starter } from "../src/services/turnEngine.ts";
import { until } from "./harness.ts";

// Tests read answers as they come; their shapes are what is under test.
// oxlint-disable-next-line typescript/no-explicit-any
export type Json = any;

export interface Answer {
  status: number;
  body: Json;
  headers: Headers;
}

export async function call(
  url: string,
  method: string,
  path: string,
  body?: unknown,
  token?: string,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const response = await fetch(url + path, {
    method,
    headers: {
      ...(body === undefined ? {} : { "content-type": "application/json" }),
      ...(token ? { authorization: `Bearer ${token}` } : {}),
      ...headers,
    },
    ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
  });
  const text = await response.text();
  return { status: response.status, body: text === "" ? null : JSON.parse(text), headers: response.headers };
}

export interface TestUser {
  id: string;
  email: string;
  password: string;
  token: string;
  refreshToken: string;
  call(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<Answer>;
}

/** Signs a new person up. */
export async function makeUser(reef: { url: string }): Promise<TestUser> {
  const email = `${newId()}@example.org`;
  const password = "correct horse battery";
  const { body } = await call(reef.url, "POST", "/api/auth/signup", { email, password });
  return {
    id: body.user.id,
    email,
    password,
    token: body.access_token,
    refreshToken: body.refresh_token,
    call: (method, path, json, headers) => call(reef.url, method, path, json, body.access_token, headers),
  };
}

export async function makeAssistant(user: TestUser, body: object = {}): Promise<Json> {
  return (await user.call("POST", "/api/assistants", body)).body;
}

/** In place of the turn engine where nothing is to be answered. */
export const idle: Starter = { claim: async () => [], start: () => undefined };

export interface Chat {
  frames: Json[];
  closed: { code: number; reason: string } | null;
  send(frame: unknown): void;
  say(content: string, clientId?: string): string;
  /** The first frame that fits, waiting for it. */
  next(what: string, fits: (frame: Json) => boolean): Promise<Json>;
  close(): void;
  socket: WebSocket;
}

/** Opens the chat socket and waits for its first frame or its close. */
export async function openChat(reef: { url: string }, token: string, agentId: string, query = ""): Promise<Chat> {
  const socket = new WebSocket(`${reef.url.replace("http", "ws")}/ws/chat?agent_id=${agentId}${query}`, [
    "reef.v1",
    `bearer.${token}`,
  ]);
  const chat: Chat = {
    frames: [],
    closed: null,
    socket,
    send: (frame) =>
      socket.send(typeof frame === "string" || frame instanceof Uint8Array ? frame : JSON.stringify(frame)),
    say(content, clientId = newId()) {
      chat.send({ type: "message", content, client_id: clientId });
      return clientId;
    },
    next: (what, fits) => until(what, () => chat.frames.find(fits)),
    close: () => socket.close(),
  };
  socket.onmessage = (event) => void chat.frames.push(JSON.parse(String(event.data)));
  socket.onclose = (event) => (chat.closed = { code: event.code, reason: event.reason });
  await until("the socket is open or closed", () => chat.frames.length > 0 || chat.closed);
  return chat;
}

export const isAnswer = (frame: Json) => frame.type === "message" && frame.role === "assistant";
