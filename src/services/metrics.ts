import { countDeletions } from "../db/deletions.ts";
import { readGatewayLoad } from "../db/load.ts";
import { countMails } from "../db/outbox.ts";
import { countEvents } from "../db/stripeEvents.ts";
import type { Deps } from "../deps.ts";
import { withDeadline } from "../lib/retry.ts";
import type { ChatHub } from "./chatHub.ts";
import { lookAtDeployment } from "./deploymentLook.ts";

type MetricsDeps = Pick<Deps, "config" | "gateway" | "metrics" | "loopDelay" | "sql" | "processId">;

/** Once: a start that moves by a millisecond between two looks would be another one. */
const STARTED_AT = Date.now() / 1000 - process.uptime();
const DATABASE_MS = 1_000;
const UNFINISHED = ["queued", "dispatched", "streaming"] as const;
const CONFIGURED = ["waking", "awake", "failed"] as const;

/** Everything that is measured, in Prometheus' text format. Never fails: what the database can't tell now is left out. */
export async function renderMetrics(
  deps: MetricsDeps,
  hub: Pick<ChatHub, "peers">,
): Promise<{ text: string; contentType: string }> {
  lookAtProcess(deps, hub);
  await Promise.all([lookAtDatabase(deps), lookAtDeployment(deps, DATABASE_MS)]);
  const { registry } = deps.metrics;
  return { text: await registry.metrics(), contentType: registry.contentType };
}

function lookAtProcess({ metrics, gateway, loopDelay, config }: MetricsDeps, hub: Pick<ChatHub, "peers">): void {
  const { look } = metrics;
  look.info.set({ role: config.ROLE, gateway: config.GATEWAY_ID }, 1);
  const peers = hub.peers();
  look.sockets.set(peers.length);
  look.slowReaders.set(peers.filter((peer) => peer.isSlow()).length);
  // A front process has none to be connected to: absent, or it would look like a gateway that is away.
  if (config.ROLE === "front") look.gatewayConnected.remove();
  else look.gatewayConnected.set(Number(gateway.isReady()));
  const delay = loopDelay.read();
  look.loopDelayMax.set(delay.maxMs / 1000);
  look.loopDelayMean.set(delay.meanMs / 1000);
  const memory = process.memoryUsage();
  look.memory.set(memory.rss);
  look.heap.set(memory.heapUsed);
  const cpu = process.cpuUsage();
  look.cpu.reset();
  look.cpu.inc((cpu.user + cpu.system) / 1e6);
  look.startedAt.set(STARTED_AT);
}

async function lookAtDatabase({ metrics, sql, config, processId }: MetricsDeps): Promise<void> {
  const { look } = metrics;
  const read = async () => ({
    load: await readGatewayLoad(sql, {
      gatewayId: config.ROLE === "front" ? null : config.GATEWAY_ID,
      owner: processId,
    }),
    mails: await countMails(sql),
    deletions: await countDeletions(sql),
    events: await countEvents(sql),
  });
  const seen = await withDeadline(read(), DATABASE_MS, "reading the load").catch(() => null);
  const { load = null, mails = null, deletions = null, events = null } = seen ?? {};
  look.databaseUp.set(Number(load !== null));
  look.deletions.reset();
  look.stripeEvents.reset();
  if (!load || !mails || !deletions || !events) {
    // Old numbers would be a lie, and so would zeros.
    look.turns.reset();
    look.assistants.reset();
    look.mails.reset();
    for (const gauge of [look.queueOldest, look.running, look.workingSet, look.workingSetUsed, look.stripeEventsOldest])
      gauge.remove();
    return;
  }
  for (const status of UNFINISHED) look.turns.set({ status }, load.turns[status] ?? 0);
  for (const state of CONFIGURED) look.assistants.set({ state }, load.assistants[state] ?? 0);
  for (const state of ["waiting", "dead"] as const) look.mails.set({ state }, mails[state]);
  look.deletions.set({ age: "any" }, deletions.unfinished);
  look.deletions.set({ age: "late" }, deletions.late);
  for (const state of ["waiting", "failed"] as const) look.stripeEvents.set({ state }, events[state]);
  look.stripeEventsOldest.set(events.oldestSeconds);
  look.queueOldest.set(load.oldestSeconds);
  look.running.set(load.runningHere);
  look.workingSet.set(load.workingSet);
  look.workingSetUsed.set((load.assistants["waking"] ?? 0) + (load.assistants["awake"] ?? 0));
  look.driftRepairs.reset();
  look.driftRepairs.inc(load.driftRepairs);
}
