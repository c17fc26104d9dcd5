import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir, userInfo } from "node:os";
import { join, resolve } from "node:path";
import { z } from "zod";
import { writeRunningFile } from "../../scripts/services/runningFile.ts";
import { bad, GROUPS, ok, onHost, type Check, type Scene } from "../../src/services/doctor/check.ts";
import { CHECKS } from "../../src/services/doctor/list.ts";
import { runChecks, type RunOptions } from "../../src/services/doctor/runChecks.ts";
import { startTestReef, type TestReef } from "../harness.ts";
import { makeStandIn, type StandIn } from "./standIn.ts";

const root = resolve(import.meta.dir, "../..");
let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()), 30_000);
afterAll(() => reef?.stop());

const look = (machine: StandIn, checks: readonly Check[], options: Partial<RunOptions> = {}) => {
  const place = { isTrial: false, hasSystemd: false, isInstalled: true, hasNginx: false, domain: null, api: [] };
  const tls = { address: "127.0.0.1", port: 1 };
  const scene: Scene = {
    host: { ...machine.host, isRoot: true },
    place,
    deps: reef.deps,
    options: { deep: false, alarm: false },
    pins: {},
    tls,
    outside: { addresses: [], innerPorts: [] },
  };
  return runChecks(scene, checks, { fix: false, dryRun: false, ...options });
};

describe("the run", () => {
  test("one that hangs or throws could not be checked, and the others are", async () => {
    const machine = makeStandIn();
    const done: string[] = [];
    const findings = await look(
      machine,
      [
        onHost("machine.hangs", () => new Promise(() => undefined), { limitMs: 50 }),
        onHost("machine.throws", () => Promise.reject(new Error("a strange answer"))),
        onHost("machine.breaks", () => {
          throw new TypeError("at once");
        }),
        onHost("machine.well", async () => ok("fine")),
      ],
      { onDone: ({ id }) => done.push(id) },
    );
    expect(findings.map(({ status, found }) => `${status} ${found}`)).toEqual([
      "unchecked could not be checked: the check took longer than 50 ms",
      "unchecked could not be checked: a strange answer",
      "unchecked could not be checked: at once",
      "ok fine",
    ]);
    // As they finish, not in their order.
    expect(done.at(-1)).toBe("machine.hangs");
    machine.remove();
  });

  test("what others say is cleared of our secrets", async () => {
    const machine = makeStandIn();
    const { JWT_SECRET, OPENCLAW_GATEWAY_TOKEN, DATABASE_URL } = reef.deps.config;
    const password = decodeURIComponent(new URL(DATABASE_URL).password);
    const says = `${JWT_SECRET} ${OPENCLAW_GATEWAY_TOKEN} ${DATABASE_URL} ${password}`;
    const [thrown, told] = await look(machine, [
      onHost("machine.throws", () => Promise.reject(new Error(says))),
      onHost("machine.tells", async () => bad(says, `put ${JWT_SECRET} somewhere`)),
    ]);
    const text = JSON.stringify([thrown, told]);
    for (const secret of [JWT_SECRET, OPENCLAW_GATEWAY_TOKEN, password]) expect(text).not.toContain(secret);
    expect(told!.fix).toBe("put [secret] somewhere");
    machine.remove();
  });

  test("--fix mends a mode and makes a missing folder, and nothing else; --dry-run only says so", async () => {
    const machine = makeStandIn();
    const { uid, gid } = userInfo();
    machine.write("/etc/passwd", `root:x:${uid}:${gid}:::/bin/sh\n`);
    machine.write("/etc/reef/reef.env", "JWT_SECRET=planted\n", 0o644);
    machine.write("/etc/reef/backup.env", "A=1\n", 0o600);
    machine.write("/var/lib/reef/other", "x", 0o777);
    const modeOf = (path: string) => (statSync(join(machine.root, path), { throwIfNoEntry: false })?.mode ?? 0) & 0o777;
    const its = CHECKS.filter(({ id }) => /^permissions\.(reef_env|backup_env|backups)$/.test(id));
    const dry = await look(machine, its, { fix: true, dryRun: true });
    expect(dry.map(({ status, repaired }) => [status, repaired])).toEqual([
      ["bad", "chown root: /etc/reef/reef.env && chmod 0600 /etc/reef/reef.env"],
      ["ok", null],
      ["bad", "install -d -o root -m 0700 /var/backups/reef"],
    ]);
    expect([modeOf("/etc/reef/reef.env"), modeOf("/var/backups/reef")]).toEqual([0o644, 0]);
    const mended = await look(machine, its, { fix: true });
    expect(mended.map(({ status }) => status)).toEqual(["ok", "ok", "ok"]);
    expect(mended.map(({ repaired }) => repaired)).toEqual(dry.map(({ repaired }) => repaired));
    expect([modeOf("/etc/reef/reef.env"), modeOf("/var/backups/reef")]).toEqual([0o600, 0o700]);
    expect(modeOf("/var/lib/reef/other")).toBe(0o777);
    machine.remove();
  });

  test("--fix turns a timer on and says when it could not", async () => {
    const machine = makeStandIn();
    const check = { ...CHECKS.find(({ id }) => id === "jobs.timer_backup")! };
    const staged = onHost("jobs.timer_backup", (scene) =>
      check.run({ ...scene, place: { ...scene.place, hasSystemd: true } }),
    );
    const state = join(machine.root, "state");
    machine.write("state", "disabled");
    machine.program(
      "systemctl",
      `if [ "$1" = enable ]; then printf enabled > ${state}; else read -r s < ${state} || true
       printf 'LoadState=loaded\\nActiveState=active\\nUnitFileState=%s\\nNextElapseUSecRealtime=Fri\\n' "$s"; fi`,
    );
    const [mended] = await look(machine, [staged], { fix: true });
    expect(mended).toMatchObject({ status: "ok", repaired: "systemctl enable --now reef-backup.timer" });
    machine.program(
      "systemctl",
      `[ "$1" = enable ] && { echo 'no right' >&2; exit 1; }
       printf 'LoadState=loaded\\nActiveState=inactive\\nUnitFileState=disabled\\nNextElapseUSecRealtime=\\n'`,
    );
    const [refused] = await look(machine, [staged], { fix: true });
    expect(refused!.status).toBe("bad");
    expect(refused!.repaired).toBe("could not: systemctl enable --now reef-backup.timer (no right)");
    machine.remove();
  });
});

