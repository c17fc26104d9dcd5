import { afterAll, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import {
  explain,
  freePort,
  isDiskFull,
  lastLines,
  spawnChild,
  StartError,
  waitUntil,
} from "../../scripts/services/process.ts";
import { loadEnvFile, urlOf } from "../../scripts/services/settings.ts";

const folder = mkdtempSync(join(tmpdir(), "reef-process-"));
const root = resolve(import.meta.dir, "../..");
const env = { PATH: process.env["PATH"] ?? "/usr/bin:/bin" };
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function gone(pid: number): Promise<boolean> {
  for (let tries = 0; tries < 100; tries += 1) {
    const status = existsSync(`/proc/${pid}/status`) ? readFileSync(`/proc/${pid}/status`, "utf8") : "State:\tZ";
    if (/State:\t[ZX]/.test(status)) return true;
    await Bun.sleep(20);
  }
  return false;
}

test("what we started dies when we are killed", async () => {
  const parent = join(folder, "parent.ts");
  writeFileSync(
    parent,
    `import { spawnChild } from "${root}/scripts/services/process.ts";
     console.log(spawnChild({ command: ["sleep", "300"], env: { PATH: process.env.PATH ?? "" }, deathSignal: "KILL" }).pid);
     setInterval(() => {}, 1000);`,
  );
  const child = Bun.spawn([process.execPath, parent], { stdout: "pipe" });
  const first = await child.stdout.getReader().read();
  const pid = Number(new TextDecoder().decode(first.value));
  expect(pid).toBeGreaterThan(1);
  child.kill("SIGKILL");
  expect(await gone(pid)).toBe(true);
});

test("what we start while we are killed is never begun", async () => {
  const slow = join(folder, "slow");
  const begun = join(folder, "begun");
  mkdirSync(slow);
  // By the time the kernel is asked for a death signal, the parent is dead.
  writeFileSync(join(slow, "setpriv"), `#!/bin/sh\necho here\nsleep 1\nPATH=${env.PATH} exec setpriv "$@"\n`);
  chmodSync(join(slow, "setpriv"), 0o755);
  const parent = join(folder, "hasty.ts");
  writeFileSync(
    parent,
    `import { spawnChild } from "${root}/scripts/services/process.ts";
     const child = spawnChild({ command: ["touch", "${begun}"], env: process.env, deathSignal: "KILL" });
     console.log(child.pid);`,
  );
  const child = Bun.spawn([process.execPath, parent], { env: { PATH: `${slow}:${env.PATH}` }, stdout: "pipe" });
  const output = child.stdout.getReader();
  const decoder = new TextDecoder();
  let said = "";
  while (!/\d/.test(said) || !said.includes("here")) said += decoder.decode((await output.read()).value);
  child.kill("SIGKILL");
  expect(await gone(Number(/\d+/.exec(said)?.[0]))).toBe(true);
  expect(existsSync(begun)).toBe(false);
});

test("a process that ignores the signal gets the last one at the deadline", async () => {
  const logFile = join(folder, "stubborn.log");
  const child = spawnChild({
    command: ["sh", "-c", "trap '' TERM; echo here; while :; do sleep 0.05; done"],
    env,
    deathSignal: "KILL",
    logFile,
  });
  expect(await waitUntil(child, 5_000, async () => lastLines(logFile, 1) === "here")).toBe(true);
  await child.stop("SIGTERM", 50);
  expect(child.running()).toBe(false);
});

test("waiting ends when the process does", async () => {
  const child = spawnChild({ command: ["false"], env, deathSignal: "KILL" });
  expect(await waitUntil(child, 60_000, async () => false)).toBe(false);
  expect(await child.exited).toBe(1);
});

test("errors become sentences", () => {
  expect(explain(new StartError("Do this."), "/data")).toBe("Do this.");
  expect(explain(Object.assign(new Error("write"), { code: "ENOSPC" }), "/data")).toContain("/data is full");
  expect(explain(Object.assign(new Error("open"), { code: "EACCES", path: "/data/x" }), "/data")).toContain("/data/x");
});

test("npm start names a bad setting before anything is started", async () => {
  const port = freePort();
  const taken = Bun.listen({ hostname: "127.0.0.1", port, socket: { data() {} } });
  const dataDir = join(folder, "never-made");
  const run = async (settings: Record<string, string>) => {
    const child = Bun.spawn([process.execPath, "--no-env-file", "scripts/start.ts"], {
      cwd: root,
      env: { ...env, ...settings, REEF_DATA_DIR: dataDir },
      stderr: "pipe",
    });
    return { code: await child.exited, said: await new Response(child.stderr).text() };
  };
  const bad = await run({ PORT: "many", REDIS_URL: "here", OPENCLAW_GATEWAY_URL: "ws://127.0.0.1:1" });
  expect(bad.code).toBe(78);
  for (const name of [
    "PORT is",
    "REDIS_URL is",
    "OPENCLAW_GATEWAY_TOKEN is missing",
    "OPENCLAW_GATEWAY_DIR is missing",
  ])
    expect(bad.said).toContain(`\n  ${name}`);
  expect((await run({ PORT: "0" })).code).toBe(78);
  const busy = await run({ PORT: String(port) });
  taken.stop(true);
  expect(busy.code).toBe(1);
  expect(busy.said).toContain(`Port ${port} is in use`);
  expect(existsSync(dataDir)).toBe(false);
});

test(".env: what is set already wins, none is fine, one that can't be read is a sentence", () => {
  const file = join(folder, "settings.env");
  writeFileSync(file, "REEF_TEST_A=file\nREEF_TEST_B=file\n");
  process.env["REEF_TEST_A"] = "set";
  loadEnvFile(file);
  expect([process.env["REEF_TEST_A"], process.env["REEF_TEST_B"]]).toEqual(["set", "file"]);
  for (const name of ["REEF_TEST_A", "REEF_TEST_B"]) delete process.env[name];
  loadEnvFile(join(folder, "absent"));
  expect(() => loadEnvFile(folder)).toThrow(`${folder} can't be read (EISDIR)`);
});

test("the address shown is the one that listens", () => {
  expect(["127.0.0.2", "0.0.0.0", "::", "::1"].map((host) => urlOf(host, 3000))).toEqual([
    "http://127.0.0.2:3000",
    "http://127.0.0.1:3000",
    "http://127.0.0.1:3000",
    "http://[::1]:3000",
  ]);
});

test("a folder with room is not full, and looking leaves nothing", () => {
  expect(isDiskFull(folder)).toBe(false);
  expect(existsSync(join(folder, "room-left"))).toBe(false);
});

test("bootstrap refuses an old Node in one sentence", async () => {
  writeFileSync(join(folder, "node"), "#!/bin/sh\necho v18.20.0\n", { mode: 0o755 });
  const child = Bun.spawn([join(root, "scripts/bootstrap")], {
    env: { PATH: `${folder}:${env.PATH}` },
    stderr: "pipe",
  });
  expect(await child.exited).toBe(1);
  expect(await new Response(child.stderr).text()).toBe("reef: Node.js 20 or later is needed; this is v18.20.0.\n");
});
