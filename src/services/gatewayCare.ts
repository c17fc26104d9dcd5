import { join } from "node:path";
import { hostname } from "node:os";
import { lookAtGateway, readGatewayHealth } from "../clients/gatewayProbe.ts";
import type { Host } from "../clients/host.ts";
import { isLoopback } from "../clients/hostNetwork.ts";
import { countRestarts, insertRestart } from "../db/gatewayRestarts.ts";
import type { HeldLock } from "../db/locks.ts";
import type { Deps } from "../deps.ts";
import { newId } from "../lib/ids.ts";
import { sleep } from "../lib/retry.ts";
import { endAlarm, raiseAlarm } from "./alarms.ts";
import { readUnit } from "./unitState.ts";

/*
 * A gateway that is proven broken is restarted, within a budget. Proven: three looks in a row, spread over at least
 * half a minute, each refused, or silent while its own probe of life is silent or its processor time stands still. A
 * look that it answers, however late, ends the suspicion; so does a start, an end or a standstill that somebody asked for.
 *   looked at → well | busy | starting | stopped by somebody
 *             → broken → no budget, or nobody here restarts → alarm, hands off
 *                      → asked for (a file) → taken by reef-restart-gateway@ → answers again: the alarm is over
 */

type CareDeps = Pick<Deps, "sql" | "config" | "log" | "alarmSender">;

/** How patient it is, in milliseconds. */
export interface Patience {
  /** How long a look waits for an answer. */
  lookMs: number;
  /** Between two looks. */
  pauseMs: number;
  /** Until somebody takes the file away. */
  takenMs: number;
  /** Until it answers again. */
  backMs: number;
}

/** All of it, and two alarms that take their ten seconds, within the job's limit (jobs/checkHealth.ts). */
const PATIENCE: Patience = { lookMs: 25_000, pauseMs: 16_000, takenMs: 10_000, backMs: 120_000 };
const LOOKS = 3;
/** How a process calls its gateway that has none. */
export const NO_GATEWAY = "none";

/** Whether this machine runs the gateway of its settings, and has its folder: a gateway listens on loopback only (docs/scaling.md). */
export function hasGatewayHere(config: Pick<Deps["config"], "GATEWAY_ID" | "OPENCLAW_GATEWAY_URL">): boolean {
  return config.GATEWAY_ID !== NO_GATEWAY && isLoopback(new URL(config.OPENCLAW_GATEWAY_URL).hostname);
}

/** A start takes 10 to 40 seconds, longer with hundreds of agents. */
const STARTING_MS = 180_000;
/** Of one processor: less and it is not at work. */
const BUSY_SHARE = 0.05;
export const RESTARTS_AN_HOUR = 3;
export const RESTARTS_A_DAY = 6;
const POLL_MS = 250;

type State = "well" | "busy" | "starting" | "stopped" | "broken";
interface Verdict {
  state: State;
  why: string;
}

/** Looks at the configured gateway and restarts it when it is broken. Returns what is to be said; `ok` false: it is still broken. */
export async function careForGateway(
  deps: CareDeps,
  host: Host,
  lock: HeldLock,
  patience: Patience = PATIENCE,
): Promise<{ ok: boolean; said: string; restarted: boolean }> {
  const id = deps.config.GATEWAY_ID;
  if (id === NO_GATEWAY) return { ok: true, said: "no gateway here", restarted: false };
  const verdict = await judge(deps, host, patience, lock.signal);
  if (verdict.state === "broken") return repair(deps, host, lock, patience, verdict.why);
  const alarm = { key: `gateway:${id}`, severity: "critical" as const };
  if (verdict.state === "stopped")
    await raiseAlarm(deps, {
      ...alarm,
      summary: `gateway ${id} was stopped: systemctl start reef-gateway@${id} starts it`,
    });
  if (verdict.state === "well") await endAlarm(deps, alarm.key);
  return { ok: verdict.state !== "stopped", said: `gateway ${id} ${verdict.why}`, restarted: false };
}

async function judge(deps: CareDeps, host: Host, patience: Patience, signal: AbortSignal): Promise<Verdict> {
  let verdict = await look(deps, host, patience);
  for (let n = 1; n < LOOKS && verdict.state === "broken"; n++) {
    await sleep(patience.pauseMs, signal);
    signal.throwIfAborted();
    verdict = await look(deps, host, patience);
  }
  return verdict;
}

