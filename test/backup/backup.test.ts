import { afterAll, beforeAll, expect, test } from "bun:test";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createBackupFolder } from "../../src/clients/backupFolder.ts";
import { manifestSchema, type Manifest } from "../../src/services/backup.ts";
import { readBackupState } from "../../src/services/backupState.ts";
import { searchFiles } from "../deletion/search.ts";
import { createTestDatabase, startTestReef, until, type TestReef } from "../harness.ts";
import { isAnswer, makeAssistant, makeUser, openChat } from "../factories.ts";
import {
  listBackups,
  run,
  runJob,
  start,
  startSurroundings,
  watchArguments,
  type Surroundings,
} from "./surroundings.ts";

let around: Surroundings;
let reef: TestReef;
let env: Record<string, string>;
let repository: string;

beforeAll(async () => {
  around = await startSurroundings();
  reef = await startTestReef({ DATABASE_URL: await createTestDatabase(around.postgres.url) });
  repository = join(around.folder, "restic");
  env = { ...reef.env, ...around.env, RESTIC_REPOSITORY: repository, RESTIC_PASSWORD: "planted restic password" };
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const chat = await openChat(reef, user.token, assistant.agent_id);
  chat.say("hello");
  await chat.next("the answer", isAnswer);
  chat.close();
});
afterAll(async () => {
  await reef?.stop();
  await around?.close();
});

const newest = () => listBackups(around.backups).at(-1)!;
const read = (name: string): Manifest =>
  manifestSchema.parse(JSON.parse(readFileSync(join(around.backups, name, "manifest.json"), "utf8")));
const age = (args: string[]) => Bun.spawnSync([join(around.folder, "bin/age"), ...args]);

test("a backup is whole, says what is in it, and no secret was ever among anybody's arguments", async () => {
  const password = decodeURIComponent(new URL(env["DATABASE_URL"]!).password);
  const watch = watchArguments([password, "planted restic password", "planted-secret", env["JWT_SECRET"]!]);
  const { code, output } = await runJob("backup", env);
  const { looks, programs, seen } = watch.stop();
  expect(output).toContain("backup: ok");
  expect(code).toBe(0);
  expect(seen).toEqual([]);
  // It did look while the programs ran.
  expect(looks).toBeGreaterThan(10);
  expect([...programs].some((program) => program.endsWith("restic"))).toBe(true);

  const name = newest();
  const folder = createBackupFolder(around.backups);
  expect(readdirSync(join(around.backups, name)).sort()).toEqual(
    [
      "SHA256SUMS",
      "database.dump",
      "erased.json",
      "gateways",
      "manifest.json",
      "secrets.tar.age",
      "settings.json",
    ].sort(),
  );
  expect(await folder.check(name)).toEqual([]);
  const manifest = read(name);
  expect(manifest.rows).toMatchObject({ users: 1, assistants: 1, messages: 2, turns: 1 });
  expect(Object.keys(manifest.gateways[0]!.workspaces)).toHaveLength(1);
  expect(
    readFileSync(join(around.backups, name, "database.dump"))
      .subarray(0, 5)
      .toString(),
  ).toBe("PGDMP");
  const state = await readBackupState(reef.deps);
  expect(state).toMatchObject({ tooOld: false, oldest: { exists: true }, second: "ok", verifiedAt: null });
  expect(state.bytes).toBeGreaterThan(10_000);
  expect(state.ageMs).toBeLessThan(60_000);
});

test("the secrets can't be read without the identity, and are what they were with it", () => {
  const secrets = join(around.backups, newest(), "secrets.tar.age");
  expect(searchFiles(around.backups, ["planted-secret-of-the-server", "planted token"])).toEqual([]);
  expect(searchFiles(join(around.backups, newest()), [env["JWT_SECRET"]!, env["OPENCLAW_GATEWAY_TOKEN"]!])).toEqual([]);
  const stranger = join(around.folder, "stranger.txt");
  writeFileSync(
    stranger,
    readFileSync(around.identity, "utf8").replace(/AGE-SECRET-KEY-1..../, "AGE-SECRET-KEY-1QQQQ"),
  );
  expect(age(["--decrypt", "--identity", stranger, secrets]).exitCode).not.toBe(0);
  const opened = age(["--decrypt", "--identity", around.identity, secrets]);
  const listed = Bun.spawnSync(["tar", "--extract", "--to-stdout", "./reef.env", "./gateways/main.env"], {
    stdin: opened.stdout,
  });
  expect(listed.stdout.toString()).toContain("planted-secret-of-the-server");
  expect(listed.stdout.toString()).toContain("planted token");
});

