import { newId } from "../src/lib/ids.ts";
import { Waiting, type ChatClient } from "./chatClient.ts";
import type { Person } from "./people.ts";

interface Frame {
  type: string;
  id?: string;
  ok?: boolean;
  event?: string;
  error?: { message: string };
  payload?: {
    runId?: string;
    sessionKey?: string;
    stream?: string;
    state?: string;
    errorMessage?: string;
    data?: { delta?: string };
  };
}

/** A connection of our own straight to the gateway, with a client for each person on it: what a relay can't beat. */
export interface DirectGateway {
  clientOf(person: Person): ChatClient;
  close(): void;
}

/** Connects to a gateway, real or not, with nothing between. */
export function connectDirectly(url: string, token: string): Promise<DirectGateway> {
  const socket = new WebSocket(url.replace(/^http/, "ws"));
  const { promise, resolve, reject } = Promise.withResolvers<DirectGateway>();
  const waiting = new Map<string, Waiting>();
  let requests = 0;
  const call = (method: string, params: object) => {
    requests += 1;
    socket.send(JSON.stringify({ type: "req", id: String(requests), method, params }));
  };
  const gateway: DirectGateway = {
    clientOf: (person) => ({
      turn(content) {
        const key = newId();
        const turn = new Waiting();
        waiting.set(key, turn);
        call("chat.send", { sessionKey: `agent:${person.agentId}:app`, message: content, idempotencyKey: key });
        return turn.promise;
      },
      close: () => undefined,
    }),
    close: () => socket.close(),
  };
  socket.onmessage = (message) => {
    const frame = JSON.parse(String(message.data)) as Frame;
    if (frame.event === "connect.challenge") return call("connect", connectParams(token));
    if (frame.type === "res" && frame.id === "1") {
      if (frame.ok) return resolve(gateway);
      return reject(new Error(frame.error?.message));
    }
    return hear(frame, waiting);
  };
  socket.onclose = (event) => reject(new Error(`the gateway closed the connection: ${event.code} ${event.reason}`));
  return promise;
}

function hear({ event, payload = {} }: Frame, waiting: Map<string, Waiting>): void {
  const turn = waiting.get(payload.runId ?? "");
  if (!turn) return;
  if (event === "agent" && payload.stream === "assistant") return turn.text(payload.data?.delta ?? "");
  if (event !== "chat") return;
  if (payload.state === "final") {
    waiting.delete(payload.runId ?? "");
    turn.end();
  } else if (payload.state === "error" || payload.state === "aborted") {
    turn.broken(`the gateway's run ended: ${payload.state} ${payload.errorMessage ?? ""}`);
  }
}

function connectParams(token: string) {
  return {
    minProtocol: 4,
    maxProtocol: 4,
    client: { id: "gateway-client", version: "0.1.0", platform: "linux", mode: "backend" },
    role: "operator",
    scopes: ["operator.read", "operator.write"],
    caps: [],
    auth: { token },
  };
}
