import { z } from "zod";

const value = z.object({
  stringValue: z.string().optional(),
  intValue: z.union([z.number(), z.string()]).optional(),
  boolValue: z.boolean().optional(),
});
const attributes = z.array(z.object({ key: z.string(), value }));
const bodySchema = z.object({
  resourceSpans: z.array(
    z.object({
      resource: z.object({ attributes }),
      scopeSpans: z.array(
        z.object({
          spans: z.array(
            z.object({
              traceId: z.string().regex(/^[0-9a-f]{32}$/),
              spanId: z.string().regex(/^[0-9a-f]{16}$/),
              parentSpanId: z.string().optional(),
              name: z.string(),
              kind: z.number(),
              startTimeUnixNano: z.string().regex(/^\d+$/),
              endTimeUnixNano: z.string().regex(/^\d+$/),
              attributes,
              links: z.array(z.object({ traceId: z.string(), spanId: z.string() })),
              status: z.object({ code: z.number() }),
            }),
          ),
        }),
      ),
    }),
  ),
});

/** A span as a collector has it. */
export interface CollectedSpan {
  traceId: string;
  spanId: string;
  parentId: string | null;
  name: string;
  failed: boolean;
  startMs: number;
  endMs: number;
  attributes: Record<string, unknown>;
  links: { traceId: string; spanId: string }[];
  /** Of which process it is. */
  instance: unknown;
}

export interface Collector {
  url: string;
  spans: CollectedSpan[];
  /** What was sent, as it came. */
  bodies: string[];
  /** Requests that were begun, also those that are not answered. */
  requests: number;
  /** From now on nothing is answered. */
  hang(): void;
  /** Whether everything is answered with 400, which is not tried again. */
  refuse(refusing: boolean): void;
  stop(): Promise<void>;
}

/** A receiver of OTLP over HTTP: takes spans as JSON, refuses what is none. */
export function startCollector(): Collector {
  let hanging = false;
  let refused = false;
  const held: (() => void)[] = [];
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    idleTimeout: 0,
    async fetch(request) {
      collector.requests += 1;
      if (hanging) await new Promise<void>((resolve) => held.push(resolve));
      const text = await request.text();
      if (refused) return new Response(null, { status: 400 });
      const right = request.method === "POST" && new URL(request.url).pathname === "/v1/traces";
      if (!right || request.headers.get("content-type") !== "application/json")
        return new Response(null, { status: 404 });
      const body = bodySchema.safeParse(JSON.parse(text));
      if (!body.success) return Response.json({ message: body.error.message }, { status: 400 });
      collector.bodies.push(text);
      for (const { resource, scopeSpans } of body.data.resourceSpans)
        for (const span of scopeSpans.flatMap(({ spans }) => spans))
          collector.spans.push({
            traceId: span.traceId,
            spanId: span.spanId,
            parentId: span.parentSpanId ?? null,
            name: span.name,
            failed: span.status.code === 2,
            startMs: Number(span.startTimeUnixNano) / 1e6,
            endMs: Number(span.endTimeUnixNano) / 1e6,
            attributes: read(span.attributes),
            links: span.links.map(({ traceId, spanId }) => ({ traceId, spanId })),
            instance: read(resource.attributes)["service.instance.id"],
          });
      return Response.json({ partialSuccess: {} });
    },
  });
  const collector: Collector = {
    url: `http://127.0.0.1:${server.port}`,
    spans: [],
    bodies: [],
    requests: 0,
    hang: () => void (hanging = true),
    refuse: (refusing) => void (refused = refusing),
    stop: async () => {
      for (const go of held.splice(0)) go();
      await server.stop(true);
    },
  };
  return collector;
}

function read(list: z.infer<typeof attributes>): Record<string, unknown> {
  return Object.fromEntries(list.map(({ key, value: one }) => [key, Object.values(one)[0]]));
}