test("without recipients there are no secrets, and it says so", async () => {
  const backups = join(around.folder, "plain");
  const { code, output } = await runJob("backup", {
    ...reef.env,
    ...around.env,
    BACKUP_DIR: backups,
    BACKUP_AGE_RECIPIENTS: "",
  });
  expect(code).toBe(0);
  expect(output).toContain("without secrets (BACKUP_AGE_RECIPIENTS is not set)");
  expect(searchFiles(backups, ["planted-secret-of-the-server"])).toEqual([]);
  expect(existsSync(join(backups, listBackups(backups)[0]!, "secrets.tar.age"))).toBe(false);
});

test("when the second place fails the run fails, and the backup here is whole", async () => {
  const before = listBackups(around.backups).length;
  const { code, output } = await runJob("backup", { ...env, RESTIC_PASSWORD: "not the password" });
  expect(code).toBe(1);
  expect(output).toContain("the second place failed: restic: Fatal: wrong password");
  expect(listBackups(around.backups).length).toBe(before === 0 ? 1 : before);
  expect(await createBackupFolder(around.backups).check(newest())).toEqual([]);
  expect(await readBackupState(reef.deps)).toMatchObject({ second: "failed", tooOld: false });
  const [alarm] = await reef.sql`select 1 from alarms where key = 'job:backup' and resolved_at is null`;
  expect(alarm).toBeDefined();
});

test("a run that is killed leaves the others as they are, and the next one clears up after it", async () => {
  const before = listBackups(around.backups);
  const sums = before.map((name) => readFileSync(join(around.backups, name, "SHA256SUMS"), "utf8"));
  await reef.sql.begin(async (sql) => {
    // The dump has to wait for this table.
    await sql`set local idle_in_transaction_session_timeout = 0`;
    await sql`lock table usage_logs in access exclusive mode`;
    const killed = start(["scripts/bun", "src/jobs/backup.ts"], env);
    await until("it has begun", () => readdirSync(around.backups).some((name) => name.endsWith(".partial")));
    killed.kill();
    await killed.exited;
  });
  expect(listBackups(around.backups)).toEqual(before);
  expect(before.map((name) => readFileSync(join(around.backups, name, "SHA256SUMS"), "utf8"))).toEqual(sums);
  expect(readdirSync(around.backups).filter((name) => name.endsWith(".partial"))).toHaveLength(1);
  // Its lock goes with its connection.
  await until(
    "another may run",
    async () => {
      const { code, output } = await runJob("backup", env);
      return code === 0 && output.includes("backup: ok");
    },
    40_000,
  );
  expect(readdirSync(around.backups).filter((name) => name.endsWith(".partial"))).toEqual([]);
});

test("old ones go by the retention; what is not a backup, or is being read, stays", async () => {
  const name = newest();
  const old = ["20250101T020000Z-00000001", "20250101T030000Z-00000002", "20250101T040000Z-00000003"];
  for (const one of old) cpSync(join(around.backups, name), join(around.backups, one), { recursive: true });
  for (const foreign of ["somebody's", "20250101", "lost+found"]) mkdirSync(join(around.backups, foreign));
  mkdirSync(join(around.backups, "20250104T020000Z-00000004"));
  const stop = await createBackupFolder(around.backups).use(old[1]!);
  expect((await runJob("backup", env)).code).toBe(0);
  const left = readdirSync(around.backups);
  // Of a day the newest is kept, and one that is read.
  expect(old.map((one) => left.includes(one))).toEqual([false, true, true]);
  expect(left).toContain("somebody's");
  expect(left).toContain("20250101");
  expect(left).toContain("lost+found");
  await stop();
  expect((await runJob("backup", env)).code).toBe(0);
  expect(readdirSync(around.backups)).not.toContain(old[1]!);
  expect(readdirSync(around.backups)).toContain(newest());
  rmSync(join(around.backups, old[2]!), { recursive: true });
});

test("the second place has them, and forgets by the same retention", async () => {
  const restic = (args: string[]) =>
    Bun.spawnSync([join(around.folder, "bin/restic"), ...args], { env: { ...env, TZ: "UTC" } });
  const snapshots = JSON.parse(restic(["snapshots", "--json", "--tag", "reef"]).stdout.toString()) as {
    paths: string[];
  }[];
  // Of one day the newest.
  expect(snapshots).toHaveLength(1);
  expect(snapshots[0]!.paths.some((path) => path.endsWith(newest()))).toBe(true);
  expect(restic(["check"]).exitCode).toBe(0);
});

