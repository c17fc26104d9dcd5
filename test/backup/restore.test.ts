import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import postgres from "postgres";
import { createBackupFolder } from "../../src/clients/backupFolder.ts";
import { readErasures } from "../../src/services/erasures.ts";
import { checkInvariants } from "../../src/services/invariants.ts";
import { isAnswer, makeAssistant, makeUser, openChat, type Json, type TestUser } from "../factories.ts";
import { searchDatabase, searchFiles } from "../deletion/search.ts";
import { createTestDatabase, startProcess, startTestReef, until, type TestReef } from "../harness.ts";
import { tool } from "../tools.ts";
import { listBackups, run, runJob, startSurroundings, type Surroundings } from "./surroundings.ts";

let around: Surroundings;
let reef: TestReef;
let env: Record<string, string>;
let ada: TestUser;
let bob: TestUser;
let hers: Json;
let spare: Json;
let his: Json;
let first: string;

const say = async (user: TestUser, assistant: Json, text: string) => {
  const chat = await openChat(reef, user.token, assistant.agent_id);
  chat.say(text);
  await chat.next("the answer", isAnswer);
  chat.close();
};
const workspaceOf = (assistant: Json) => join(reef.dir, "workspaces", assistant.agent_id);
const restore = (...args: string[]) => run(["scripts/restore.sh", "--no-services", ...args], env);
const databases = async () => {
  const admin = postgres(around.postgres.url, { max: 1, onnotice: () => undefined });
  const rows = await admin<
    { datname: string }[]
  >`select datname from pg_database where datname like 'reef\\_%' order by 1`;
  await admin.end();
  return rows.map(({ datname }) => datname);
};
const stopAll = async () => {
  await reef.stopProcess();
  await reef.gateway.stop();
};
/** Everything again, on what was restored. */
const startAll = async () => {
  // The step before each start of a gateway.
  expect((await runJob("parkAgents", { ...env, ...reef.env })).code).toBe(0);
  reef.gateway = await reef.gateway.restart();
  const started = await startProcess(reef.env);
  Object.assign(reef, started, { sql: started.deps.sql, stopProcess: () => started.stop() });
  reef.stop = async () => {
    await started.stop().catch(() => undefined);
    await reef.gateway.stop();
  };
};

// A backup with Ada and Bob; then Bob leaves, Ada deletes an assistant, says more, and her assistant notes more.
beforeAll(async () => {
  around = await startSurroundings();
  reef = await startTestReef({ DATABASE_URL: await createTestDatabase(around.postgres.url) });
  env = { ...reef.env, ...around.env, RESTIC_REPOSITORY: join(around.folder, "restic"), RESTIC_PASSWORD: "second" };
  [ada, bob] = [await makeUser(reef), await makeUser(reef)];
  await reef.sql`insert into subscriptions (user_id, plan, source) values (${ada.id}, 'premium', 'grant')`;
  [hers, spare, his] = [await makeAssistant(ada), await makeAssistant(ada), await makeAssistant(bob)];
  await Promise.all([
    say(ada, hers, "apples before"),
    say(ada, spare, "spare thoughts"),
    say(bob, his, "bobs secret walrus"),
  ]);
  writeFileSync(join(workspaceOf(hers), "MEMORY.md"), "She likes apples.\n");
  writeFileSync(join(workspaceOf(his), "MEMORY.md"), "He keeps a walrus.\n");
  expect((await runJob("backup", env)).code).toBe(0);
  first = listBackups(around.backups)[0]!;
  await say(ada, hers, "bananas after");
  writeFileSync(join(workspaceOf(hers), "MEMORY.md"), "She likes bananas.\n");
  await ada.call("DELETE", `/api/assistants/${spare.id}`);
  expect((await bob.call("DELETE", "/api/user/account", { password: bob.password })).status).toBe(202);
  await until("Bob and the spare one are gone", async () => {
    const [row] = await reef.sql<{ n: number }[]>`
      select (select count(*) from account_deletions where finished_at is not null)
        + (select count(*) from assistants where purge_step = 'purged') as n`;
    return Number(row!.n) === 2;
  });
  await stopAll();
});
afterAll(async () => {
  await reef?.stop();
  if (reef) rmSync(reef.dir, { recursive: true, force: true });
  await around?.close();
});

/** What is true after each restore of the first backup: it is Ada's as it was, and of nobody who left. */
async function expectRestored(): Promise<void> {
  await startAll();
  const texts = await reef.sql<
    { content: string }[]
  >`select content from messages where user_id = ${ada.id} and role = 'user'`;
  expect(texts.map(({ content }) => content)).toContain("apples before");
  expect(texts.map(({ content }) => content)).not.toContain("bananas after");
  expect(readFileSync(join(workspaceOf(hers), "MEMORY.md"), "utf8")).toBe("She likes apples.\n");
  await until("whoever was erased is erased again", async () => {
    const [row] = await reef.sql<{ n: number }[]>`
      select (select count(*) from users where id = ${bob.id})
        + (select count(*) from assistants where id = ${spare.id} and purge_step is distinct from 'purged') as n`;
    return Number(row!.n) === 0;
  });
  expect(await searchDatabase(reef.sql, ["walrus", "spare thoughts", bob.email, his.agent_id])).toEqual([]);
  expect(searchFiles(reef.dir, ["walrus", "spare thoughts"])).toEqual([]);
  // That these ids are dead is all that the gateway's own file may know.
  expect(await reef.deps.workspaces.listAgents()).toEqual([hers.agent_id]);
  const { status } = await bob.call("GET", "/api/user/profile");
  expect(status).toBe(401);
  await say(ada, hers, "and now");
  const findings = await checkInvariants(reef.deps, { patienceMs: 10_000, timeoutMs: 10_000 });
  expect(findings.filter((finding) => finding.status !== "ok")).toEqual([]);
  await stopAll();
}

