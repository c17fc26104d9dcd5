import { Counter, Gauge, Histogram, Registry } from "prom-client";
import { createDeploymentGauges } from "./deploymentGauges.ts";

/** What the process counts about itself. No label names a person, an assistant or a raw path. */
export type Metrics = ReturnType<typeof createMetrics>;

const HTTP_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];
const RECONCILE_SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];
const WAKE_SECONDS = [0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120];
const FIRST_TEXT_SECONDS = [0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 90];
const TURN_SECONDS = [0.25, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 300, 600];

/** A registry of its own and all that is measured; what only a look can tell is set by services/metrics.ts. */
export function createMetrics() {
  const registry = new Registry();
  return {
    registry,
    frames: createFrameCounts(registry),
    ...createTimings(registry),
    ...createCounters(registry),
    ...createInvariantGauges(registry),
    look: createLookGauges(registry),
    deployment: createDeploymentGauges(registry),
    /** Assistants that the gateway does not have yet, and when that was first seen, in milliseconds. */
    laggingSince: new Map<string, number>(),
  };
}

/** Runs `work` and notes how long it took and whether it failed. */
export async function timed<T>(histogram: Histogram<"result">, work: () => Promise<T>): Promise<T> {
  const end = histogram.startTimer();
  try {
    const result = await work();
    end({ result: "ok" });
    return result;
  } catch (error) {
    end({ result: "failed" });
    throw error;
  }
}

/** On the hot path only numbers in an object are raised; the counters get them when somebody looks. */
function createFrameCounts(registry: Registry) {
  const sent: Record<string, number> = {};
  let received = 0;
  let slowed = 0;
  const counter = (name: string, help: string, read: (counter: Counter<"type">) => void) =>
    new Counter({
      name,
      help,
      labelNames: ["type"] as const,
      registers: [registry],
      collect() {
        this.reset();
        read(this);
      },
    });
  counter("reef_chat_frames_sent_total", "Frames sent to devices; type chunk is relayed text", (frames) => {
    for (const [type, n] of Object.entries(sent)) frames.inc({ type }, n);
  });
  counter("reef_chat_frames_received_total", "Frames received from devices", (frames) => frames.inc(received));
  counter("reef_chat_slow_readers_total", "How often a device's buffer was full", (readers) => readers.inc(slowed));
  return {
    sent: (type: string) => void (sent[type] = (sent[type] ?? 0) + 1),
    received: () => void (received += 1),
    slowed: () => void (slowed += 1),
  };
}

const SPEECH_CALLS = ["transcribe", "speak"];
/** What the gateway says of a failed model; its other words are one. */
const MODEL_REASONS = [
  "auth",
  "auth_permanent",
  "billing",
  "rate_limit",
  "overloaded",
  "server_error",
  "timeout",
  "format",
  "unavailable",
];

/** `known`: series that are there from the start, at 0; else the first of a kind would be no increase to a rule. */
function createCounters(registry: Registry) {
  const counter = <const L extends string = never>(
    name: string,
    help: string,
    labelNames: L[] = [],
    known: Record<L, string>[] = [],
  ) => {
    const created = new Counter({ name, help, labelNames, registers: [registry] });
    for (const labels of known) created.inc(labels as Partial<Record<L, string>>, 0);
    return created;
  };
  const modelFailures = counter(
    "reef_model_failures_total",
    "Answers that the gateway could not have from the model; auth and billing need an operator",
    ["reason"],
    MODEL_REASONS.map((reason) => ({ reason })),
  );
  return {
    turnsEnded: counter(
      "reef_turns_ended_total",
      "Turns that this process ended; code: why one failed",
      ["outcome", "code"],
      [
        { outcome: "done", code: "none" },
        { outcome: "stopped", code: "none" },
        { outcome: "failed", code: "turn_failed" },
        { outcome: "failed", code: "assistant_unavailable" },
      ],
    ),
    quotaRefusals: counter(
      "reef_quota_refusals_total",
      "How often somebody was told that the day's limit is reached",
      ["kind"],
      ["text_messages", "voice_input_seconds", "voice_output_seconds", "tts_characters"].map((kind) => ({ kind })),
    ),
    modelFailures,
    modelFailed: (reason: string) => modelFailures.inc({ reason: MODEL_REASONS.includes(reason) ? reason : "other" }),
    speechCalls: counter(
      "reef_speech_provider_calls_total",
      "Calls of the speech provider that went well",
      ["call"],
      SPEECH_CALLS.map((call) => ({ call })),
    ),
    speechFailures: counter(
      "reef_speech_provider_failures_total",
      "Calls of the speech provider that failed; key_refused and quota_used_up need an operator",
      ["call", "reason"],
      SPEECH_CALLS.flatMap((call) => ["key_refused", "quota_used_up"].map((reason) => ({ call, reason }))),
    ),
    billingDrift: counter(
      "reef_billing_drift_total",
      "Subscriptions and plans that were not what Stripe said, as the reconciliation found and mended them",
    ),
  };
}

