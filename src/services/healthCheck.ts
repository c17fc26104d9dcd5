import { hostname } from "node:os";
import { join } from "node:path";
import { PartlyTold, type AlarmMessage } from "../clients/alarmSender.ts";
import type { Host } from "../clients/host.ts";
import type { HeldLock } from "../db/locks.ts";
import type { Deps } from "../deps.ts";
import { pingDatabase } from "../db/health.ts";
import { withDeadline } from "../lib/retry.ts";
import { tellAlarms } from "./alarms.ts";
import { findPlace } from "./doctor/place.ts";
import { watchCanary } from "./canary.ts";
import { careForGateway, hasGatewayHere, readUptimeMs } from "./gatewayCare.ts";
import type { JobResult } from "./jobs.ts";
import { watchAll } from "./watch.ts";

/** Within the restart folder, where no gateway can have this name. */
const DATABASE_DOWN = ".database-down";
const PING_MS = 5_000;
/** The canary's timer is hourly (reef-run-canary.timer). */
const CANARY_COMES_MS = 75 * 60_000;
const alarm = { key: "postgres", severity: "critical" as const, host: hostname(), count: 1 };

/** One health check: mends the gateway if it is proven broken, tells of the rest. */
export async function checkServer(deps: Deps, host: Host, lock: HeldLock): Promise<JobResult> {
  await databaseIsBack(deps, host).catch((err: unknown) =>
    deps.log.warn({ err }, "nobody could be told that it is back"),
  );
  const place = await findPlace(host, deps.config);
  const [gateway, troubles] = await Promise.all([careForGateway(deps, host, lock), watchAll(deps, host, place)]);
  // A trial has no timer for it, and after a start the timer comes first.
  const isDue = !place.isTrial && hasGatewayHere(deps.config) && !((await readUptimeMs(host)) < CANARY_COMES_MS);
  const unproved = isDue ? await watchCanary(deps) : null;
  if (unproved) troubles.push(unproved);
  await tellAlarms(deps);
  const summary = [gateway.said, ...(troubles.length > 0 ? troubles : ["nothing else to tell"])].join("; ");
  const details = { gateway_ok: gateway.ok, restarted: gateway.restarted, troubles: troubles.length };
  return { ok: true, summary: summary.slice(0, 1000), details };
}

/**
 * The database does not answer, so nothing can be recorded: the operators are told directly, at once and then every
 * ALARM_REPEAT_MS, by a sign in GATEWAY_RESTART_DIR (without that folder each time). False: it answers, so somebody else
 * has to tell why nothing could be recorded (a full disk, say): systemd, by this job's failure.
 */
export async function databaseIsDown(deps: Pick<Deps, "sql" | "alarmSender" | "config">, host: Host): Promise<boolean> {
  const answers = await withDeadline(pingDatabase(deps.sql), PING_MS, "the database").then(
    () => true,
    () => false,
  );
  if (answers) return false;
  const folder = deps.config.GATEWAY_RESTART_DIR;
  const sign = folder === undefined ? null : join(folder, DATABASE_DOWN);
  const known = sign === null ? null : await host.stand(sign);
  if (known && Date.now() - known.modifiedAt.getTime() < deps.config.ALARM_REPEAT_MS) return true;
  const since = (known?.modifiedAt ?? new Date()).toISOString();
  const summary = "Postgres does not answer: nothing works without it (docs/runbooks/database-full.md)";
  await tell(deps, { ...alarm, status: "firing", summary, since });
  if (sign === null) return true;
  await host.makeFolder(folder!, 0o700);
  if (!(await host.leaveSign(sign))) await host.renewSign(sign);
  return true;
}

async function databaseIsBack(deps: Pick<Deps, "alarmSender" | "config">, host: Host): Promise<void> {
  const folder = deps.config.GATEWAY_RESTART_DIR;
  const sign = folder === undefined ? null : join(folder, DATABASE_DOWN);
  const known = sign === null ? null : await host.stand(sign);
  if (sign === null || known === null) return;
  const since = known.modifiedAt.toISOString();
  await tell(deps, { ...alarm, status: "resolved", summary: "Postgres answers again", since });
  await host.removeSign(sign);
}

/** One way that is broken must not have the other told at every look. */
async function tell({ alarmSender }: Pick<Deps, "alarmSender">, message: AlarmMessage): Promise<void> {
  await alarmSender.send(message).catch((error: unknown) => {
    if (!(error instanceof PartlyTold)) throw error;
  });
}
