import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createRestic } from "../../src/clients/restic.ts";
import { dyingWithUs } from "../../src/lib/deathSignal.ts";
import { tool } from "../tools.ts";

const path = process.env["PATH"];
let folder: string;
let repository: string;
let env: Record<string, string>;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), `reef-test-${process.pid}-restic-`));
  repository = join(folder, "repository");
  const PATH = `${dirname((await tool("restic")).path)}:${path}`;
  process.env["PATH"] = PATH;
  env = { PATH, TZ: "UTC", HOME: folder, RESTIC_REPOSITORY: repository, RESTIC_PASSWORD: "second" };
  mkdirSync(join(folder, "backups"));
  expect(Bun.spawnSync(command("init"), { env }).exitCode).toBe(0);
});
afterAll(() => {
  process.env["PATH"] = path;
  rmSync(folder, { recursive: true, force: true });
});

const second = () =>
  createRestic({ RESTIC_REPOSITORY: repository, RESTIC_PASSWORD: "second", BACKUP_DIR: join(folder, "backups") })!;
const command = (...args: string[]) => [...dyingWithUs("KILL"), "restic", "--quiet", ...args];
function makeFolder(name: string): string {
  mkdirSync(join(folder, name));
  writeFileSync(join(folder, name, "SHA256SUMS"), name);
  return join(folder, name);
}

test("the lock of a run that was killed while it forgot, which lets in nobody, does not stay", async () => {
  // Half-written ones have longer names.
  const locks = () => readdirSync(join(repository, "locks")).filter((name) => /^[0-9a-f]{64}$/.test(name)).length;
  for (let tries = 0; locks() === 0 && tries < 20; tries++) {
    const child = Bun.spawn(command("check"), { env, stdout: "ignore", stderr: "ignore" });
    while (locks() === 0 && child.exitCode === null) await Bun.sleep(2);
    child.kill("SIGKILL");
    await child.exited;
  }
  expect(locks()).toBe(1);
  const at = new Date("2026-11-21T02:00:00Z");
  await second().send({ paths: [makeFolder("next")], at, gatewayId: "main", signal: AbortSignal.timeout(60_000) });
  expect(locks()).toBe(0);
});
