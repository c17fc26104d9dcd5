import type { FakeGateway } from "./gateway.ts";

export type Json = Record<string, unknown>;
/** A frame as it came over the wire. */
export type Frame = {
  type: string;
  id?: string;
  ok?: boolean;
  event?: string;
  seq?: number;
  payload: Json;
  error?: Json;
};
/** A connection in a test's hand; `event` resolves with the first frame, past or future, that is wanted. */
export type Client = {
  call: (method: string, params: Json) => Promise<Frame>;
  event: (wanted: (frame: Frame) => boolean) => Promise<Frame>;
  events: Frame[];
  hello: Frame;
  closed: Promise<number>;
};

const readWrite = ["operator.read", "operator.write"];

/** Connects to the gateway; `hello` is the answer to the first request (`first`, usually `connect`). */
export function connectRaw(
  gateway: FakeGateway,
  options: { scopes?: string[]; caps?: string[]; token?: string; first?: string } = {},
) {
  const { scopes = readWrite, caps = [], token = "secret", first = "connect" } = options;
  const socket = new WebSocket(gateway.url);
  const pending = new Map<string, (frame: Frame) => void>();
  const waiters: { wanted: (frame: Frame) => boolean; resolve: (frame: Frame) => void }[] = [];
  const events: Frame[] = [];
  const closed = Promise.withResolvers<number>();
  let sent = 0;
  const call = (method: string, params: Json) => {
    const { promise, resolve } = Promise.withResolvers<Frame>();
    pending.set(String(++sent), resolve);
    socket.send(JSON.stringify({ type: "req", id: String(sent), method, params }));
    return promise;
  };
  const event = (wanted: (frame: Frame) => boolean) => {
    const seen = events.find(wanted);
    if (seen) return Promise.resolve(seen);
    const { promise, resolve } = Promise.withResolvers<Frame>();
    waiters.push({ wanted, resolve });
    return promise;
  };
  const ready = Promise.withResolvers<Client>();
  socket.onclose = (close) => closed.resolve(close.code);
  socket.onmessage = (message) => {
    const frame = JSON.parse(String(message.data)) as Frame;
    if (frame.type === "res") return pending.get(frame.id!)?.(frame);
    if (frame.event === "connect.challenge") {
      const client = { id: "gateway-client", version: "0.1.0", platform: "linux", mode: "backend" };
      const params = { minProtocol: 4, maxProtocol: 4, client, role: "operator", scopes, caps, auth: { token } };
      return void call(first, params).then((hello) =>
        ready.resolve({ call, event, events, hello, closed: closed.promise }),
      );
    }
    events.push(frame);
    for (const waiter of waiters.filter((one) => one.wanted(frame))) waiter.resolve(frame);
  };
  return ready.promise;
}