test("another host that is at work in the second place is waited for", async () => {
  // Whoever sends holds a lock beside which nobody can forget.
  const other = Bun.spawn([join(around.folder, "bin/restic"), "backup", "--quiet", "--stdin", "--host", "another"], {
    env: { ...env, TZ: "UTC" },
    stdin: "pipe",
  });
  await until("it is at work", () => readdirSync(join(repository, "locks")).length > 0);
  const ran = runJob("backup", env);
  const isDone = await Promise.race([ran.then(() => true), Bun.sleep(8_000).then(() => false)]);
  void other.stdin.write("what it sends");
  await other.stdin.end();
  expect(await other.exited).toBe(0);
  expect([isDone, (await ran).code]).toEqual([false, 0]);
});

test("a full disk: it fails with a clear sentence, and older backups are untouched", async () => {
  const small = join(around.folder, "small");
  mkdirSync(small);
  const script = `mount -t tmpfs -o size=64k tmpfs "$BACKUP_DIR" || exit 99
    mkdir "$BACKUP_DIR/20250101T020000Z-00000001" && echo kept > "$BACKUP_DIR/20250101T020000Z-00000001/SHA256SUMS"
    scripts/bun src/jobs/backup.ts; echo "code $?"; ls "$BACKUP_DIR"; cat "$BACKUP_DIR"/*/SHA256SUMS`;
  const child = Bun.spawn(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], {
    env: { ...env, BACKUP_DIR: small },
    cwd: join(import.meta.dir, "../.."),
    stdout: "pipe",
    stderr: "ignore",
  });
  const output = await new Response(child.stdout).text();
  // No user namespaces here, no small disk.
  if (!output.includes("code ")) return console.warn("skipped: no mount namespace here");
  expect(output).toContain(`the disk of ${small} is full; older backups are untouched: free some space`);
  expect(output).toContain("code 1");
  expect(output).toContain("20250101T020000Z-00000001\n");
  expect(output).toContain("kept");
  expect(output).not.toContain(".partial");
});

test("Postgres in a container: its own pg_dump is asked, and the password is no argument", async () => {
  const bin = join(around.folder, "docker-bin");
  mkdirSync(bin);
  // Takes what docker would: options, the container, the command.
  writeFileSync(
    join(bin, "docker"),
    `#!/bin/sh\nprintf '%s ' "$@" >> '${bin}/said'\nwhile [ "$1" != pg15 ]; do shift; done; shift\nexec "$@"\n`,
    { mode: 0o755 },
  );
  const backups = join(around.folder, "docker-backups");
  const settings = { BACKUP_POSTGRES_CONTAINER: "pg15", BACKUP_DIR: backups, PATH: `${bin}:${around.env["PATH"]}` };
  const { code } = await runJob("backup", { ...reef.env, ...around.env, ...settings });
  expect(code).toBe(0);
  const said = readFileSync(join(bin, "said"), "utf8");
  expect(said).toContain("exec --env PGUSER --env PGPASSWORD --env PGDATABASE pg15 pg_dump --format=custom");
  expect(said).not.toContain(decodeURIComponent(new URL(env["DATABASE_URL"]!).password));
});

test("a byte that is not what it was is found before anything is touched", async () => {
  const copy = join(around.folder, "flipped", newest());
  cpSync(join(around.backups, newest()), copy, { recursive: true });
  const whole = await run(["scripts/restore.sh", "--dry-run", "--from", copy], env);
  expect(whole.output).toContain("a dry run: nothing was changed");
  expect(whole.code).toBe(0);
  const file = join(copy, "gateways/main/workspaces.tar");
  const bytes = readFileSync(file);
  bytes[600] = bytes[600]! ^ 1;
  writeFileSync(file, bytes);
  const { code, output } = await run(["scripts/restore.sh", "--yes", "--no-services", "--from", copy], env);
  expect(code).toBe(1);
  expect(output).toContain("gateways/main/workspaces.tar: FAILED");
  expect(output).toContain("is damaged");
  expect(await createBackupFolder(join(around.folder, "flipped")).check(newest())).toEqual([
    "gateways/main/workspaces.tar",
  ]);
  expect(existsSync(`${reef.dir}.restoring`)).toBe(false);
});

