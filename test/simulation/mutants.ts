import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { mutants, type Mutant } from "./mutantList.ts";

const ROOT = resolve(import.meta.dir, "../..");
/** A mutant that lives through so many schedules is not caught. */
const MOST_SEEDS = 3000;

interface Catch {
  seed: number;
  after: number;
  violations: string[];
}

/** Plants each fault in a copy of the source and looks for the first seed that shows it. 1 when one is not caught. */
export async function huntMutants(only: string): Promise<number> {
  const chosen = mutants.filter((mutant) => mutant.name.includes(only));
  let missed = 0;
  console.log("| mutant | caught by seed | after schedules | as |\n| --- | --- | --- | --- |");
  for (const mutant of chosen) {
    const caught = await withCopy(mutant, (folder) => findFirstCatch(folder, MOST_SEEDS));
    if (!caught) missed += 1;
    const cells = caught ? [caught.seed, caught.after, caught.violations[0]] : ["not caught", MOST_SEEDS, ""];
    console.log(`| ${[mutant.name, ...cells].join(" | ")} |`);
    if (caught && !(await holdsWithout(caught.seed)))
      throw new Error(`seed ${caught.seed} fails without the mutant, too`);
  }
  console.error(`${chosen.length - missed} of ${chosen.length} mutants caught`);
  return missed > 0 ? 1 : 0;
}

/** Runs `use` with a copy of the project that has the fault in it. */
export async function withCopy<T>(mutant: Mutant, use: (folder: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), "reef-mutant-"));
  try {
    for (const name of ["src", "test", "scripts"]) cpSync(join(ROOT, name), join(folder, name), { recursive: true });
    for (const name of ["package.json", "tsconfig.json"]) cpSync(join(ROOT, name), join(folder, name));
    symlinkSync(join(ROOT, "node_modules"), join(folder, "node_modules"));
    writeFileSync(join(folder, "src", mutant.file), mutate(mutant));
    return await use(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The mutated file. Throws when a text is not there, or not once: then the mutant has to be written anew. */
export function mutate(mutant: Mutant): string {
  let text = readFileSync(join(ROOT, "src", mutant.file), "utf8");
  for (const [from, to] of mutant.changes) {
    const times = text.split(from).length - 1;
    if (times !== 1) throw new Error(`the mutant "${mutant.name}" fits ${times} times in src/${mutant.file}`);
    text = text.replace(from, () => to);
  }
  return text;
}

/** The first of so many seeds that fails in that copy. */
export async function findFirstCatch(folder: string, seeds: number): Promise<Catch | null> {
  const { out, err } = await runMain(folder, ["--json", "--failures", "1", "--seeds", String(seeds)]);
  if (!out.startsWith("{")) throw new Error(`the simulation of a mutant did not run:\n${err}`);
  const { failures } = JSON.parse(out) as { failures: Catch[] };
  return failures[0] ?? null;
}

async function holdsWithout(seed: number): Promise<boolean> {
  return (await runMain(ROOT, ["--seed", String(seed)])).code === 0;
}

async function runMain(folder: string, args: string[]): Promise<{ code: number; out: string; err: string }> {
  const command = [process.execPath, "--no-env-file", "test/simulation/main.ts", ...args];
  const child = Bun.spawn(command, { cwd: folder, stdout: "pipe", stderr: "pipe" });
  const [out, err] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { code: await child.exited, out, err };
}