describe("the command", () => {
  const run = (env: Record<string, string>, ...args: string[]) => runScript("src/jobs/doctor.ts", env, ...args);
  const runScript = async (script: string, env: Record<string, string>, ...args: string[]) => {
    const child = Bun.spawn([process.execPath, "--no-env-file", join(root, script), ...args], {
      env: { PATH: process.env["PATH"] ?? "", ...env },
      stdout: "pipe",
      stderr: "pipe",
    });
    const [out, said] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    return { code: await child.exited, out, said };
  };
  const settings = (): Record<string, string> => ({
    ...reef.env,
    PORT: new URL(reef.url).port,
    JWT_SECRET: "hL3kq9ZfW2vT8xNb5RdYc7JmGp4sQa1u",
  });

  const schema = z.strictObject({
    schema: z.literal(1),
    outcome: z.enum(["ok", "bad", "unchecked"]),
    host: z.string().min(1),
    checked_at: z.iso.datetime(),
    findings: z.array(
      z.strictObject({
        id: z.string().regex(/^[a-z]+\.[a-z0-9_]+$/),
        group: z.enum(GROUPS),
        status: z.enum(["ok", "warn", "bad", "skipped", "unchecked"]),
        found: z.string().min(1),
        fix: z.string().min(1).nullable(),
        repaired: z.string().nullable(),
        ms: z.number().int().min(0),
      }),
    ),
  });

  test("--json: everything that is not costly, by its schema, without a secret; chats for real where asked", async () => {
    const env = settings();
    const { code, out } = await run(env, "--json", "--quick");
    const report = schema.parse(JSON.parse(out));
    const costly = CHECKS.filter(({ isCostly }) => isCostly).map(({ id }) => id);
    expect(report.findings.map(({ id }) => id)).toEqual(
      CHECKS.map(({ id }) => id).filter((id) => !costly.includes(id)),
    );
    expect(costly).toContain("chat.answer");
    // Its token is a test's: too short for a server.
    expect(report.findings.filter(({ status }) => status === "bad").map(({ id }) => id)).toEqual(["settings.secrets"]);
    expect([code, report.outcome]).toEqual([1, "bad"]);
    const secrets = [env["JWT_SECRET"]!, env["OPENCLAW_GATEWAY_TOKEN"]!, new URL(env["DATABASE_URL"]!).password];
    for (const secret of secrets) expect(out).not.toContain(secret);
    const chat = await run(env, "--only", "chat");
    expect(chat.out.trim().split("\n").at(-1)).toBe("3 ok, 0 warn, 0 bad, 0 skipped");
    expect(chat.code).toBe(0);
  });

  test("it finds the trial that runs; without one, or misused, 2", async () => {
    const folder = mkdtempSync(join(tmpdir(), "reef-doctor-"));
    writeRunningFile(folder, settings());
    const found = await runScript("scripts/doctor.ts", { REEF_DATA_DIR: folder }, "--only", "database,redis");
    expect(found.out).toContain("ok   database.answers");
    expect(found.code).toBe(0);
    rmSync(folder, { recursive: true });
    const none = await runScript("scripts/doctor.ts", { REEF_DATA_DIR: folder });
    expect(none).toMatchObject({ code: 2, out: "" });
    expect(none.said).toContain("No running system is known here");
    expect((await run({}, "--only", "nonsense")).said).toContain('There is no group "nonsense"');
    expect((await run({}, "--dry-run")).code).toBe(2);
    expect((await run({}, "--help")).out).toContain("Exit code: 0 nothing is bad");
  });

  test("settings that can't be read are a finding, and the machine is looked at all the same", async () => {
    const { code, out, said } = await run(
      { ...settings(), JWT_SECRET: "planted", REDIS_URL: "" },
      "--only",
      "settings,machine",
    );
    expect(code).toBe(1);
    expect(said).toContain("REDIS_URL is missing");
    expect(out).toContain("BAD  settings.readable");
    expect(out).toMatch(/machine\.memory +\d/);
    expect(out + said).not.toContain("planted");
    // All of this group is skipped then, which is no good news.
    const backup = await run({ ...settings(), REDIS_URL: "" }, "--only", "backup");
    expect(backup.out).toContain("BAD  settings.readable");
    expect(backup.code).toBe(1);
  });
});
