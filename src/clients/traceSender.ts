import { ROOT_CONTEXT, SpanKind, SpanStatusCode, trace, TraceFlags, type Context } from "@opentelemetry/api";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { AlwaysOnSampler, BatchSpanProcessor, TracerProvider, type SpanExporter } from "@opentelemetry/sdk-trace";
import type { Log } from "../lib/log.ts";
import type { RemoteSpan } from "../lib/trace.ts";
import type { PlacedSpan } from "./traces.ts";

/** What may wait to be sent; more is dropped, so that a collector that is away costs at most this. */
const MOST_WAITING = 2048;
const MOST_AT_ONCE = 512;
const EVERY_MS = 1_000;
const SEND_TIMEOUT_MS = 5_000;

const KINDS = { server: SpanKind.SERVER, client: SpanKind.CLIENT, internal: SpanKind.INTERNAL };

/** Sends spans by OTLP over HTTP, as JSON, some at a time. Loaded only where a collector is set (clients/traces.ts). */
export function createSender(input: { endpoint: string; log: Log; host: string; processId: string }) {
  const url = `${input.endpoint.replace(/\/+$/, "")}/v1/traces`;
  const ids = { traceId: "", spanId: "" };
  const provider = new TracerProvider({
    sampler: new AlwaysOnSampler(),
    // Our ids: a turn's trace has the turn's, in whatever process.
    idGenerator: { generateTraceId: () => ids.traceId, generateSpanId: () => ids.spanId },
    resource: resourceFromAttributes({
      "service.name": "reef",
      "service.instance.id": input.processId,
      "host.name": input.host,
    }),
    spanProcessors: [
      new BatchSpanProcessor({
        exporter: complainOnce(new OTLPTraceExporter({ url, timeoutMillis: SEND_TIMEOUT_MS }), input.log),
        maxQueueSize: MOST_WAITING,
        maxExportBatchSize: MOST_AT_ONCE,
        scheduledDelayMillis: EVERY_MS,
        exportTimeoutMillis: 2 * SEND_TIMEOUT_MS,
      }),
    ],
  });
  const tracer = provider.getTracer("reef");
  return {
    send(span: PlacedSpan): void {
      ids.traceId = span.traceId;
      ids.spanId = span.spanId;
      const { parentId, traceId, link } = span;
      const parent = parentId === null ? ROOT_CONTEXT : contextOf({ traceId, spanId: parentId });
      const written = tracer.startSpan(
        span.name,
        {
          kind: KINDS[span.kind],
          startTime: span.startMs,
          attributes: span.attributes,
          links: link ? [{ context: { ...link, traceFlags: TraceFlags.SAMPLED, isRemote: true } }] : [],
        },
        parent,
      );
      if (span.failed) written.setStatus({ code: SpanStatusCode.ERROR });
      written.end(Math.max(span.startMs, span.endMs));
    },
    close: () => provider.shutdown(),
  };
}

function contextOf(parent: RemoteSpan): Context {
  return trace.setSpanContext(ROOT_CONTEXT, { ...parent, traceFlags: TraceFlags.SAMPLED, isRemote: true });
}

/** Says once that the collector does not take spans, and once that it does again. */
function complainOnce(exporter: SpanExporter, log: Log): SpanExporter {
  let failing = false;
  return {
    export: (spans, told) =>
      exporter.export(spans, (result) => {
        const failed = result.error !== undefined;
        if (failed && !failing) log.warn({ err: result.error }, "the collector takes no traces; some are lost");
        if (!failed && failing) log.info("the collector takes traces again");
        failing = failed;
        told(result);
      }),
    shutdown: () => exporter.shutdown(),
    forceFlush: () => exporter.forceFlush?.() ?? Promise.resolve(),
  };
}
