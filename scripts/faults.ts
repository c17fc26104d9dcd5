import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { renderReport, type Noted } from "../test/faults/report.ts";
import { findCell, isAboutGateway, TABLE, type Cell } from "../test/faults/table.ts";
import { spawnChild, type Child } from "./services/process.ts";

const help = `Strikes every part of Reef at every moment of a message's life, and writes docs/faults.md.

  npm run test:faults                                       the whole table, some ten minutes
  npm run test:faults -- --cell "postgres/kill/middle"      one cell (may be given again); writes nothing
  npm run test:faults -- --list                             the cells' names

The last line is "N passed, N failed".`;

/** Cells mostly wait: so many run side by side, each lane with a Postgres and a Redis of its own. */
const LANES = 3;

process.chdir(resolve(import.meta.dir, ".."));
const args = process.argv.slice(2);
const all = TABLE.filter((cell) => cell.skip === null);
if (args.includes("--help") || args.includes("-h")) {
  console.log(help);
} else if (args.includes("--list")) {
  for (const cell of all) console.log(cell.id);
} else {
  const chosen = args.flatMap((arg, index) => (arg === "--cell" ? [args[index + 1] ?? ""] : []));
  process.exitCode = await main(chosen);
}

async function main(chosen: string[]): Promise<number> {
  if (chosen.length * 2 !== args.length) return refuse(`Not understood: ${args.join(" ")}\n\n${help}`);
  let cells: Cell[];
  try {
    cells = chosen.length > 0 ? chosen.map(findCell) : all;
  } catch (error) {
    return refuse(`${(error as Error).message} npm run test:faults -- --list names them.`);
  }
  const skipped = cells.find((cell) => cell.skip);
  if (skipped) return refuse(`${skipped.id} is not run: ${skipped.skip!.reason}.`);
  const startedAt = Date.now();
  const notes = await runAll(cells);
  const failed = cells.filter((cell) => (notes.get(cell.id)?.outcome ?? "failing") === "failing");
  if (chosen.length === 0 && notes.size === cells.length)
    writeFileSync("docs/faults.md", renderReport([...notes.values()]));
  for (const cell of failed) console.log(`failed; alone: npm run test:faults -- --cell "${cell.id}"`);
  console.log(`took ${Math.round((Date.now() - startedAt) / 1000)} s`);
  console.log(`${cells.length - failed.length} passed, ${failed.length} failed`);
  return failed.length === 0 ? 0 : 1;
}

function refuse(why: string): number {
  console.error(why);
  return 2;
}

/** Runs the cells in lanes; answers what each noted. A lane that broke off leaves cells without a note. */
async function runAll(cells: Cell[]): Promise<Map<string, Noted>> {
  const folder = mkdtempSync(join(tmpdir(), "reef-faults-run-"));
  const report = join(folder, "report.jsonl");
  const running: Child[] = [];
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
    process.on(signal, () => running.forEach((child) => child.kill("SIGTERM")));
  try {
    running.push(...lanesOf(cells).map((lane) => startLane(lane, report)));
    await Promise.all(running.map((child) => child.exited));
    const lines = existsSync(report) ? readFileSync(report, "utf8").trim().split("\n").filter(Boolean) : [];
    return new Map(lines.map((line) => JSON.parse(line) as Noted).map((note) => [note.id, note]));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function startLane(lane: Cell[], report: string): Child {
  return spawnChild({
    command: [process.execPath, "--no-env-file", "test", "./test/faults/matrix.test.ts"],
    env: {
      ...(process.env as Record<string, string>),
      FAULT_CELLS: lane.map((cell) => cell.id).join("\n"),
      FAULT_REPORT: report,
    },
    deathSignal: "KILL",
    detached: false,
  });
}

/** Evenly long lanes; the cells with the real gateway share one, since it takes ten seconds to start. */
function lanesOf(cells: Cell[]): Cell[][] {
  const lanes = Array.from({ length: LANES }, () => ({ cells: [] as Cell[], seconds: 0 }));
  const withGateway = cells.filter(isAboutGateway);
  const others = cells.filter((cell) => !isAboutGateway(cell));
  for (const [index, group] of [withGateway, ...others.map((cell) => [cell])].entries()) {
    const lane = index === 0 ? lanes[0]! : lanes.toSorted((one, other) => one.seconds - other.seconds)[0]!;
    lane.cells.push(...group);
    lane.seconds += group.reduce((sum, cell) => sum + guessSeconds(cell), 0);
  }
  return lanes.map((lane) => lane.cells).filter((lane) => lane.length > 0);
}

function guessSeconds(cell: Cell): number {
  return { kill: 5, cut: 8, slow: 8, stop: 15, "half-open": 20 }[cell.fault] + (isAboutGateway(cell) ? 5 : 0);
}