test("the script is clean, and explains itself", async () => {
  const shellcheck = await tool("shellcheck");
  const checked = Bun.spawnSync([shellcheck.path, join(import.meta.dir, "../../scripts/restore.sh")], {
    env: shellcheck.env,
  });
  expect(checked.stdout.toString()).toBe("");
  expect(await run(["scripts/restore.sh", "--help"], env)).toMatchObject({ code: 0 });
  expect(await run(["scripts/restore.sh", "--what"], env)).toMatchObject({ code: 2 });
});

test("a run that was killed between the moves of the secrets is gone on with; settings are read as systemd reads them", async () => {
  const bin = join(around.folder, "restic-bin");
  mkdirSync(bin);
  const script = `#!/bin/sh\nprintf %s "$RESTIC_PASSWORD" > '${bin}/heard'\necho '[]'\n`;
  writeFileSync(join(bin, "restic"), script, { mode: 0o755 });
  // As setup.sh writes: it's $5 "or" \
  writeFileSync(join(around.etc, "backup.env"), String.raw`RESTIC_PASSWORD="it's \$5 \"or\" \\"`);
  renameSync(around.etc, `${around.etc}.before-20260101T000000000`);
  const { RESTIC_PASSWORD: _, ...rest } = env;
  const listed = await run(["scripts/restore.sh", "--list"], { ...rest, PATH: `${bin}:${env["PATH"]}` });
  expect(listed).toMatchObject({ code: 0 });
  expect(readFileSync(join(bin, "heard"), "utf8")).toBe(String.raw`it's $5 "or" \ `.trim());
  rmSync(join(around.etc, "backup.env"));
});

test("nothing happens without --yes; --dry-run and --list only tell", async () => {
  const before = [await databases(), readdirSync(reef.dir)];
  expect((await restore()).code).toBe(2);
  const dry = await restore("--dry-run");
  expect(dry.code).toBe(0);
  expect(dry.output).toContain(first);
  const list = await restore("--list");
  expect(list.output).toContain(`${first}  `);
  expect(list.output).toContain("in the second place");
  expect(await restore("--dry-run", "--before", "2020-01-01")).toMatchObject({ code: 1 });
  expect((await restore("--dry-run", "--before", "2099-01-01")).output).toContain(first);
  expect([await databases(), readdirSync(reef.dir)]).toEqual(before);
});

test("an older backup brings back what was, and nobody who has left since", async () => {
  // As on a server: the login of Reef may not make databases.
  const admin = postgres(env["DATABASE_URL"]!, { max: 1 });
  await admin.unsafe("create role app login password 'app'; grant reef to app").simple();
  await admin.end();
  const own = {
    ...env,
    DATABASE_URL: Object.assign(new URL(env["DATABASE_URL"]!), { username: "app", password: "app" }).href,
  };
  const command = ["scripts/restore.sh", "--no-services", "--yes", "--from", join(around.backups, first)];
  const refused = await run(command, { ...own, PATH: `${around.folder}/bin:/usr/bin:/bin` });
  expect(refused.output).toContain("this login may not make databases: give DATABASE_ADMIN_URL");
  const { code, output } = await run(command, { ...own, DATABASE_ADMIN_URL: env["DATABASE_URL"]! });
  expect(output).toContain("erased again: 1 people, 2 assistants; files left out: those of 2 agents");
  expect(code).toBe(0);
  // The old ones are beside.
  const name = new URL(env["DATABASE_URL"]!).pathname.slice(1);
  expect((await databases()).some((one) => one.startsWith(`${name}_before_`))).toBe(true);
  const aside = readdirSync(join(reef.dir, "..")).find(
    (one) => reef.dir.endsWith(one.split(".before-")[0]!) && one.includes(".before-"),
  );
  expect(readFileSync(join(reef.dir, "..", aside!, "workspaces", hers.agent_id, "MEMORY.md"), "utf8")).toContain(
    "bananas",
  );
  await expectRestored();
});

