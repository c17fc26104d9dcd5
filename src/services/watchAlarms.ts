import type { Counter } from "prom-client";
import { listOpenAlarms } from "../db/alarms.ts";
import type { Deps } from "../deps.ts";
import { endAlarm, raiseAlarm } from "./alarms.ts";
import type { Difference } from "./billingDrift.ts";
import type { Finding } from "./invariants.ts";

type AlarmDeps = Pick<Deps, "sql" | "config" | "log" | "alarmSender">;
type WatchDeps = AlarmDeps & Pick<Deps, "metrics">;

/*
 * Alarms for what the application itself knows and no job looks for, so that a deployment without Prometheus has them,
 * too. None of these ever rejects: what can't be raised now is raised at the next look.
 */

/** `invariant:<id>` + `suffix`: as long as one is violated. What could not be checked stays as it was. */
export async function watchInvariants(deps: AlarmDeps, findings: readonly Finding[], suffix = ""): Promise<void> {
  await quietly(deps, async () => {
    const open = new Set((await listOpenAlarms(deps.sql)).map(({ key }) => key));
    for (const { id, status, violations, total, sentence } of findings) {
      const key = `invariant:${id}${suffix}`;
      const summary = `${violations} of ${total} rows break the rule: ${sentence}`;
      if (status === "violated") await raiseAlarm(deps, { key, severity: "critical", summary });
      else if (status === "ok" && open.has(key)) await endAlarm(deps, key);
    }
  });
}

/** `stripe-drift`: as long as a reconciliation leaves something that is not what Stripe says. */
export async function watchBillingDrift(deps: AlarmDeps, left: readonly Difference[]): Promise<void> {
  await quietly(deps, async () => {
    if (left.length === 0) return endAlarm(deps, "stripe-drift");
    const customers = left.slice(0, 5).map(({ customerId }) => customerId);
    const summary = `${left.length} subscription(s) are not what Stripe says and could not be put right: ${customers.join(", ")}`;
    await raiseAlarm(deps, { key: "stripe-drift", severity: "warning", summary });
  });
}

/** A provider's account that is refused, until an answer of its comes through again. */
interface Provider {
  key: string;
  summary: string;
  refused: () => Promise<number>;
  answered: () => Promise<number>;
}

/** Looks at what this process has met since the last look: whether a provider refuses our key, or our money is used up. */
export function createProviderWatch(deps: WatchDeps): () => Promise<void> {
  const { metrics, config } = deps;
  const providers: Provider[] = [
    {
      key: `model-provider:${config.GATEWAY_ID}`,
      summary: "the provider of the model refuses the gateway's key, or its quota is used up: nobody is answered",
      refused: () => sumOf(metrics.modelFailures, "reason", ["auth", "auth_permanent", "billing"]),
      answered: () => sumOf(metrics.turnsEnded, "outcome", ["done"]),
    },
    {
      key: "speech-provider",
      summary: "the provider of voice refuses our key, or its quota is used up: nothing is heard or spoken",
      refused: () => sumOf(metrics.speechFailures, "reason", ["key_refused", "quota_used_up"]),
      answered: () => sumOf(metrics.speechCalls, "call", ["transcribe", "speak"]),
    },
  ];
  const seen = new Map<string, { refused: number; answered: number }>();
  return async () => {
    for (const { key, summary, ...counts } of providers) {
      const now = { refused: await counts.refused(), answered: await counts.answered() };
      const before = seen.get(key) ?? { refused: 0, answered: 0 };
      const told = await quietly(deps, async () => {
        if (now.refused > before.refused) await raiseAlarm(deps, { key, severity: "critical", summary });
        else if (now.answered > before.answered) await endAlarm(deps, key);
      });
      if (told) seen.set(key, now);
    }
  };
}

async function sumOf(counter: Counter, label: string, values: readonly string[]): Promise<number> {
  const { values: samples } = await counter.get();
  return samples.reduce((sum, { labels, value }) => (values.includes(String(labels[label])) ? sum + value : sum), 0);
}

async function quietly({ log }: AlarmDeps, work: () => Promise<void>): Promise<boolean> {
  return work().then(
    () => true,
    (err: unknown) => {
      log.warn({ err }, "an alarm could not be noted; at the next look");
      return false;
    },
  );
}
