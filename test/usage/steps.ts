import type { Sql } from "../../src/db/connect.ts";
import type { Amounts } from "../../src/db/usage.ts";
import { KINDS, none } from "./model.ts";
import { OPEN_AT_ONCE, type UsageProcess } from "./process.ts";
import type { Run } from "./run.ts";
import type { Task } from "./task.ts";

/** What may happen to one user's day; each answers what it did, or null where it could not be done now. */

/** Small, so that they are met all the time. */
export const LIMITS: Record<string, Amounts> = {
  free: { textMessages: 4, voiceInputSeconds: 9, voiceOutputSeconds: 9, ttsCharacters: 20 },
  pro: { textMessages: 6, voiceInputSeconds: 15, voiceOutputSeconds: 12, ttsCharacters: 35 },
  premium: { textMessages: 9, voiceInputSeconds: 25, voiceOutputSeconds: 20, ttsCharacters: 60 },
};

export async function setLimits(sql: Sql, plan: string, limits: Amounts): Promise<void> {
  await sql`update plan_limits set text_messages = ${limits.textMessages},
    voice_input_seconds = ${limits.voiceInputSeconds}, voice_output_seconds = ${limits.voiceOutputSeconds},
    tts_characters = ${limits.ttsCharacters} where plan = ${plan}`;
}

function freeProcess(run: Run): UsageProcess | null {
  const open = (process: UsageProcess) => run.tasks.filter((task) => task.process === process).length;
  const free = run.processes.filter((process) => open(process) < OPEN_AT_ONCE);
  return free.length === 0 ? null : run.random.pick(free);
}

function pickAmounts({ random }: Run, most: Amounts): Partial<Amounts> {
  const chosen = KINDS.filter(() => random.chance(0.4));
  const kinds = chosen.length === 0 ? [random.pick(KINDS)] : chosen;
  return Object.fromEntries(
    kinds.map((kind) => {
      if (random.chance(0.05)) return [kind, most[kind] * 3];
      return [kind, kind === "textMessages" ? 1 : random.int(1, Math.ceil(most[kind] / 2))];
    }),
  );
}

export function reserve(run: Run): string | null {
  const process = freeProcess(run);
  if (!process) return null;
  const { random } = run;
  const amounts = random.chance(0.6) ? { textMessages: 1 } : pickAmounts(run, LIMITS["free"]!);
  const expiresInMs = random.chance(0.5) ? random.int(1, 20) * 1000 : null;
  run.reserve(process, amounts, { expiresInMs, abort: random.chance(0.05) });
  return `reserve ${JSON.stringify(amounts)} in ${process.name.slice(-1)}`;
}

export function settle(run: Run): string | null {
  const process = freeProcess(run);
  const keys = run.model.keys();
  if (!process || keys.length === 0) return null;
  const { random } = run;
  // Mostly one of the last; now and then one that was settled long ago.
  const key = random.chance(0.8) ? random.pick(keys.slice(-8)) : random.pick(keys);
  const actual = Object.fromEntries(
    KINDS.filter(() => random.chance(0.4)).map((kind) => [kind, random.chance(0.2) ? 0 : random.int(0, 12)]),
  );
  const how = random.pick([
    { status: "released" as const },
    { status: "committed" as const },
    { status: "committed" as const, actual: { ...none(), ...actual } },
    { status: "committed" as const, actual },
  ]);
  run.settle(process, key, { ...how, abort: random.chance(0.1) });
  return `settle ${key.slice(-6)} ${JSON.stringify(how)} in ${process.name.slice(-1)}`;
}

export async function resume(run: Run): Promise<string | null> {
  const paused = run.tasks.filter((task) => task.place !== null);
  return paused.length === 0 ? null : goOn(run, run.random.pick(paused));
}

export async function goOn(run: Run, task: Task): Promise<string> {
  const from = task.place;
  await run.resume(task);
  return `${task.name} in ${task.process.name.slice(-1)}: ${from} → ${task.over ? "over" : (task.place ?? "waits")}`;
}

/** One goes on to its end, or until it waits for another. */
export async function finishOne(run: Run, task?: Task): Promise<string | null> {
  const paused = run.tasks.filter((one) => one.place !== null);
  if (paused.length === 0) return null;
  const chosen = task ?? run.random.pick(paused);
  let line = "";
  while (!chosen.over && chosen.place !== null) {
    line = await goOn(run, chosen);
    await run.look();
  }
  return line;
}

/** Everybody goes on to their end. */
export async function drain(run: Run): Promise<void> {
  for (const process of run.processes) if (process.frozen) await process.mend();
  while (run.tasks.length > 0) {
    await resume(run);
    await run.look();
  }
}

/** A message that nothing comes between. */
export async function probe(run: Run, process = freeProcess(run)): Promise<string | null> {
  if (!process) return null;
  const task = run.reserve(process, { textMessages: 1 }, { expiresInMs: null, abort: false });
  return `a message: ${await finishOne(run, task)}`;
}

export function sweep(run: Run): string | null {
  const process = freeProcess(run);
  if (!process) return null;
  run.sweep(process);
  return `sweep in ${process.name.slice(-1)}`;
}

export async function changePlan(run: Run, plan = run.random.pick(["free", "pro", "premium"])): Promise<string> {
  await run.changePlan((sql) =>
    sql.begin(async (tx) => {
      await tx`delete from subscriptions where user_id = ${run.userId}`;
      await tx`insert into subscriptions (user_id, plan) values (${run.userId}, ${plan})`;
    }),
  );
  return `plan ${plan}`;
}

export async function changeLimits(run: Run): Promise<string> {
  const plan = run.random.pick(Object.keys(LIMITS));
  const textMessages = LIMITS[plan]!.textMessages + run.random.int(-2, 3);
  await run.changePlan((sql) => setLimits(sql, plan, { ...LIMITS[plan]!, textMessages }));
  return `${plan} has ${textMessages} messages`;
}

export async function emptyRedis(run: Run): Promise<string> {
  await run.emptyRedis();
  return "Redis is emptied";
}

export function troubleNetwork(run: Run): string | null {
  const well = run.processes.filter((process) => process.redis.status === "ready" && !process.frozen);
  if (well.length === 0) return null;
  const process = run.random.pick(well);
  const freeze = run.random.chance(0.6);
  if (freeze) process.freeze();
  else process.cut();
  return `Redis is ${freeze ? "silent" : "out of reach"} for ${process.name.slice(-1)}`;
}

export async function mendNetwork(run: Run): Promise<string | null> {
  const ill = run.processes.filter((process) => process.redis.status !== "ready" || process.frozen);
  if (ill.length === 0) return null;
  const process = run.random.pick(ill);
  await process.mend();
  return `Redis is there again for ${process.name.slice(-1)}`;
}

/** Stopped and started again: what it knew and what was on its way is lost. */
export async function restartRedis(run: Run): Promise<string> {
  for (const process of run.processes) process.cut();
  await run.emptyRedis();
  for (const process of run.processes) await process.mend();
  return "Redis is restarted";
}

export async function kill(run: Run): Promise<string> {
  const process = run.random.pick(run.processes);
  await run.replace(process);
  return `${process.name.slice(-1)} is killed`;
}

export async function letTimePass(run: Run): Promise<string | null> {
  const wait = run.random.chance(0.5);
  if (run.tasks.length > 0 && !wait) return null;
  await drain(run);
  const ms = run.random.pick([2_000, 6_000, 11_000, 70_000, 310_000]);
  await run.letTimePass(ms);
  return `${ms / 1000} s pass`;
}