test("who was erased is in several lists: one that is damaged is made good by the others", async () => {
  const folder = createBackupFolder(around.backups);
  const known = await readErasures(folder);
  expect(known.users.map(({ id }) => id)).toEqual([bob.id]);
  expect(known.assistants).toContain(spare.id);
  const file = join(around.backups, "erased.json");
  const text = readFileSync(file, "utf8");
  writeFileSync(join(around.backups, "erased-second.json"), text);
  writeFileSync(file, text.slice(0, 20));
  expect(await readErasures(folder)).toEqual(known);
  rmSync(join(around.backups, "erased-second.json"));
  const lonely = createBackupFolder(join(around.folder, "lonely"));
  mkdirSync(join(around.folder, "lonely"));
  writeFileSync(lonely.erasedFile, text.slice(0, 20));
  expect(readErasures(lonely)).rejects.toThrow("is damaged");
  writeFileSync(file, text);
});

test("killed at any moment, the same command again restores it all", async () => {
  const command = ["scripts/restore.sh", "--no-services", "--yes", "--from", join(around.backups, first)];
  const moments: [string, () => Promise<boolean> | boolean][] = [
    ["the database is being loaded", async () => (await databases()).some((name) => name.endsWith("_restoring"))],
    ["the files are being unpacked", () => existsSync(`${reef.dir}.restoring/home`)],
    ["the folder was put aside or replaced", () => !existsSync(`${reef.dir}.restoring`)],
  ];
  for (const [what, reached] of moments) {
    const child = Bun.spawn(["setsid", ...command], {
      cwd: join(import.meta.dir, "../.."),
      env,
      stdout: "ignore",
      stderr: "ignore",
    });
    if (what.includes("aside")) await until("it unpacks", () => existsSync(`${reef.dir}.restoring/home`));
    await until(what, reached);
    process.kill(-child.pid, "SIGKILL");
    await child.exited;
  }
  const { code, output } = await run(command, env);
  expect(output).toContain("restored in");
  expect(code).toBe(0);
  await expectRestored();
});

test("with systemd: stopped from the outside in, started from the inside out, and verified", async () => {
  const bin = join(around.folder, "systemd-bin");
  mkdirSync(bin);
  writeFileSync(
    join(bin, "systemctl"),
    [
      "#!/bin/sh",
      `echo "$*" >> '${bin}/said'`,
      // What the step before the gateway's start makes.
      `case "$*" in start*gateway*) echo '{}' > '${reef.dir}/openclaw.json';; esac`,
    ].join("\n"),
    { mode: 0o755 },
  );
  writeFileSync(join(around.etc, "api/1.env"), "PORT=3001\n");
  const command = ["scripts/restore.sh", "--yes", "--from", join(around.backups, first)];
  const { code, output } = await run(command, { ...env, PATH: `${bin}:${env["PATH"]}` });
  // Nothing was really started, so it says that not all can be verified.
  expect(output).toContain("restore: verifying");
  expect(code).toBe(3);
  const said = readFileSync(join(bin, "said"), "utf8")
    .split("\n")
    .filter((line) => !/stop reef-[a-z-]+\.service/.test(line));
  expect(said).toEqual([
    "stop reef-*.timer",
    "stop reef-restart-gateway@*",
    "stop reef-api@*.service",
    "stop reef-files@*.service reef-gateway@*.service",
    "stop reef.target",
    "start reef-gateway@main.service reef-files@main.service",
    "start reef-api@1.service",
    "start reef.target",
    "",
  ]);
});

test("a bare server: from the second place, with the secrets", async () => {
  expect((await runJob("backup", env)).code).toBe(0);
  // Another host's, in the same place, is newer and of no use here.
  const other = { GATEWAY_ID: "other", BACKUP_DIR: join(around.folder, "other-host") };
  expect((await runJob("backup", { ...env, ...other })).code).toBe(0);
  const url = new URL(env["DATABASE_URL"]!);
  const admin = postgres(around.postgres.url, { max: 1, onnotice: () => undefined });
  await admin.unsafe(`drop database ${url.pathname.slice(1)} with (force)`);
  await admin.end();
  rmSync(reef.dir, { recursive: true });
  rmSync(around.backups, { recursive: true });
  writeFileSync(join(around.etc, "reef.env"), `JWT_SECRET=of-the-new-server\nDATABASE_URL=${url.href}\n`);
  const none = await restore("--yes", "--restic", "--before", "2020-01-01");
  expect(none.output).toContain("the second place has no backup before 2020-01-01");
  const fetched = await restore("--yes", "--restic", "--before", "2099-01-01", "--identity", around.identity);
  expect(fetched.output).toContain("restored in");
  const secrets = readFileSync(join(around.etc, "reef.env"), "utf8");
  expect(secrets).toContain("JWT_SECRET=planted-secret-of-the-server\n");
  expect(secrets).toContain(`DATABASE_URL=${url.href}\n`);
  expect(secrets).not.toContain("postgres://old");
  expect(listBackups(around.backups)).toHaveLength(1);
  await expectRestored();
});

test("--drop-old removes what was put aside", async () => {
  const { code } = await restore("--yes", "--drop-old");
  expect(code).toBe(0);
  expect((await databases()).filter((name) => name.includes("_before_"))).toEqual([]);
  const beside = readdirSync(join(reef.dir, "..")).filter((name) => reef.dir.endsWith(name.split(".before-")[0]!));
  expect(beside.filter((name) => name.includes(".before-"))).toEqual([]);
});
