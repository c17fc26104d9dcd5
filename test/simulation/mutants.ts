import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { mutants, type Mutant } from "./mutantList.ts";

const ROOT = resolve(import.meta.dir, "../..");
/** A mutant that lives through so many schedules is not caught. */
const MOST_SEEDS = "1500";

interface Catch {
  seed: number;
  after: number;
  violations: string[];
}

/** Plants each fault in a copy of the source and looks for the first seed that shows it. 1 when one is not caught. */
export async function huntMutants(only: string | undefined): Promise<number> {
  const chosen = mutants.filter((mutant) => mutant.name.includes(only ?? ""));
  let missed = 0;
  console.log("| mutant | caught by seed | after schedules | as |\n| --- | --- | --- | --- |");
  for (const mutant of chosen) {
    const caught = await hunt(mutant);
    if (!caught) missed += 1;
    const cells = caught ? [caught.seed, caught.after, caught.violations[0]] : ["not caught", MOST_SEEDS, ""];
    console.log(`| ${[mutant.name, ...cells].join(" | ")} |`);
  }
  console.error(`${chosen.length - missed} of ${chosen.length} mutants caught`);
  return missed > 0 ? 1 : 0;
}

async function hunt(mutant: Mutant): Promise<Catch | null> {
  const folder = mkdtempSync(join(tmpdir(), "reef-mutant-"));
  try {
    for (const name of ["src", "test", "scripts", "templates"])
      cpSync(join(ROOT, name), join(folder, name), { recursive: true });
    for (const name of ["package.json", "tsconfig.json"]) cpSync(join(ROOT, name), join(folder, name));
    symlinkSync(join(ROOT, "node_modules"), join(folder, "node_modules"));
    plant(folder, mutant);
    return await firstCatch(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Fails loudly when the text is not there, or not once: then the mutant has to be written anew. */
export function plant(folder: string, mutant: Mutant): void {
  const path = join(folder, "src", mutant.file);
  let text = readFileSync(path, "utf8");
  for (const [from, to] of mutant.changes) {
    const times = text.split(from).length - 1;
    if (times !== 1) throw new Error(`the mutant "${mutant.name}" fits ${times} times in src/${mutant.file}`);
    text = text.replace(from, () => to);
  }
  writeFileSync(path, text);
}

async function firstCatch(folder: string): Promise<Catch | null> {
  const command = ["test/simulation/main.ts", "--json", "--failures", "1", "--seeds", MOST_SEEDS];
  const child = Bun.spawn([process.execPath, "--no-env-file", ...command], { cwd: folder, stderr: "pipe" });
  const [out, err] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  await child.exited;
  if (!out.startsWith("{")) throw new Error(`the simulation of a mutant did not run:\n${err}`);
  const { failures } = JSON.parse(out) as { failures: Catch[] };
  return failures[0] ?? null;
}
