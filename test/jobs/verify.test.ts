import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { writeRunningFile } from "../../scripts/services/runningFile.ts";
import { checkInvariants, INVARIANTS, type Finding } from "../../src/services/invariants.ts";
import { startTestReef } from "../harness.ts";
import { makeTown, type Town } from "./town.ts";

let town: Town;
beforeAll(async () => void (town = await makeTown(2)), 60_000);
afterAll(() => town?.reef.stop());

const options = { patienceMs: 20_000, timeoutMs: 10_000 };
const bad = (findings: Finding[]) => findings.filter((finding) => finding.status !== "ok");

test("a system with answered, failed, stopped, paused and deleted ones holds, while it runs", async () => {
  const findings = await checkInvariants(town.reef.deps, options);
  expect(bad(findings)).toEqual([]);
  expect(findings.map((finding) => finding.id)).toEqual(INVARIANTS.map((invariant) => invariant.id));
  const totals = Object.fromEntries(findings.map((finding) => [finding.id, finding.total]));
  expect(totals).toMatchObject({ turn_answer: 7, message_owner: 14, seq_gapless: 6, purged_rows: 1, usage_sum: 6 });
  expect(totals["configured_awake"]).toBe(4);
});

test("what settles is looked at again, and counts only when it stays", async () => {
  const path = join(town.reef.dir, "openclaw.json");
  const before = readFileSync(path, "utf8");
  let looks = 0;
  const checking = checkInvariants(town.reef.deps, {
    ...options,
    onBegin: ({ id }) => {
      if (id !== "config_current") return;
      looks += 1;
      if (looks <= 2) writeFileSync(path, looks === 1 ? `${before} ` : before);
    },
  });
  expect(bad(await checking)).toEqual([]);
  expect(looks).toBe(2);
});

describe("the command", () => {
  const root = resolve(import.meta.dir, "../..");
  const run = (env: Record<string, string>, ...args: string[]) => runScript("src/jobs/verify.ts", env, ...args);
  const runScript = async (script: string, env: Record<string, string>, ...args: string[]) => {
    const child = Bun.spawn([process.execPath, "--no-env-file", join(root, script), ...args], {
      env: { PATH: process.env["PATH"] ?? "", ...env },
      stdout: "pipe",
      stderr: "pipe",
    });
    const [out, said] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    return { code: await child.exited, out, said };
  };

  test("a violation: 1, each line with its count, a summary last; --json says the same", async () => {
    await town.reef
      .sql`update assistants set message_count = 9 where status = 'active' and user_id in ${town.reef.sql(town.people.map(({ user }) => user.id))}`;
    const shown = await run(town.reef.env, "--patience", "0");
    expect(shown.code).toBe(1);
    const lines = shown.out.trim().split("\n");
    expect(lines.length).toBe(INVARIANTS.length + 1);
    expect(lines.find((line) => line.includes("seq_gapless"))).toMatch(
      /^BAD 2 .* 2 of 6: [0-9a-f-]{36}, [0-9a-f-]{36}$/,
    );
    expect(lines.find((line) => line.includes("config_valid"))).toMatch(/^ok {2}4 .* 0 of 1$/);
    expect(lines.at(-1)).toMatch(new RegExp(`^\\d+ of ${INVARIANTS.length} hold, \\d+ violated$`));
    const json = JSON.parse((await run(town.reef.env, "--patience", "0", "--json")).out);
    expect(json.outcome).toBe("violated");
    expect(json.findings.find((finding: Finding) => finding.id === "seq_gapless").violations).toBe(2);
  });

  test("a healthy system: 0; without its gateway: 2, and the rest is checked all the same", async () => {
    const healthy = await startTestReef();
    try {
      expect(await run(healthy.env)).toMatchObject({ code: 0, said: "" });
      // As npm start tells it: only settings of ours, for its owner only.
      writeRunningFile(healthy.dir, {
        ...healthy.env,
        OPENAI_API_KEY: "sk-planted",
        STRIPE_SECRET_KEY: "sk_live_sk-planted",
      });
      const file = join(healthy.dir, "running.json");
      expect([statSync(file).mode & 0o777, readFileSync(file, "utf8").includes("sk-planted")]).toEqual([0o600, false]);
      const found = await runScript("scripts/verify.ts", { REEF_DATA_DIR: healthy.dir });
      expect([found.code, found.out.trim().split("\n").at(-1)]).toEqual([
        0,
        `${INVARIANTS.length} of ${INVARIANTS.length} hold, 0 violated`,
      ]);
      await healthy.gateway.stop();
      const { code, out } = await run(healthy.env);
      expect([code, out.trim().split("\n").at(-1)]).toEqual([
        2,
        `${INVARIANTS.length - 2} of ${INVARIANTS.length} hold, 0 violated, 2 could not be checked`,
      ]);
    } finally {
      await healthy.stop();
    }
  });

  test("no settings, a database that is away, an unknown option: 2 and a sentence", async () => {
    expect(await run({})).toMatchObject({ code: 2, said: expect.stringContaining("No running system is known") });
    const away = { ...town.reef.env, DATABASE_URL: "postgres://u:secret-word@127.0.0.1:1/x" };
    const { code, said } = await run(away);
    expect([code, said.includes("The database does not answer"), said.includes("secret-word")]).toEqual([
      2,
      true,
      false,
    ]);
    expect((await run(town.reef.env, "--wrong")).code).toBe(2);
    expect((await run({}, "--help")).out).toContain("npm run verify");
  });
});
