import { createHmac } from "node:crypto";
import type { StripeEvent } from "./stripeState.ts";

/** Where events go. `secrets`: each signs (Stripe does so while a secret is being replaced). */
export interface Endpoint {
  url: string;
  secrets: string[];
  live: boolean;
  /** Types that it wants; all when missing. */
  events?: string[];
}

/** What becomes of an event: sent (so many times, so late), kept back until `release`, or never sent. */
export type Delivery = "drop" | "hold" | "send" | { copies?: number; delayMs?: number };

/** One try to deliver. `status` null: no answer. */
export interface DeliveryTry {
  event: string;
  type: string;
  url: string;
  status: number | null;
}

export interface Webhooks {
  endpoints: Endpoint[];
  /** Decides for each event; may be replaced at any time. */
  policy: (event: StripeEvent) => Delivery;
  /** Waits (ms) after a try that was not answered 2xx; then it is given up. */
  retryMs: number[];
  /** A try that takes longer has failed. */
  timeoutMs: number;
  tries: DeliveryTry[];
  /** Events that are kept back. */
  held: StripeEvent[];
  /** Sends what is kept back, all at once, in this order; resolves when they have been answered or given up. */
  release(order?: (events: StripeEvent[]) => StripeEvent[]): Promise<void>;
  /** Sends an event again, months later if need be, signed now. */
  replay(event: StripeEvent): Promise<void>;
  /** Resolves when nothing is on its way and no retry is waiting; what is held does not count. */
  settled(): Promise<void>;
  /** The header for a payload: signed with these secrets at `timestamp` (seconds, default now). */
  sign(payload: string, options?: { secrets?: string[]; timestamp?: number }): string;
  offer(event: StripeEvent): void;
  close(): void;
}

/** Random order by the given source, for histories that can be told again by their seed. */
export function shuffled<T>(items: T[], random: () => number = Math.random): T[] {
  const copy = [...items];
  for (let index = copy.length - 1; index > 0; index -= 1) {
    const other = Math.floor(random() * (index + 1));
    [copy[index], copy[other]] = [copy[other]!, copy[index]!];
  }
  return copy;
}

/** A policy: events overtake each other within `withinMs`. */
export function outOfOrder(withinMs = 50, random: () => number = Math.random): Webhooks["policy"] {
  return () => ({ delayMs: Math.floor(random() * withinMs) });
}

function signatureHeader(payload: string, secrets: string[], timestamp: number): string {
  const signatures = secrets.map((secret) => {
    const hash = createHmac("sha256", secret).update(`${timestamp}.${payload}`).digest("hex");
    return `v1=${hash}`;
  });
  return [`t=${timestamp}`, ...signatures].join(",");
}

export function createWebhooks(endpoints: Endpoint[]): Webhooks {
  const underWay = new Set<Promise<void>>();
  const closing = new AbortController();

  const send = createSender(() => webhooks.endpoints, {
    underWay,
    signal: closing.signal,
    deliverTo: (...to) => deliver(webhooks, ...to),
  });

  const webhooks: Webhooks = {
    endpoints,
    policy: () => "send",
    retryMs: [100, 500, 2_000],
    timeoutMs: 10_000,
    tries: [],
    held: [],
    async release(order = (events) => events) {
      const events = order(webhooks.held.splice(0));
      await Promise.all(events.map((event) => send(event)));
    },
    replay: (event) => send(event),
    async settled() {
      while (underWay.size > 0) await Promise.all(underWay);
    },
    sign: (payload, { secrets, timestamp } = {}) =>
      signatureHeader(
        payload,
        secrets ?? webhooks.endpoints[0]?.secrets ?? [],
        timestamp ?? Math.floor(Date.now() / 1000),
      ),
    offer(event) {
      const delivery = webhooks.policy(event);
      if (delivery === "drop" || closing.signal.aborted) return;
      if (delivery === "hold") return void webhooks.held.push(event);
      const { copies = 1, delayMs = 0 } = delivery === "send" ? {} : delivery;
      for (let copy = 0; copy < copies; copy += 1) void send(event, delayMs);
    },
    close: () => closing.abort(),
  };
  return webhooks;
}

interface Sender {
  underWay: Set<Promise<void>>;
  signal: AbortSignal;
  deliverTo: (endpoint: Endpoint, event: StripeEvent, options: DeliveryOptions) => Promise<void>;
}

/** What is not delayed is tried one after the other, so that a test can rely on the order; retries wait beside the row. */
function createSender(endpoints: () => Endpoint[], { underWay, signal, deliverTo }: Sender) {
  let row = Promise.resolve();
  const track = (work: Promise<void>): Promise<void> => {
    underWay.add(work);
    return work.finally(() => underWay.delete(work));
  };
  return async (event: StripeEvent, delayMs = 0): Promise<void> => {
    const wanted = endpoints().filter(
      ({ live, events }) => live === event.livemode && (!events || events.includes(event.type)),
    );
    const tries = wanted.map((endpoint) => {
      if (delayMs > 0) return track(deliverTo(endpoint, event, { after: pause(delayMs, signal), signal }));
      const first = Promise.withResolvers<void>();
      const after = row;
      row = first.promise;
      return track(deliverTo(endpoint, event, { after, tried: first.resolve, signal }));
    });
    await Promise.all(tries);
  };
}

interface DeliveryOptions {
  after: Promise<void>;
  /** Called after the first try. */
  tried?: () => void;
  signal: AbortSignal;
}

/** Tries until it is answered 2xx or the retries are used up. Never rejects. */
async function deliver(webhooks: Webhooks, endpoint: Endpoint, event: StripeEvent, options: DeliveryOptions) {
  const { signal } = options;
  await options.after;
  for (let attempt = 0; !signal.aborted; attempt += 1) {
    const status = await post(webhooks, endpoint, event, signal);
    webhooks.tries.push({ event: event.id, type: event.type, url: endpoint.url, status });
    options.tried?.();
    const waitMs = webhooks.retryMs[attempt];
    if ((status !== null && status >= 200 && status < 300) || waitMs === undefined) return;
    await pause(waitMs, signal);
  }
  options.tried?.();
}

async function post(webhooks: Webhooks, endpoint: Endpoint, event: StripeEvent, signal: AbortSignal) {
  const payload = JSON.stringify(event, null, 2);
  const signature = signatureHeader(payload, endpoint.secrets, Math.floor(Date.now() / 1000));
  try {
    const response = await fetch(endpoint.url, {
      method: "POST",
      headers: {
        "content-type": "application/json; charset=utf-8",
        "stripe-signature": signature,
        "user-agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
      },
      body: payload,
      redirect: "manual",
      signal: AbortSignal.any([signal, AbortSignal.timeout(webhooks.timeoutMs)]),
    });
    await response.body?.cancel();
    return response.status;
  } catch {
    return null;
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  if (ms <= 0 || signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
}
