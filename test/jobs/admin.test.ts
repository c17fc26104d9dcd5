import { afterAll, beforeAll, expect, test } from "bun:test";
import { join, resolve } from "node:path";
import { call } from "../factories.ts";
import { raiseAlarm } from "../../src/services/alarms.ts";
import { startTestReef, type TestReef } from "../harness.ts";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

const root = resolve(import.meta.dir, "../..");
const run = async (env: Record<string, string>, ...args: string[]) => {
  const child = Bun.spawn([process.execPath, "--no-env-file", join(root, "src/jobs/admin.ts"), ...args], {
    env: { PATH: process.env["PATH"] ?? "", ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, said] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { code: await child.exited, out: out.trim(), said };
};

test("a token is made, shown once, works, is listed, is revoked, is refused; a name is never used twice", async () => {
  const created = await run(reef.env, "token", "create", "--name", "carol");
  expect([created.code, /^op_[\w-]{43}$/.test(created.out), created.said.includes(created.out)]).toEqual([
    0,
    true,
    false,
  ]);
  const ask = async () => (await call(reef.url, "GET", "/api/admin/users", undefined, created.out)).status;
  expect(await ask()).toBe(200);
  const listed = await run(reef.env, "token", "list");
  expect(listed.out).toMatch(/^carol +living +made 20\S+ \S+ {2}used 20/);
  expect(listed.out).not.toContain("op_");
  expect((await run(reef.env, "token", "revoke", "carol")).code).toBe(0);
  expect(await ask()).toBe(401);
  expect((await run(reef.env, "token", "list")).out).toMatch(/^carol +revoked 20/);
  expect((await run(reef.env, "token", "revoke", "carol")).code).toBe(1);
  expect((await run(reef.env, "token", "create", "--name", "carol")).code).toBe(1);
  const audits =
    await reef.sql`select action, actor, details from audit_log where action like 'operator.token_%' order by id`;
  expect(audits.map(({ action, actor, details }) => [action, actor, details.name])).toEqual([
    ["operator.token_created", "job:admin", "carol"],
    ["operator.token_revoked", "job:admin", "carol"],
    ["operator.token_refused", "unknown", undefined],
  ] as never);
});

test("misuse is 2 and a sentence, help is 0, for each command", async () => {
  for (const args of [
    [],
    ["token"],
    ["token", "make"],
    ["token", "create"],
    ["token", "create", "--name", "Bad Name"],
    ["token", "revoke"],
    ["token", "list", "x"],
    ["--wrong"],
  ])
    expect([args, (await run(reef.env, ...args)).code]).toEqual([args, 2]);
  for (const verb of ["create", "list", "revoke"])
    expect((await run({}, "token", verb, "--help")).out).toStartWith(`npm run admin -- token ${verb}`);
  expect(await run({}, "--help")).toMatchObject({ code: 0, out: expect.stringContaining("token create --name NAME") });
  expect(await run({}, "token", "list")).toMatchObject({ code: 2, said: expect.stringContaining("No running system") });
});

test("alarms are listed, and one of something that is no more is ended", async () => {
  await raiseAlarm(reef.deps, { key: "gateway:gone", severity: "critical", summary: "gateway gone does not answer" });
  expect((await run(reef.env, "alarm", "list")).out).toMatch(
    /^20\S+ \S+ +1x {2}critical +gateway:gone {2}gateway gone does not answer$/,
  );
  expect((await run(reef.env, "alarm", "end", "gateway:other")).code).toBe(1);
  expect((await run(reef.env, "alarm", "end", "gateway:gone")).code).toBe(0);
  expect((await run(reef.env, "alarm", "list")).out).toBe("");
});