test("what Postgres says of a dump that can't be loaded may quote somebody: it stays in the receipt", async () => {
  // Holds here, where the setting is; a restored database has none, as with a function that meets another version.
  await reef.sql.unsafe(`
    create function is_fine(text) returns bool language sql as $$ select current_setting('reef.fine', true) = 'yes' $$;
    create table said (words text check (coalesce(is_fine(words), false)));
    select set_config('reef.fine', 'yes', true);
    insert into said values ('planted words of somebody')`);
  const backups = join(around.folder, "unloadable");
  const made = { ...env, BACKUP_DIR: backups, RESTIC_REPOSITORY: "" };
  expect((await runJob("backup", made)).code).toBe(0);
  const { code, output } = await runJob("verifyBackup", made);
  await reef.sql.unsafe("drop table said; drop function is_fine");
  expect(code).toBe(1);
  const receipt = readFileSync(join(backups, "receipts", `${listBackups(backups)[0]}.json`), "utf8");
  expect(receipt).toContain("planted words");
  const told = await reef.sql`
    select summary, details::text from job_runs where job = 'verify-backup' union all
    select summary, '' from alarms where key = 'job:verify-backup'`;
  expect(told).toHaveLength(2);
  expect(JSON.stringify(told) + output).not.toContain("planted words");
  expect(output).toContain("(failed): database.dump can't be loaded (the receipt says more)");
});

test("a drill that lacks room, or its program, has not found the backup bad: the retention would let go of it", async () => {
  const bin = join(around.folder, "full-bin");
  mkdirSync(bin);
  const backups = join(around.folder, "untried");
  const made = { ...env, BACKUP_DIR: backups, RESTIC_REPOSITORY: "", PATH: `${bin}:${env["PATH"]}` };
  expect((await runJob("backup", made)).code).toBe(0);
  const proof = async (says: string) => {
    const script = `#!/bin/sh\n[ "$1" = --version ] && exec echo 'pg_restore (PostgreSQL) 99.1'\nprintf '${says}' >&2; exit 1\n`;
    writeFileSync(join(bin, "pg_restore"), script, { mode: 0o755 });
    expect((await runJob("verifyBackup", made)).code).toBe(1);
    const receipt = readFileSync(join(backups, "receipts", `${listBackups(backups)[0]}.json`), "utf8");
    return (JSON.parse(receipt) as { proof: string }).proof;
  };
  expect(await proof("ERROR:  could not extend file: No space left on device\\nCONTEXT:  COPY messages, line 7")).toBe(
    "unknown",
  );
  expect(await proof("pg_restore: error: unsupported version (1.16) in file header")).toBe("unknown");
  expect(
    await proof('ERROR:  extension "timescaledb" is not available\\nDETAIL:  Could not open its control file'),
  ).toBe("unknown");
  expect(await proof('ERROR:  unrecognized configuration parameter "of_a_newer_server"')).toBe("unknown");
  expect(await proof("pg_restore: error: input file does not appear to be a valid archive")).toBe("failed");
}, 90_000);

test("a server whose gateway's folder is gone has no backup; only that of another host may be missing", async () => {
  const backups = join(around.folder, "folderless");
  // As setup.sh writes it: its own files process.
  const files = { GATEWAY_FILES_URL: "http://127.0.0.1:18790", GATEWAY_FILES_TOKEN: "x".repeat(40) };
  const gone = { ...env, ...files, BACKUP_DIR: backups, RESTIC_REPOSITORY: "", OPENCLAW_GATEWAY_DIR: "/not/mounted" };
  const here = await runJob("backup", gone);
  expect(here.output).toContain("the gateway's folder /not/mounted (OPENCLAW_GATEWAY_DIR) is not there");
  expect(here.code).toBe(1);
  const mountPoint = join(around.folder, "mount-point");
  mkdirSync(mountPoint);
  const unmounted = await runJob("backup", { ...gone, OPENCLAW_GATEWAY_DIR: mountPoint });
  expect(unmounted.output).toContain("is its disk mounted?");
  expect(unmounted.code).toBe(1);
  expect(listBackups(backups)).toEqual([]);
  // setup.sh makes the folder on every server.
  for (const OPENCLAW_GATEWAY_DIR of ["/not/mounted", mountPoint]) {
    const elsewhere = { ...gone, OPENCLAW_GATEWAY_DIR, OPENCLAW_GATEWAY_URL: "ws://10.0.0.1:18789" };
    const { code, output } = await runJob("backup", elsewhere);
    expect(output).toContain("without the gateway's files: they are on another host");
    expect(code).toBe(0);
  }
});
