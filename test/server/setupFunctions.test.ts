import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { loadGatewayConfig } from "../../src/config.ts";

/* Parts of setup.sh by themselves: the whole runs in setup.machine.ts. */

const setup = resolve(import.meta.dir, "../../scripts/setup.sh");
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), `reef-test-${process.pid}-setup-`));
  // All of it but the last line, which runs it.
  writeFileSync(
    join(folder, "functions.sh"),
    readFileSync(setup, "utf8").replace(/\nmain "\$@"\n$/, "\ntrap - EXIT\n"),
  );
  writeFileSync(
    join(folder, "docker"),
    `#!/bin/sh
case "$1 $*" in
  ps*) printf 'one-db postgres:16\\ntwo-db postgres:18\\ncache redis:7\\n' ;;
  "port port one-db 5432/tcp") echo 127.0.0.1:5432 ;;
  "port port two-db 5432/tcp") echo 127.0.0.1:5433 ;;
  "port port cache 6379/tcp") echo 127.0.0.1:6379 ;;
  inspect*Env*db) printf 'POSTGRES_PASSWORD=secret\\n' ;;
esac
`,
    { mode: 0o755 },
  );
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function call(script: string): string {
  const command = `. ${folder}/functions.sh\n${script}`;
  const done = Bun.spawnSync(["bash", "-c", command], { env: { PATH: `${folder}:${process.env["PATH"]}` } });
  return done.stdout.toString() + done.stderr.toString();
}

for (const [place, container, says] of [
  ["127.0.0.1:5433", "two-db", "a second container is the one in use"],
  ["db.example.com", "", "the database is elsewhere"],
]) {
  test(`a second run leaves the database where it is: ${says}`, () => {
    const url = `postgres://reef:pw@${place}/reef`;
    const said = call(`
      reef_env=$'DATABASE_URL=${url}\\nREDIS_URL=redis://127.0.0.1\\n'
      find_services >/dev/null
      settings=$reef_env
      [ -z "$admin_url" ] || put_database_url
      echo "$container $(get_setting "$settings" DATABASE_URL)"`);
    expect(said).toBe(`${container} ${url}\n`);
  });
}

test("a first run with several containers is told which by DATABASE_ADMIN_URL, and takes no other's", () => {
  expect(call("reef_env=''; find_services")).toContain("several containers look like Postgres (one-db, two-db)");
  const said = call(`
    reef_env='' answers[DATABASE_ADMIN_URL]=postgres://postgres:secret@127.0.0.1:5433/postgres
    find_services >/dev/null; echo "$container $admin_url"`);
  expect(said).toBe("two-db postgres://postgres:secret@127.0.0.1:5433/postgres\n");
});

for (const [says, installed, container, available, answer] of [
  ["the server's own", ["16"], "", "no", "ok       pg_dump for Postgres 16"],
  ["a newer one, which no backup takes", ["17"], "", "yes", "changed  postgresql-client-16"],
  ["only the container's, which the drill can't use", ["15"], "one-db", "yes", "changed  postgresql-client-16"],
  ["only the container's, and no other to be had", ["15"], "one-db", "no", "missing  pg_restore 16"],
  [
    "the container's, and one here that reads its dumps",
    ["17"],
    "one-db",
    "no",
    "ok       pg_dump in container one-db",
  ],
  ["none", [], "", "no", "missing  pg_dump 16"],
] as const) {
  test(`pg_dump and pg_restore for the server: ${says}`, () => {
    const clients = mkdtempSync(join(folder, "clients-"));
    for (const version of installed)
      for (const name of ["pg_dump", "pg_restore"]) {
        mkdirSync(join(clients, version, "bin"), { recursive: true });
        writeFileSync(join(clients, version, "bin", name), "", { mode: 0o755 });
      }
    const said = call(`
      clients=${clients} container='${container}'
      database_job() { echo 16; }
      apt-cache() { [ ${available} = yes ]; }
      add_postgres_packages() { false; }
      apt_install() { :; }
      match_client`);
    expect(said).toContain(answer);
  });
}

