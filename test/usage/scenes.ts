import { changePlan, drain, finishOne, goOn, probe } from "./steps.ts";
import type { Run } from "./run.ts";

/** Several steps in a row that chance alone would seldom bring together; what surrounds them is left to it. */

/** The day is full of messages, Redis knows it, and nobody is in the midst of anything. Null: it could not be made so. */
async function fill(run: Run) {
  await drain(run);
  for (const process of run.processes) if (process.redis.status !== "ready") await process.mend();
  await run.letTimePass(70_000);
  run.sweep(run.processes[0]!);
  await drain(run);
  for (let n = 0; n < 16 && run.counts["refused by redis"] === undefined; n++) await step(run, 0);
  const before = run.counts["refused by redis"];
  for (let n = 0; n < 16 && run.counts["refused by redis"] === before; n++) await step(run, 0);
  const key = run.model.lines().find(({ kind, status }) => kind === "textMessages" && status === "reserved")?.key;
  return key === undefined ? null : { key, one: run.processes[0]!, other: run.processes[1]! };
}

async function step(run: Run, index: number): Promise<void> {
  await probe(run, run.processes[index]);
  await run.look();
}

/** A refusal that is on its way to Redis while what it says is overtaken. */
export async function lateRefusal(run: Run): Promise<string | null> {
  const full = await fill(run);
  if (!full) return null;
  full.one.freeze();
  await step(run, 0);
  await finishOne(run, run.settle(full.other, full.key, { status: "released", abort: false }));
  await run.look();
  await full.one.mend();
  await step(run, 1);
  return "a refusal comes late";
}

/** A refusal that is on its way to Redis while the plan grows. */
export async function lateUpgrade(run: Run): Promise<string | null> {
  await changePlan(run, "free");
  const full = await fill(run);
  if (!full) return null;
  await run.emptyRedis();
  const task = run.reserve(full.one, { textMessages: 1 }, { expiresInMs: null, abort: false });
  while (!task.over && !(task.place === "redis" && task.backend !== null)) await goOn(run, task);
  await run.look();
  await changePlan(run, "premium");
  await run.look();
  await finishOne(run, task);
  await run.look();
  await step(run, 1);
  return "a plan grows before its refusal has come";
}

/** What came back and could not be told refuses nobody for longer than Redis remembers. */
export async function untoldReturn(run: Run): Promise<string | null> {
  const full = await fill(run);
  if (!full) return null;
  full.one.cut();
  await finishOne(run, run.settle(full.one, full.key, { status: "released", abort: false }));
  await run.look();
  await step(run, 1);
  await run.letTimePass(run.random.pick([5_000, 10_500]));
  await step(run, 1);
  return "Redis is not told of a return";
}

/** Work that took more than was reserved, while somebody else takes what is left. */
export async function overrun(run: Run): Promise<string | null> {
  await drain(run);
  const line = run.model.lines().find(({ kind, status }) => kind !== "textMessages" && status === "reserved");
  if (!line) return null;
  const [one, other] = [run.processes[0]!, run.processes[1]!];
  const reserving = run.reserve(one, { [line.kind]: 2 }, { expiresInMs: null, abort: false });
  while (!reserving.over && reserving.place !== "before the commit") await goOn(run, reserving);
  const actual = { [line.kind]: 30 };
  const settling = run.settle(other, line.key, { status: "committed", actual, abort: false });
  while (!settling.over && settling.place !== null && settling.place !== "before the commit") await goOn(run, settling);
  await run.look();
  await drain(run);
  return `${line.kind} take more than was reserved`;
}
