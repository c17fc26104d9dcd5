import { afterAll, beforeAll, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, symlinkSync } from "node:fs";
import { join, resolve } from "node:path";
import type { Json } from "../factories.ts";
import { until } from "../harness.ts";
import { tool } from "../tools.ts";
import { openBusyTown, underLoad } from "./load.ts";

// What needs longer (releases that fail, deploys that are killed) is in deploy.machine.ts.
let busy: Awaited<ReturnType<typeof openBusyTown>>;
beforeAll(async () => void (busy = await openBusyTown()), 120_000);
afterAll(() => busy.town.stop());

test("deploy.sh passes shellcheck", async () => {
  const shellcheck = await tool("shellcheck");
  const script = resolve(import.meta.dir, "../../scripts/deploy.sh");
  const { stdout, status } = spawnSync(shellcheck.path, [script], { env: shellcheck.env, encoding: "utf8" });
  expect([status, stdout]).toEqual([0, ""]);
}, 120_000);

test("a good release: every process runs it, no request failed, every message was answered once", async () => {
  const { town } = busy;
  const source = town.source("two", {
    "systemd/reef-new.service": () => "[Service]\n",
    "systemd/reef-new.timer": () => "[Timer]\n",
  });
  const { code, last, lines } = await underLoad(busy, () => town.deploy(source));
  expect([code, last]).toEqual([0, "deploy: done: every process runs two"]);
  expect(town.releases()).toEqual(["two", "two", "two"]);
  expect(town.leftovers()).toEqual([]);
  expect(town.manager.calls).toContain("systemctl enable --now reef-new.timer");
  expect(town.manager.calls).toContain("systemctl restart reef-files@main");
  expect(lines.join("\n")).toContain("note: two is made for OpenClaw");
  expect(town.manager.calls.filter((call) => call.includes("reef-gateway") && !call.includes("show"))).toEqual([]);
});

test("a restart: every process began anew with the settings as they are now, and no request failed", async () => {
  const { town } = busy;
  const before = town.manager.calls.length;
  const { code, last } = await underLoad(busy, () => town.deploy("--restart"));
  expect([code, last]).toEqual([0, "deploy: done: every process began anew"]);
  expect(town.releases()).toEqual(["two", "two", "two"]);
  expect(town.leftovers()).toEqual([]);
  const changes = town.manager.calls
    .slice(before)
    .filter((call) => /reef-api@.$/.test(call) && !/ reset-failed /.test(call));
  expect(changes).toEqual(
    [1, 2].flatMap((n) => [`systemctl stop reef-api@${n}`, `systemctl --no-block start reef-api@${n}`]),
  );
});

test("OpenClaw only when asked for; one that does not serve is returned from", async () => {
  const { town } = busy;
  const link = join(town.root, "opt/reef/openclaw/current");
  mkdirSync(join(town.root, "opt/reef/openclaw/9.9.8"), { recursive: true });
  symlinkSync("9.9.8", link);
  const lock = readFileSync(resolve(import.meta.dir, "../../deploy/openclaw/package.json"), "utf8");
  const wanted = (JSON.parse(lock) as Json).dependencies.openclaw;
  town.manager.badOpenclaw = wanted;
  const failed = await town.deploy("--resume", "--gateway");
  expect([failed.code, failed.last, readlinkSync(link)]).toEqual([
    1,
    `deploy: FAILED: OpenClaw ${wanted} did not serve; two runs with OpenClaw 9.9.8.`,
    "9.9.8",
  ]);
  town.manager.badOpenclaw = null;
  expect((await town.deploy("--resume", "--gateway")).last).toBe("deploy: done: every process runs two");
  expect(readlinkSync(link)).toBe(wanted);
});

test("what can't go well is refused before anything changes", async () => {
  const { town } = busy;
  const setting = town.source("setting", {
    "src/config.ts": (text) => text.replace("  HOST: text(", '  NEW_SECRET: text("A new secret"),\n  HOST: text('),
  });
  const refused = await town.deploy(setting);
  expect([refused.code, refused.last]).toEqual([
    1,
    `deploy: FAILED: the settings in ${town.root}/etc/reef/reef.env are not valid for setting (above). Nothing was changed.`,
  ]);
  expect(refused.lines.join("\n")).toContain("NEW_SECRET is missing");
  const breaking = town.source("breaking", {
    "src/db/migrations/0999_contract.sql": () =>
      "-- breaking: nobody reads it any more\nalter table users drop column name;\n",
  });
  const contract = await town.deploy(breaking);
  expect([contract.code, contract.last]).toEqual([1, expect.stringContaining("holds a breaking migration")]);
  expect((await town.deploy(join(town.root, "etc"))).last).toContain("there is no Reef");
  expect((await town.deploy("--frobnicate")).code).toBe(64);
  expect((await town.deploy("--help")).lines.join("\n")).toContain("--resume");
  const plan = await town.deploy("--back", "--dry-run");
  expect([plan.code, plan.lines.join("\n")]).toEqual([0, expect.stringContaining("would go to release one")]);
  expect(town.releases()).toEqual(["two", "two", "two"]);
  expect(town.leftovers()).toEqual([]);
  expect(readdirSync(join(town.root, "opt/reef/releases")).filter((name) => name.startsWith("."))).toEqual([]);
  expect(existsSync(join(town.root, "etc/systemd/system/reef-new.timer"))).toBe(true);
});

test("a gateway that is down keeps nobody from going back, or on, to what may mend it", async () => {
  const { town } = busy;
  const { gateway } = town.reef;
  gateway.setReady(false);
  gateway.dropConnections();
  const waiting = async (url: string) => (await fetch(`${url}/readyz`)).status === 503;
  await until("nobody is ready", async () => (await Promise.all(town.urls.map(waiting))).every(Boolean));
  const back = await town.deploy("--back", "--gateway");
  expect([back.code, back.last]).toEqual([0, "deploy: done: every process runs one"]);
  expect(back.lines).toContain("deploy: note: the gateway is still away: docs/runbooks/gateway-down.md");
  expect(town.releases()).toEqual(["one", "one", "one"]);
  expect(town.leftovers()).toEqual([]);
  gateway.setReady(true);
  const on = await town.deploy("--back");
  expect([on.code, on.last]).toEqual([0, "deploy: done: every process runs two"]);
  expect(town.releases()).toEqual(["two", "two", "two"]);
});