test("a second server's gateway has its own name in everything that is called after it", () => {
  const said = call(`
    reef_env='' etc=/nowhere answers[GATEWAY_ID]=two answers[GATEWAY_FILES_HOST]=10.0.0.2
    put_file() { put=false; printf '%s\\n%s' "$1" "$3"; }
    name_gateway
    write_settings
    echo "$gateway $gateway_dir"`);
  const files = said.slice(said.indexOf("/nowhere/gateways/"), said.indexOf("/nowhere/backup.env"));
  expect(files).toStartWith("/nowhere/gateways/two.env\n");
  expect(files).toContain("OPENCLAW_GATEWAY_DIR=/var/lib/reef-gateway/two\n");
  // It is the files process that listens there, and the gateway's file is all that it reads.
  expect(files).toContain("GATEWAY_FILES_HOST=10.0.0.2\n");
  expect(said).toEndWith("two /var/lib/reef-gateway/two\n");
});

test("the step before the gateway's start gets every setting that it shares with the API: another value is another configuration", () => {
  const shared = Object.keys(loadGatewayConfig({ OPENCLAW_GATEWAY_DIR: "/gateway" }));
  expect(shared).toContain("CANARY_MODEL_URL");
  const said = call(`
    reef_env='' etc=/nowhere
    put_file() { put=false; printf '%s\\n%s' "$1" "$3"; }
    for name in ${shared.join(" ")}; do answers[$name]=of-$name; done
    write_settings`);
  const file = said.slice(said.indexOf("/nowhere/gateways/"), said.indexOf("/nowhere/backup.env")).split("\n");
  for (const name of shared) expect(file).toContain(`${name}=of-${name}`);
});

test("a gateway keeps its name: another one would leave its assistants without", () => {
  const name = (known: string, asked: string) =>
    call(`reef_env=$'${known}'; answers[GATEWAY_ID]='${asked}'; name_gateway; echo "is $gateway"`);
  expect(name("GATEWAY_ID=one\\n", "")).toBe("is one\n");
  expect(name("GATEWAY_ID=one\\n", "one")).toBe("is one\n");
  expect(name("GATEWAY_ID=one\\n", "two")).toContain("the gateway of this server is called one");
  expect(name("", "../x")).toContain("GATEWAY_ID takes a short");
});

test("where there is an rsyslog, it copies nothing of Reef's out of the journal, whose size has an end", () => {
  const run = (isInstalled: string) =>
    call(`
      rsyslog=${folder}/rsyslog.d owed=''
      is_installed() { [ $1 = ${isInstalled} ]; }
      put_file() { put=true; printf '%s\\n%s' "$1" "$3"; }
      owes() { false; }
      pay() { echo "does $*"; }
      keep_journal_only`);
  expect(run("nothing")).toBe("");
  const said = run("rsyslog");
  expect(said).toStartWith(`${folder}/rsyslog.d/10-reef.conf\n`);
  expect(said).toContain('\n:programname, startswith, "reef-" stop\n');
  expect(said).toContain("does systemctl restart rsyslog");
});

test("the archive of Postgres is tried before apt is told of it: out of reach, nothing is touched", () => {
  const lists = mkdtempSync(join(folder, "lists-"));
  const add = (reaches: string) =>
    call(`
      pgdg_list=${lists}/pgdg.list pgdg_key=${folder}/functions.sh
      dpkg-query() { :; }; apt-cache() { :; }
      apt-get() { ${reaches}; }
      if add_postgres_packages 18; then echo there; else echo "not there"; fi`);
  const before = statSync(lists).mtimeMs;
  expect(add("false")).toBe("not there\n");
  expect([readdirSync(lists), statSync(lists).mtimeMs]).toEqual([[], before]);
  expect(add("true")).toBe("there\n");
  expect(readFileSync(join(lists, "pgdg.list"), "utf8")).toStartWith(`deb [signed-by=${folder}/functions.sh] https://`);
});
