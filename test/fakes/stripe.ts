/** What the tests need of Stripe: subscriptions that can be read and cancelled, and that it can be out of order. */
export interface FakeStripe {
  url: string;
  /** By id: how they stand. */
  subscriptions: Map<string, "active" | "canceled">;
  /** Every cancellation that was asked for, with its idempotency key. */
  cancels: { id: string; key: string | null }[];
  /** Answers 500 while true. */
  broken: boolean;
  stop(): Promise<void>;
}

/** Answers as Stripe does: a cancelled or unknown subscription can't be cancelled, it is `resource_missing`. */
export function startFakeStripe(): FakeStripe {
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch(request) {
      const id = new URL(request.url).pathname.split("/").at(-1)!;
      const cancelling = request.method === "DELETE";
      if (cancelling) stripe.cancels.push({ id, key: request.headers.get("idempotency-key") });
      if (stripe.broken) return Response.json({ error: { type: "api_error", message: "down" } }, { status: 500 });
      const status = stripe.subscriptions.get(id);
      if (status === undefined || (cancelling && status === "canceled")) {
        const error = { type: "invalid_request_error", code: "resource_missing", message: `No such subscription` };
        return Response.json({ error }, { status: 404 });
      }
      if (cancelling) stripe.subscriptions.set(id, "canceled");
      return Response.json({ id, object: "subscription", status: stripe.subscriptions.get(id) });
    },
  });
  const stripe: FakeStripe = {
    url: `http://127.0.0.1:${server.port}`,
    subscriptions: new Map(),
    cancels: [],
    broken: false,
    stop: () => server.stop(true),
  };
  return stripe;
}
