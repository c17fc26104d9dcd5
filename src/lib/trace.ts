import { createHash, randomBytes } from "node:crypto";

/** Ids, codes, counts and names of routes; never a text, an address or a token. */
export type SpanAttributes = Record<string, string | number | boolean | undefined>;

/** Something that was done, told when it is over. Times are milliseconds since 1970. */
export interface Span {
  name: string;
  kind: "server" | "client" | "internal";
  startMs: number;
  endMs: number;
  attributes: SpanAttributes;
  /** It came to nothing. */
  failed?: boolean;
  /** Deterministic where another process must be able to name it; else a new one. */
  spanId?: string;
  /** A trace of somebody else's that this belongs beside. */
  link?: RemoteSpan | null;
}

export interface RemoteSpan {
  traceId: string;
  spanId: string;
}

/** Where spans are told as parts of: a request, a frame, a turn. */
export interface TraceParent {
  add(span: Span): void;
}

/** What has one trace: an HTTP request, or a frame of the chat. Its spans are told as soon as the trace is known. */
export interface TraceRoot extends TraceParent {
  /** From here on it is the beginning of this turn's trace; the first turn counts. */
  join(turnId: string): void;
  /** Tells the root itself. What is added after this belongs to it all the same. */
  end(span: Pick<Span, "name" | "attributes"> & { failed?: boolean }): void;
}

/** Traces for a collector; where none is set (`isOn` false), nothing is done and nothing is kept. */
export interface Traces {
  readonly isOn: boolean;
  /** Resolves when spans can be sent. */
  ready(): Promise<void>;
  /** Begins a trace. `traceparent` comes from outside: it is linked to, and never decides whose trace this is. */
  begin(traceparent?: string): TraceRoot;
  /** The part of a turn's trace that its processes add to, whichever they are. */
  ofTurn(turnId: string): TraceParent;
  /** Tells a turn itself, under the message or request that was accepted. */
  tellTurn(turnId: string, span: Omit<Span, "name" | "kind">): void;
  /** Does `work`; calls that are timed in it belong to `parent`. */
  within<T>(parent: TraceParent, work: () => T): T;
  /** The root that `work` is done within, if any. */
  current(): Partial<TraceRoot> | undefined;
  /** Sends what waits, and ends. */
  close(): Promise<void>;
}

const nowhere: TraceRoot = { add: () => undefined, join: () => undefined, end: () => undefined };

export const NO_TRACES: Traces = {
  isOn: false,
  ready: () => Promise.resolve(),
  begin: () => nowhere,
  ofTurn: () => nowhere,
  tellTurn: () => undefined,
  within: (_parent, work) => work(),
  current: () => undefined,
  close: () => Promise.resolve(),
};

/** Times a call as a part of what it is made for. */
export async function traced<T>(
  traces: Traces,
  about: { name: string; kind: "client" | "internal"; attributes?: SpanAttributes },
  work: () => Promise<T>,
  describe: (result: T) => SpanAttributes = () => ({}),
): Promise<T> {
  if (!traces.isOn) return work();
  const startMs = Date.now();
  const parent = traces.current() ?? traces.begin();
  const tell = (attributes: SpanAttributes, failed: boolean) =>
    parent.add?.({ ...about, startMs, endMs: Date.now(), attributes: { ...about.attributes, ...attributes }, failed });
  try {
    const result = await work();
    tell(describe(result), false);
    return result;
  } catch (error) {
    tell({ "error.type": nameOf(error) }, true);
    throw error;
  }
}

/** Does something that somebody asked for by a frame, as the root of a trace. */
export async function tracedRoot<T>(
  traces: Traces,
  about: { name: string; attributes: SpanAttributes },
  work: () => Promise<T>,
): Promise<T> {
  if (!traces.isOn) return work();
  const root = traces.begin();
  try {
    const result = await traces.within(root, work);
    root.end(about);
    return result;
  } catch (error) {
    root.end({ ...about, attributes: { ...about.attributes, "error.type": nameOf(error) }, failed: true });
    throw error;
  }
}

/** A failure's code, or its class; its words may quote anything. */
export function nameOf(error: unknown): string {
  if (!(error instanceof Error)) return "unknown";
  const code: unknown = Reflect.get(error, "code");
  return typeof code === "string" && /^[\w-]{1,64}$/.test(code) ? code : error.name;
}

/** A turn's trace is the turn: any process, and any operator, finds one by the other. */
export function traceIdOf(turnId: string): string {
  return turnId.replaceAll("-", "");
}

/** The id of a part of a turn that there is one of. */
export function spanIdOf(turnId: string, part: "accepted" | "turn"): string {
  return createHash("sha256").update(`${turnId} ${part}`).digest("hex").slice(0, 16);
}

export const newTraceId = () => randomBytes(16).toString("hex");
export const newSpanId = () => randomBytes(8).toString("hex");

/** Reads W3C's `traceparent`; null for none, or one that is not valid. */
export function readTraceparent(header: string | undefined): RemoteSpan | null {
  const [, traceId = "", spanId = ""] =
    /^[0-9a-e][0-9a-f]-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:$|-)/.exec(header ?? "") ?? [];
  return /[1-9a-f]/.test(traceId) && /[1-9a-f]/.test(spanId) ? { traceId, spanId } : null;
}
