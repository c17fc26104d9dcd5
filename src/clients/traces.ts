import { AsyncLocalStorage } from "node:async_hooks";
import { hostname } from "node:os";
import type { Config } from "../config.ts";
import type { Log } from "../lib/log.ts";
import {
  newSpanId,
  newTraceId,
  NO_TRACES,
  readTraceparent,
  spanIdOf,
  traceIdOf,
  type RemoteSpan,
  type Span,
  type TraceParent,
  type TraceRoot,
  type Traces,
} from "../lib/trace.ts";

/** A span with its place. */
export interface PlacedSpan extends Span {
  traceId: string;
  spanId: string;
  parentId: string | null;
}

/** Where spans go. */
interface Sender {
  send(span: PlacedSpan): void;
  close(): Promise<void>;
}

/** Traces to OTEL_EXPORTER_OTLP_ENDPOINT; without it nothing is even loaded. */
export function createTraces(config: Pick<Config, "OTEL_EXPORTER_OTLP_ENDPOINT">, log: Log, processId: string): Traces {
  const endpoint = config.OTEL_EXPORTER_OTLP_ENDPOINT;
  if (endpoint === undefined) return NO_TRACES;
  let sender: Sender | null = null;
  const loading = import("./traceSender.ts").then(({ createSender }) => {
    sender = createSender({ endpoint, log, host: hostname(), processId });
  });
  loading.catch((err: unknown) => log.error({ err }, "traces can't be sent"));
  return createTracesTo(
    (span) => sender?.send(span),
    () => loading,
    async () => sender?.close(),
  );
}

function createTracesTo(
  send: (span: PlacedSpan) => void,
  ready: () => Promise<void>,
  close: () => Promise<void>,
): Traces {
  const around = new AsyncLocalStorage<TraceParent>();
  const ofTurn = (turnId: string): TraceParent => ({
    add: (span) => send(place(span, traceIdOf(turnId), spanIdOf(turnId, "turn"))),
  });
  return {
    isOn: true,
    ready,
    close,
    begin: (traceparent) => new Root(send, readTraceparent(traceparent)),
    ofTurn,
    tellTurn(turnId, span) {
      const about = { name: "turn", kind: "internal", spanId: spanIdOf(turnId, "turn") } as const;
      send(place({ ...span, ...about }, traceIdOf(turnId), spanIdOf(turnId, "accepted")));
    },
    within: (parent, work) => around.run(parent, work),
    current: () => around.getStore(),
  };
}

function place(span: Span, traceId: string, parentId: string | null): PlacedSpan {
  return { ...span, spanId: span.spanId ?? newSpanId(), traceId, parentId };
}

/** Parts wait until it is known whose trace it is: a turn's, or, at the end, its own. */
class Root implements TraceRoot {
  private readonly startMs = Date.now();
  private traceId: string | null = null;
  private spanId = newSpanId();
  private waiting: Span[] = [];

  constructor(
    private readonly send: (span: PlacedSpan) => void,
    private readonly link: RemoteSpan | null,
  ) {}

  add(span: Span): void {
    if (this.traceId === null) this.waiting.push(span);
    else this.send(place(span, this.traceId, this.spanId));
  }

  join(turnId: string): void {
    if (this.traceId === null) this.decide(traceIdOf(turnId), spanIdOf(turnId, "accepted"));
  }

  end(about: Pick<Span, "name" | "attributes"> & { failed?: boolean }): void {
    if (this.traceId === null) this.decide(newTraceId(), this.spanId);
    const { startMs, spanId, link } = this;
    const span = { ...about, kind: "server", startMs, endMs: Date.now(), spanId, link } as const;
    this.send(place(span, this.traceId!, null));
  }

  private decide(traceId: string, spanId: string): void {
    this.traceId = traceId;
    this.spanId = spanId;
    for (const span of this.waiting.splice(0)) this.add(span);
  }
}
