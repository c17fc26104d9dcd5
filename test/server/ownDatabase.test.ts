import { afterAll, beforeAll, expect, test } from "bun:test";
import { resolve } from "node:path";
import postgres from "postgres";

/** prepareDatabase.ts as setup.sh calls it, on the real Postgres. */
const adminUrl = process.env["TEST_DATABASE_URL"]!;
const name = `own_${crypto.randomUUID().slice(0, 8)}`;
const urlOf = (login: string, database = name) => {
  const url = new URL(adminUrl);
  return `postgres://${login}@${url.host}/${database}`;
};
let admin: postgres.Sql;
beforeAll(() => void (admin = postgres(adminUrl, { max: 1, onnotice: () => undefined })));
afterAll(async () => {
  await admin.unsafe(`drop database if exists ${name}`);
  await admin.unsafe(`drop role if exists ${name}`);
  await admin.end();
});

async function prepare(env: Record<string, string>, ...args: string[]) {
  const job = resolve(import.meta.dir, "../../src/jobs/prepareDatabase.ts");
  const child = Bun.spawn([process.execPath, "--no-env-file", job, ...args], {
    env: { PATH: process.env["PATH"]!, ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { code: await child.exited, stdout, stderr };
}
const own = { DATABASE_ADMIN_URL: adminUrl, DATABASE_URL: urlOf(`${name}:first%20one`) };

test("role, database and schema are made once, and the role may do nothing else", async () => {
  const first = await prepare(own);
  expect(first).toMatchObject({ code: 0, stderr: "" });
  expect(first.stdout).toContain(`role ${name} made\ndatabase ${name} made\nmigrated: 0001_initial.sql`);
  expect(await prepare(own)).toEqual({ code: 0, stdout: "", stderr: "" });
  const [rights] = await admin`
    select rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls from pg_roles where rolname = ${name}`;
  expect(Object.values(rights!)).toEqual(Array(5).fill(false));
  const [open] = await admin`select has_database_privilege('public', ${name}, 'connect') as connect`;
  expect(open!["connect"]).toBe(false);
  // As one that died right after "create database" leaves it.
  await admin.unsafe(`grant connect on database ${name} to public`);
  expect((await prepare(own)).stdout).toBe(`database ${name} closed to others\n`);
  expect((await prepare(own)).stdout).toBe("");
});

test("another password in the settings is set", async () => {
  const changed = { ...own, DATABASE_URL: urlOf(`${name}:another%20one`) };
  expect((await prepare(changed)).stdout).toBe(`password of role ${name} set\n`);
  expect((await prepare({ DATABASE_URL: changed.DATABASE_URL })).code).toBe(0);
  expect((await prepare({ DATABASE_URL: own.DATABASE_URL })).code).toBe(1);
});

test("a role that may do more, and somebody else's database, are left alone", async () => {
  const url = new URL(adminUrl);
  const superuser = await prepare({ DATABASE_ADMIN_URL: adminUrl, DATABASE_URL: adminUrl });
  expect(superuser.code).toBe(1);
  expect(superuser.stderr).toContain("give another DATABASE_ROLE");
  const theirs = await prepare({ ...own, DATABASE_URL: urlOf(`${name}:another%20one`, url.pathname.slice(1)) });
  expect(theirs.code).toBe(1);
  expect(theirs.stderr).toContain("give another DATABASE_NAME");
});

test("a superuser's password that is not true any more keeps nothing from going on that works without it", async () => {
  const stale = { DATABASE_ADMIN_URL: Object.assign(new URL(adminUrl), { password: "stale" }).href };
  const works = await prepare({ ...stale, DATABASE_URL: urlOf(`${name}:another%20one`) });
  expect(works).toMatchObject({ code: 0, stdout: "" });
  expect(works.stderr).toContain("is left out");
  expect((await prepare({ ...stale, DATABASE_URL: urlOf(`${name}:neither`) })).code).toBe(1);
});

test("it tells the server's version, and what is missing", async () => {
  const login = `${name}:another%20one`;
  expect((await prepare({ DATABASE_URL: urlOf(login) }, "--server-version")).stdout).toMatch(/^\d\d\n$/);
  expect((await prepare({})).code).toBe(78);
});
