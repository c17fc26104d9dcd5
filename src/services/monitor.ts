import { z } from "zod";
import type { Deps } from "../deps.ts";
import { startLoop } from "../lib/loop.ts";
import { withDeadline } from "../lib/retry.ts";
import { checkInvariants, invariantsOf, SETTLE_MS, type Finding, type Invariant } from "./invariants.ts";
import { createProviderWatch, watchInvariants } from "./watchAlarms.ts";

type MonitorDeps = Pick<
  Deps,
  "sql" | "redis" | "gateway" | "workspaces" | "config" | "log" | "metrics" | "processId" | "alarmSender"
>;

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

/** A part of the invariants that one process at a time checks on behalf of others. */
interface Share {
  /** Sets its keys in Redis and its alarms apart. */
  suffix: string;
  slot: string;
  last: string;
  invariants: readonly Invariant[];
  own: Last | null;
  notBefore: number;
}

/** The rows are everybody's; a gateway is looked at by those processes that have it. */
function sharesOf(config: MonitorDeps["config"]): Share[] {
  const all = invariantsOf(config);
  const share = (name: string, invariants: readonly Invariant[]) => {
    const keys = { suffix: name, slot: `invariants:slot${name}`, last: `invariants:last${name}` };
    return { ...keys, invariants, own: null, notBefore: 0 };
  };
  return [
    share(
      "",
      all.filter((invariant) => !invariant.ofGateway),
    ),
    share(
      `:${config.GATEWAY_ID}`,
      all.filter((invariant) => invariant.ofGateway),
    ),
  ].filter(({ invariants }) => invariants.length > 0);
}

/**
 * Counts violated invariants for /metrics: one process at a time, on behalf of all, which read its result in Redis.
 * Without Redis each counts for itself. Who counts raises the alarms, too. Never in the first interval: a start has
 * other things to do.
 */
export function startMonitor(deps: MonitorDeps): { stop(): Promise<void> } {
  const everyMs = deps.config.INVARIANTS_EVERY_MS;
  const startedAt = Date.now();
  const shares = sharesOf(deps.config);
  const watchProviders = createProviderWatch(deps);

  const check = async (share: Share, signal: AbortSignal) => {
    const { invariants, slot, last } = share;
    const options = { patienceMs: SETTLE_MS, timeoutMs: CHECK_TIMEOUT_MS, signal, invariants };
    const began = Date.now();
    const findings = await checkInvariants(deps, options);
    if (signal.aborted) return;
    share.own = { at: Date.now() / 1000, findings };
    report(deps, findings);
    const restMs = Math.max(everyMs * 0.9, (Date.now() - began) / SHARE);
    share.notBefore = Date.now() + restMs;
    await deps.redis.pexpire(slot, Math.ceil(restMs)).catch(() => 0);
    await deps.redis.set(last, JSON.stringify(share.own), "EX", LAST_SECONDS).catch(() => null);
    await watchInvariants(deps, findings, share.suffix);
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
      const known: Last[] = [];
      for (const share of shares) {
        if (Date.now() >= share.notBefore && (await claim(deps, share.slot, everyMs))) await check(share, signal);
        known.push(...newest(share.own, await readLast(deps, share.last)));
      }
      if (known.length === shares.length) publish(deps, known);
      await watchProviders();
    },
  });
  return { stop: () => withDeadline(loop.stop(), STOP_MS, "monitor").catch(() => undefined) };
}

/** While it checks, the slot is held as long as the checks may take; then as long as they are to rest. */
async function claim({ redis, processId }: MonitorDeps, slot: string, everyMs: number): Promise<boolean> {
  return redis.set(slot, processId, "PX", everyMs + SETTLE_MS, "NX").then(
    (answer) => answer === "OK",
    () => true,
  );
}

async function readLast({ redis }: MonitorDeps, last: string): Promise<Last | null> {
  const text = await redis.get(last).catch(() => null);
  return text === null ? null : (lastSchema.safeParse(JSON.parse(text)).data ?? null);
}

function newest(own: Last | null, shared: Last | null): Last[] {
  const last = shared && (!own || shared.at >= own.at) ? shared : own;
  return last ? [last] : [];
}

function publish({ metrics }: MonitorDeps, known: Last[]): void {
  for (const gauge of [metrics.invariantViolations, metrics.invariantRows]) gauge.reset();
  metrics.usageDrift.remove();
  for (const { id, status, violations, total } of known.flatMap(({ findings }) => findings)) {
    metrics.invariantUnchecked.set({ invariant: id }, Number(status === "unchecked"));
    if (status === "unchecked") continue;
    metrics.invariantViolations.set({ invariant: id }, violations);
    metrics.invariantRows.set({ invariant: id }, total);
    if (id === "usage_sum") metrics.usageDrift.set(violations);
  }
  metrics.invariantsCheckedAt.set(Math.min(...known.map(({ at }) => at)));
}

function report({ log }: MonitorDeps, findings: Finding[]): void {
  for (const { id, violations, samples, status, reason } of findings) {
    if (status === "violated") log.error({ invariant: id, violations, samples }, "an invariant is violated");
    if (status === "unchecked") log.warn({ invariant: id, reason }, "an invariant could not be checked");
  }
}
