import { z } from "zod";
import type { Deps } from "../deps.ts";
import { startLoop } from "../lib/loop.ts";
import { withDeadline } from "../lib/retry.ts";
import { checkInvariants, SETTLE_MS, type Finding } from "./invariants.ts";
import { createProviderWatch, watchInvariants } from "./watchAlarms.ts";

type MonitorDeps = Pick<
  Deps,
  "sql" | "redis" | "gateway" | "workspaces" | "config" | "log" | "metrics" | "processId" | "alarmSender"
>;

const SLOT = "invariants:slot";
const LAST = "invariants:last";
const LAST_SECONDS = 86_400;
const CHECK_TIMEOUT_MS = 10_000;
/** Checking takes at most this part of the time, however large the tables are. */
const SHARE = 1 / 20;
const STOP_MS = 500;

const lastSchema = z.object({
  at: z.number(),
  findings: z.array(
    z.object({
      id: z.string(),
      status: z.enum(["ok", "violated", "unchecked"]),
      violations: z.number(),
      total: z.number(),
    }),
  ),
});
type Last = z.infer<typeof lastSchema>;

/**
 * Counts violated invariants for /metrics: one process at a time, on behalf of all, which read its result in Redis.
 * Without Redis each counts for itself. Who counts raises the alarms, too. Never in the first interval: a start has
 * other things to do.
 */
export function startMonitor(deps: MonitorDeps): { stop(): Promise<void> } {
  const everyMs = deps.config.INVARIANTS_EVERY_MS;
  const startedAt = Date.now();
  const watchProviders = createProviderWatch(deps);
  let own: Last | null = null;
  let notBefore = 0;

  const check = async (signal: AbortSignal) => {
    const options = { patienceMs: SETTLE_MS, timeoutMs: CHECK_TIMEOUT_MS, signal };
    const began = Date.now();
    const findings = await checkInvariants(deps, options);
    if (signal.aborted) return;
    own = { at: Date.now() / 1000, findings };
    report(deps, findings);
    const restMs = Math.max(everyMs * 0.9, (Date.now() - began) / SHARE);
    notBefore = Date.now() + restMs;
    await deps.redis.pexpire(SLOT, Math.ceil(restMs)).catch(() => 0);
    await deps.redis.set(LAST, JSON.stringify(own), "EX", LAST_SECONDS).catch(() => null);
    await watchInvariants(deps, findings);
  };
  const loop = startLoop({
    name: "monitor",
    debounceMs: 10,
    maxWaitMs: 10,
    resyncMs: everyMs,
    backoffMs: everyMs,
    log: deps.log,
    run: async (signal) => {
      if (Date.now() - startedAt < everyMs / 2) return;
      if (Date.now() >= notBefore && (await claim(deps, everyMs))) await check(signal);
      publish(deps, newest(own, await readLast(deps)));
      await watchProviders();
    },
  });
  return { stop: () => withDeadline(loop.stop(), STOP_MS, "monitor").catch(() => undefined) };
}

/** While it checks, the slot is held as long as the checks may take; then as long as they are to rest. */
async function claim({ redis, processId }: MonitorDeps, everyMs: number): Promise<boolean> {
  return redis.set(SLOT, processId, "PX", everyMs + SETTLE_MS, "NX").then(
    (answer) => answer === "OK",
    () => true,
  );
}

async function readLast({ redis }: MonitorDeps): Promise<Last | null> {
  const text = await redis.get(LAST).catch(() => null);
  return text === null ? null : (lastSchema.safeParse(JSON.parse(text)).data ?? null);
}

function newest(own: Last | null, shared: Last | null): Last | null {
  return shared && (!own || shared.at >= own.at) ? shared : own;
}

function publish({ metrics }: MonitorDeps, last: Last | null): void {
  if (!last) return;
  for (const gauge of [metrics.invariantViolations, metrics.invariantRows]) gauge.reset();
  metrics.usageDrift.remove();
  for (const { id, status, violations, total } of last.findings) {
    metrics.invariantUnchecked.set({ invariant: id }, Number(status === "unchecked"));
    if (status === "unchecked") continue;
    metrics.invariantViolations.set({ invariant: id }, violations);
    metrics.invariantRows.set({ invariant: id }, total);
    if (id === "usage_sum") metrics.usageDrift.set(violations);
  }
  metrics.invariantsCheckedAt.set(last.at);
}

function report({ log }: MonitorDeps, findings: Finding[]): void {
  for (const { id, violations, samples, status, reason } of findings) {
    if (status === "violated") log.error({ invariant: id, violations, samples }, "an invariant is violated");
    if (status === "unchecked") log.warn({ invariant: id, reason }, "an invariant could not be checked");
  }
}
