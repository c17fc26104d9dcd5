import { afterAll, beforeAll, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { openBusyTown, underLoad } from "./load.ts";

let busy: Awaited<ReturnType<typeof openBusyTown>>;
beforeAll(async () => void (busy = await openBusyTown()), 60_000);
afterAll(() => busy.town.stop());

/** Nothing of a deploy is left, and all run the same. */
function expectAll(release: string): void {
  expect(busy.town.releases()).toEqual([release, release, release]);
  expect(busy.town.leftovers()).toEqual([]);
}

test("a release that does not start: back to the old one, though its migration stays", async () => {
  const { town } = busy;
  const source = town.source("bad", {
    "src/main.ts": (text) =>
      text.replace("const deps = createDeps", 'throw new Error("bad");\n  const deps = createDeps'),
    "src/db/migrations/0999_expand.sql": () => "create table of_a_bad_release (id integer);\n",
  });
  const { code, last, lines } = await underLoad(busy, () => town.deploy(source));
  expect([code, last]).toEqual([1, "deploy: FAILED: bad did not become ready; every process runs one again."]);
  expect(lines).toContain("migrate: applied 0999_expand.sql");
  expectAll("one");
  expect((await town.sql`select 1 from schema_migrations where name = '0999_expand.sql'`).length).toBe(1);
}, 120_000);

test("a release that starts and is never ready: the same", async () => {
  const { town } = busy;
  const source = town.source("deaf", {
    "src/routes/system.ts": (text) =>
      text.replace('isDraining() ? ["shutting down"]', 'isDraining() || true ? ["nothing"]'),
  });
  town.readySeconds = 15;
  const { code, last } = await underLoad(busy, () => town.deploy(source));
  town.readySeconds = 60;
  expect([code, last]).toEqual([1, "deploy: FAILED: deaf did not become ready; every process runs one again."]);
  expectAll("one");
}, 120_000);

test("killed when one process was replaced: --resume replaces the other", async () => {
  const { town } = busy;
  const source = town.source("two");
  const { code, last } = await underLoad(busy, async () => {
    await town.killAfter("process 1 runs two", source);
    expect(town.releases()).toEqual(["two", "two", "one"]);
    return town.deploy("--resume");
  });
  expect([code, last]).toEqual([0, "deploy: done: every process runs two"]);
  expectAll("two");
}, 120_000);

test("killed when one process was replaced: --back returns to where it began; the next deploy starts afresh", async () => {
  const { town } = busy;
  const source = town.source("three");
  const { code, last } = await underLoad(busy, async () => {
    await town.killAfter("process 1 runs three", source);
    return town.deploy("--back");
  });
  expect([code, last]).toEqual([0, "deploy: done: every process runs two"]);
  expectAll("two");
  await town.killAfter("placing the release", town.source("four"));
  const again = await town.deploy(town.source("four"), "--keep", "2");
  expect(again.last).toBe("deploy: done: every process runs four");
  expectAll("four");
  const kept = readdirSync(join(town.root, "opt/reef/releases")).map((name) => name.split("-")[0]);
  expect(new Set(kept)).toEqual(new Set(["four", "three", "two"]));
}, 120_000);

test("from an archive and from git; while one is at work another is refused", async () => {
  const { town } = busy;
  const source = town.source("packed");
  const archive = join(town.root, "packed.tar.gz");
  const git = (...args: string[]) =>
    spawnSync("git", ["-C", source, "-c", "user.name=x", "-c", "user.email=x@example.org", ...args], {
      encoding: "utf8",
    });
  spawnSync("tar", ["-C", join(source, ".."), "-czf", archive, "packed"]);
  const other = Bun.spawn([
    "sh",
    "-c",
    `exec 9>>"$1" && flock 9 && exec sleep 60`,
    "sh",
    join(town.root, "opt/reef/deploy.lock"),
  ]);
  expect((await town.deploy(archive)).code).toBe(75);
  other.kill();
  expect((await town.deploy(archive)).code).toBe(0);
  expectAll("packed");
  git("init", "--quiet");
  git("add", ".");
  git("commit", "--quiet", "-m", "x");
  expect((await town.deploy(`${source}#HEAD`)).last).toBe("deploy: done: every process runs packed");
}, 120_000);
