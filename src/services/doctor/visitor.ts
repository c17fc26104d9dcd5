import { randomBytes } from "node:crypto";
import type { ServerFrame } from "../../protocol/chat.ts";
import { CHAT_SUBPROTOCOL } from "../../protocol/chat.ts";
import { newId } from "../../lib/ids.ts";

/*
 * A visitor: an account of the doctor's own, which signs up, talks and deletes itself by the same addresses as everybody.
 * Its mail address can't exist (.invalid), so no mail goes anywhere; what it says is counted in its own free day, nobody
 * else's, and is erased with it.
 */

export interface Visitor {
  agentId: string;
  token: string;
  /** Says one thing over a socket of its own; resolves with the answer and every frame that came. */
  say(text: string, signal: AbortSignal): Promise<Heard>;
}
export interface Heard {
  answer: string;
  /** From the message to the first piece of the answer, and to its end. */
  firstMs: number;
  totalMs: number;
  frames: ServerFrame[];
}

/** The API said no: its code, never more. */
export class VisitError extends Error {
  readonly code: string;
  constructor(what: string, code: string) {
    super(`${what}: ${code}`);
    this.name = "VisitError";
    this.code = code;
  }
}

const REQUEST_MS = 15_000;

/** Lets a visitor in, has it do something, and takes its account away again, whatever happened. Throws VisitError. */
export async function withVisitor<T>(url: string, visit: (visitor: Visitor) => Promise<T>): Promise<T> {
  const id = newId();
  const password = randomBytes(18).toString("base64url");
  const account = { email: `doctor-${id}@doctor.invalid`, password, device_name: "reef doctor" };
  const signedUp = await ask(url, "POST", "/api/auth/signup", "sign-up", account);
  const token = signedUp.access_token;
  if (token === undefined) throw new VisitError("sign-up", "gave no token");
  try {
    const made = await ask(url, "POST", "/api/assistants", "a first assistant", {}, token);
    const agentId = made.agent_id ?? "";
    return await visit({ agentId, token, say: (text, signal) => say({ url, token, agentId }, text, signal) });
  } finally {
    await ask(url, "DELETE", "/api/user/account", "deleting the visitor's account", { password }, token);
  }
}

type Answer = Partial<Record<"access_token" | "agent_id" | "code", string>>;

async function ask(url: string, method: string, path: string, what: string, body: object, token?: string) {
  const response = await fetch(url + path, {
    method,
    headers: { "content-type": "application/json", ...(token ? { authorization: `Bearer ${token}` } : {}) },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(REQUEST_MS),
  }).catch(() => null);
  if (!response) throw new VisitError(what, `no answer at ${url}`);
  const answer = (await response.json().catch(() => ({}))) as Answer;
  if (!response.ok) throw new VisitError(what, `${response.status} ${answer.code ?? ""}`.trim());
  return answer;
}

type Door = { url: string; token: string; agentId: string };

function say(door: Door, text: string, signal: AbortSignal): Promise<Heard> {
  const address = `${door.url.replace(/^http/, "ws")}/ws/chat?agent_id=${door.agentId}`;
  const { promise, resolve, reject } = Promise.withResolvers<Heard>();
  const socket = new WebSocket(address, [CHAT_SUBPROTOCOL, `bearer.${door.token}`]);
  const frames: ServerFrame[] = [];
  const began = performance.now();
  const since = () => Math.round(performance.now() - began);
  let firstMs = 0;
  const stop = () => reject(new VisitError("chat", "no answer in time"));
  signal.addEventListener("abort", stop);
  socket.onmessage = ({ data }) => {
    const frame = JSON.parse(String(data)) as ServerFrame;
    frames.push(frame);
    if (frame.type === "connected") socket.send(JSON.stringify({ type: "message", content: text, client_id: newId() }));
    if (frame.type === "chunk") firstMs ||= since();
    if (frame.type === "error") reject(new VisitError("chat", frame.code));
    if (frame.type === "message" && frame.role === "assistant")
      resolve({ answer: frame.content, firstMs: firstMs || since(), totalMs: since(), frames });
  };
  socket.onclose = ({ code }) => reject(new VisitError("chat", `the socket was closed (${code})`));
  return promise.finally(() => {
    signal.removeEventListener("abort", stop);
    socket.close();
  });
}