function createTimings(registry: Registry) {
  const histogram = <const L extends string>(name: string, help: string, buckets: number[], labelNames: L[]) =>
    new Histogram({ name, help, buckets, labelNames, registers: [registry] });
  return {
    http: histogram("reef_http_request_duration_seconds", "HTTP requests", HTTP_SECONDS, ["method", "route", "status"]),
    firstText: histogram(
      "reef_turn_first_text_seconds",
      "From an accepted message to the first text of its answer",
      FIRST_TEXT_SECONDS,
      [],
    ),
    turn: histogram("reef_turn_duration_seconds", "From an accepted message to its turn's end", TURN_SECONDS, [
      "status",
    ]),
    wake: histogram(
      "reef_wake_seconds",
      "From the decision that an assistant is to be awake until the gateway has it",
      WAKE_SECONDS,
      [],
    ),
    reconcile: histogram("reef_reconcile_duration_seconds", "Passes of the reconciler", RECONCILE_SECONDS, ["result"]),
  };
}

function createInvariantGauges(registry: Registry) {
  const gauge = (name: string, help: string) =>
    new Gauge({ name, help, labelNames: ["invariant"] as const, registers: [registry] });
  return {
    invariantViolations: gauge("reef_invariant_violations", "Rows that break an invariant, as npm run verify counts"),
    invariantRows: gauge("reef_invariant_rows", "Rows that were looked at"),
    invariantUnchecked: gauge("reef_invariant_unchecked", "1: could not be checked the last time"),
    usageDrift: new Gauge({
      name: "reef_usage_drift_days",
      help: "Days of people whose use is not the sum of their ledger (invariant usage_sum)",
      registers: [registry],
    }),
    invariantsCheckedAt: new Gauge({
      name: "reef_invariants_checked_timestamp_seconds",
      help: "When the invariants were checked",
      registers: [registry],
    }),
  };
}

function createLookGauges(registry: Registry) {
  const gauge = <const L extends string = never>(name: string, help: string, labelNames: L[] = []) =>
    new Gauge({ name, help, labelNames, registers: [registry] });
  return {
    info: gauge("reef_process_info", "1; which gateway the process answers for, to be joined to its other metrics", [
      "role",
      "gateway",
    ]),
    turns: gauge("reef_turns", "Unfinished turns on the gateway; on all of them where role is front", ["status"]),
    queueOldest: gauge("reef_queue_oldest_seconds", "How long the oldest queued turn waits"),
    running: gauge("reef_turns_running_here", "Turns that this process is answering"),
    assistants: gauge("reef_assistants", "Assistants in the gateway's working set, and failed ones", ["state"]),
    workingSet: gauge("reef_working_set_size", "How many assistants may be awake at a time"),
    workingSetUsed: gauge("reef_working_set_used", "How many are awake, or on the way"),
    generationLag: gauge(
      "reef_generation_lag_assistants",
      "Assistants that the gateway does not have yet as the rows say",
    ),
    generationLagOldest: gauge("reef_generation_lag_oldest_seconds", "For how long, at least, the oldest of them lags"),
    driftRepairs: new Counter({
      name: "reef_drift_repairs_total",
      help: "How often the gateway's configuration was put back",
      registers: [registry],
    }),
    mails: gauge("reef_mails", "Mails in the outbox: waiting to be sent, or given up (dead)", ["state"]),
    deletions: gauge("reef_account_deletions", "Accounts that are being deleted; late: for more than an hour", ["age"]),
    stripeEvents: gauge("reef_stripe_events", "Stripe's events that wait to be worked at; failed: have failed before", [
      "state",
    ]),
    stripeEventsOldest: gauge("reef_stripe_events_oldest_seconds", "How long the oldest of them has waited"),
    databaseUp: gauge("reef_database_up", "1: Postgres answered this look of the process"),
    gatewayConnected: gauge("reef_gateway_connected", "1: connected to the gateway"),
    sockets: gauge("reef_chat_sockets", "Devices connected to this process"),
    slowReaders: gauge("reef_chat_slow_readers", "Devices whose buffer is full"),
    loopDelayMax: gauge("reef_event_loop_delay_max_seconds", "Longest delay of the event loop, last 10 s"),
    loopDelayMean: gauge("reef_event_loop_delay_mean_seconds", "Mean delay of the event loop, last 10 s"),
    memory: gauge("process_resident_memory_bytes", "Memory of the process"),
    heap: gauge("process_heap_bytes", "Heap in use"),
    cpu: new Counter({
      name: "process_cpu_seconds_total",
      help: "Processor time of the process",
      registers: [registry],
    }),
    startedAt: gauge("process_start_time_seconds", "When the process started"),
  };
}