async function look({ config }: CareDeps, host: Host, { lookMs }: Patience): Promise<Verdict> {
  // A template's unit can be shown on every host that has the file: one of another host would be "stopped by somebody".
  const isHere = isLoopback(new URL(config.OPENCLAW_GATEWAY_URL).hostname);
  const before = isHere ? await readProcess(host, config.GATEWAY_ID) : null;
  if (before?.state === "inactive") return { state: "stopped", why: "was stopped by somebody" };
  if (before?.isChanging) return { state: "starting", why: `is ${before.state}` };
  const began = performance.now();
  const gateway = { url: config.OPENCLAW_GATEWAY_URL, token: config.OPENCLAW_GATEWAY_TOKEN };
  const [answer, life] = await Promise.all([lookAtGateway(gateway, lookMs), readGatewayHealth(gateway.url, lookMs)]);
  if (answer.outcome === "answered") return { state: "well", why: `answers (${answer.ms} ms)` };
  const upMs = life?.uptimeMs ?? before?.upMs ?? null;
  if (answer.outcome !== "silent") {
    const why = answer.outcome === "refused" ? `refuses the handshake (${answer.code})` : "takes no connection";
    const isYoung = upMs !== null && upMs < STARTING_MS && !(life?.ready ?? false);
    return isYoung ? { state: "starting", why: "is starting" } : { state: "broken", why };
  }
  const after = isHere ? await readProcess(host, config.GATEWAY_ID) : null;
  // NaN where nobody counts it ("[not set]"): then nothing is proved by it.
  const share = before && after ? (after.cpuMs - before.cpuMs) / (performance.now() - began) : NaN;
  const seconds = Math.round(lookMs / 1000);
  if (life !== null && !(share < BUSY_SHARE))
    return { state: "busy", why: `is busy: no answer in ${seconds} s, but it lives and works` };
  return { state: "broken", why: `does not answer in ${seconds} s and does not work` };
}

const CHANGING = ["activating", "deactivating", "reloading"];

/** How long this machine has been up; NaN where it does not say. */
export async function readUptimeMs(host: Host): Promise<number> {
  return Number(((await host.read("/proc/uptime")) ?? "").split(" ")[0]) * 1000;
}

async function readProcess(host: Host, id: string) {
  const unit = await readUnit(host, `reef-gateway@${id}.service`, [
    "ActiveState",
    "CPUUsageNSec",
    "ActiveEnterTimestampMonotonic",
  ]);
  if (!unit) return null;
  const uptime = await readUptimeMs(host);
  const since = Number(unit.ActiveEnterTimestampMonotonic) / 1000;
  return {
    state: unit.ActiveState,
    isChanging: CHANGING.includes(unit.ActiveState),
    cpuMs: Number(unit.CPUUsageNSec) / 1e6,
    upMs: unit.ActiveState === "active" && since > 0 && uptime > 0 ? uptime - since : null,
  };
}

async function repair(deps: CareDeps, host: Host, lock: HeldLock, patience: Patience, why: string) {
  const { GATEWAY_ID: id, GATEWAY_RESTART_DIR: folder, OPENCLAW_GATEWAY_URL: url } = deps.config;
  const tell = async (what: string) => {
    await raiseAlarm(deps, {
      key: `gateway:${id}`,
      severity: "critical",
      summary: `gateway ${id} ${why}: ${what} (docs/runbooks/gateway-down.md)`,
    });
    return { ok: false, said: `gateway ${id} ${why}: ${what}`, restarted: false };
  };
  if (folder === undefined)
    return tell("it should be restarted, but GATEWAY_RESTART_DIR is not set, so nobody here does");
  if (!isLoopback(new URL(url).hostname)) return tell("it runs on another host, which has to restart it");
  const { hour, day } = await countRestarts(deps.sql, id);
  if (hour >= RESTARTS_AN_HOUR || day >= RESTARTS_A_DAY)
    return tell(`${hour} restart(s) in an hour and ${day} in a day did not help: hands off`);
  const which = `restart ${hour + 1} of ${RESTARTS_AN_HOUR} this hour`;
  await lock.requireHeld();
  await insertRestart(deps.sql, { id: newId(), gatewayId: id, host: hostname(), reason: why });
  await tell(`it is being restarted, ${which}`);
  const trouble = await restart(deps, host, { sign: join(folder, id), folder }, patience, lock.signal);
  if (trouble !== null) return tell(trouble);
  await endAlarm(deps, `gateway:${id}`);
  return { ok: true, said: `gateway ${id} ${why}: restarted and answers again (${which})`, restarted: true };
}

/** Null when it is back. */
async function restart(
  { config }: CareDeps,
  host: Host,
  { sign, folder }: { sign: string; folder: string },
  patience: Patience,
  signal: AbortSignal,
): Promise<string | null> {
  await host.makeFolder(folder, 0o700);
  await host.leaveSign(sign);
  const isTaken = () => host.stand(sign).then((found) => found === null);
  if (!(await becomes(isTaken, patience.takenMs, signal))) {
    // One that is taken much later would end a gateway that is well by then.
    await host.removeSign(sign);
    return `nobody took the wish to restart it: is reef-restart-gateway@${config.GATEWAY_ID}.path enabled?`;
  }
  const gateway = { url: config.OPENCLAW_GATEWAY_URL, token: config.OPENCLAW_GATEWAY_TOKEN };
  const answers = () =>
    lookAtGateway(gateway, Math.min(5_000, patience.lookMs)).then(({ outcome }) => outcome === "answered");
  const back = await becomes(answers, patience.backMs, signal);
  return back ? null : `it was restarted and does not answer after ${Math.round(patience.backMs / 1000)} s`;
}

async function becomes(check: () => Promise<boolean>, withinMs: number, signal: AbortSignal): Promise<boolean> {
  const until = performance.now() + withinMs;
  for (;;) {
    signal.throwIfAborted();
    if (await check()) return true;
    if (performance.now() > until) return false;
    await sleep(POLL_MS, signal);
  }
}
