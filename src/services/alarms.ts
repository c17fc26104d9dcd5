import { hostname } from "node:os";
import { PartlyTold, type AlarmSender } from "../clients/alarmSender.ts";
import {
  listOpenAlarms,
  listUntoldAlarms,
  markAlarmTold,
  resolveAlarm,
  upsertAlarm,
  type Alarm,
  type Severity,
} from "../db/alarms.ts";
import type { Deps } from "../deps.ts";

type AlarmDeps = Pick<Deps, "sql" | "config" | "log" | "alarmSender">;

/**
 * An operator has to know this. Told at once, then again every ALARM_REPEAT_MS while it lasts, and once when it is over;
 * the same `key` is the same trouble. `summary` is a sentence with ids and numbers, never a person's text. What could
 * not be told now is told by the next call (the health check calls every five minutes). Rejects only without a database.
 */
export async function raiseAlarm(
  deps: AlarmDeps,
  alarm: { key: string; severity: Severity; summary: string },
): Promise<void> {
  deps.log.error({ alarm: alarm.key, severity: alarm.severity }, alarm.summary);
  await upsertAlarm(deps.sql, { ...alarm, host: hostname() });
  await tellAlarms(deps);
}

/** What an operator has to know when systemd says that a unit has failed, e.g. "reef-api@1.service". */
export function renderUnitAlarm(unit: string): { key: string; severity: Severity; summary: string } {
  return {
    key: keyOf(unit),
    severity: unit.includes("@") ? "critical" : "warning",
    summary: `${unit} has failed on ${hostname()}: journalctl -u ${unit} says why`,
  };
}

/** The same key as whoever else tells of the same trouble, and of its end. */
function keyOf(unit: string): string {
  const job = /^reef-([a-z-]+)\.service$/.exec(unit)?.[1];
  if (job !== undefined) return `job:${job}`;
  // A restart serves nobody afterwards, so it is never over: the gateway's alarm is, by the health check.
  const gateway = /^reef-restart-gateway@(.+)\.service$/.exec(unit)?.[1];
  return gateway === undefined ? `unit:${unit.replace(/\.service$/, "")}` : `gateway:${gateway}`;
}

/** A unit has failed. What is known already keeps its words: the job's own say more. Rejects only without a database. */
export async function raiseUnitAlarm(deps: AlarmDeps, unit: string): Promise<void> {
  const alarm = renderUnitAlarm(unit);
  const open = await listOpenAlarms(deps.sql);
  if (open.some(({ key }) => key === alarm.key)) await tellAlarms(deps);
  else await raiseAlarm(deps, alarm);
}

/**
 * The trouble is over, if there was any. "here": only this machine's, since another one that is well says nothing of the
 * machine that is not. Rejects only without a database.
 */
export async function endAlarm(deps: AlarmDeps, key: string, where: "here" | "anywhere" = "anywhere"): Promise<void> {
  if (!(await resolveAlarm(deps.sql, key, where === "here" ? hostname() : null))) return;
  deps.log.info({ alarm: key }, "an alarm is over");
  await tellAlarms(deps);
}

const PARTLY_AGAIN_MS = 900_000;

/** By sender: who tells, and who waits for that to tell what has come since. */
const telling = new WeakMap<AlarmSender, { now: Promise<void>; next: Promise<void> | null }>();

/**
 * Tells what nobody was told of yet. What can't be told stays untold. One at a time in a process: troubles that are seen
 * side by side are told once each. Two processes at once may tell a thing twice, never not at all.
 */
export function tellAlarms(deps: AlarmDeps): Promise<void> {
  const { alarmSender } = deps;
  if (!alarmSender.isConfigured) return Promise.resolve();
  const current = telling.get(alarmSender);
  if (current) return (current.next ??= current.now.catch(() => undefined).then(() => beginTelling(deps)));
  return beginTelling(deps);
}

function beginTelling(deps: AlarmDeps): Promise<void> {
  const state = { now: tellAll(deps), next: null };
  telling.set(deps.alarmSender, state);
  const end = () => void (state.next === null && telling.delete(deps.alarmSender));
  state.now.then(end, end);
  return state.now;
}

async function tellAll(deps: AlarmDeps): Promise<void> {
  const untold = await listUntoldAlarms(deps.sql, { repeatMs: deps.config.ALARM_REPEAT_MS });
  // Side by side: one way that hangs must not take its time for each of them.
  await Promise.all(untold.map((alarm) => tellOne(deps, alarm)));
}

async function tellOne(deps: AlarmDeps, alarm: Alarm): Promise<void> {
  try {
    await deps.alarmSender.send(toMessage(alarm));
    await markAlarmTold(deps.sql, alarm);
  } catch (err) {
    deps.log.error({ err, alarm: alarm.key }, "not everybody could be told of an alarm");
    // Who was told hears it again soon, for the others' sake, but not at every look for as long as one way is broken.
    const early = Math.max(0, deps.config.ALARM_REPEAT_MS - PARTLY_AGAIN_MS);
    if (err instanceof PartlyTold) await markAlarmTold(deps.sql, alarm, early);
  }
}

function toMessage({ key, severity, summary, host, count, firstAt, resolvedAt }: Alarm) {
  const status = resolvedAt ? ("resolved" as const) : ("firing" as const);
  return { status, key, severity, summary, host, count, since: firstAt.toISOString() };
}
