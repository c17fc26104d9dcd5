import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { findProgram, type Program } from "../../scripts/services/debian.ts";
import { startPostgres, type Postgres } from "../../scripts/services/postgres.ts";
import { tool } from "../tools.ts";
import { dyingWithUs } from "../../src/lib/deathSignal.ts";

const root = resolve(import.meta.dir, "../..");

/** What stands around a backup: the distribution's own Postgres as production's, the programs, folders of its own. */
export interface Surroundings {
  folder: string;
  postgres: Postgres;
  /** Settings of the jobs: PATH with the programs, and BACKUP_*. */
  env: Record<string, string>;
  backups: string;
  etc: string;
  /** File of the identity that opens the secrets. */
  identity: string;
  close(): Promise<void>;
}

/** The Postgres of each release of Debian and Ubuntu. */
const MAJORS: Record<string, number> = { jammy: 14, bookworm: 15, noble: 16, trixie: 17 };

function findPostgres(): Promise<Program> {
  const codename = /^VERSION_CODENAME=(\w+)$/m.exec(readFileSync("/etc/os-release", "utf8"))?.[1] ?? "";
  const major = MAJORS[codename] ?? 15;
  return findProgram(
    {
      title: `Postgres ${major} of the distribution`,
      names: [],
      folder: `postgresql-${major}`,
      file: `usr/lib/postgresql/${major}/bin/postgres`,
      packages: [`postgresql-${major}`, `postgresql-client-${major}`, "libpq5", "libreadline8", "libreadline8t64"],
      bare: `libicu70 libicu72 libicu74 libicu76 libldap-2.5-0 libldap2 libxml2 libxslt1.1 libzstd1 liblz4-1 libpam0g
        libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libkeyutils1 libcom-err2 libsasl2-2 libselinux1 libuuid1
        libssl3 libssl3t64 libsystemd0 libcap2 libaudit1 libaudit-common libstdc++6 libgcc-s1`.split(/\s+/),
      advice: `install postgresql-${major}`,
    },
    () => undefined,
  );
}

/** Makes `folder/name` start a program that may lie in a folder of its own. */
function link(folder: string, name: string, program: { path: string; env: Record<string, string> }): void {
  const libraries = program.env["LD_LIBRARY_PATH"] ?? "";
  const file = join(folder, name);
  writeFileSync(file, `#!/bin/sh\nLD_LIBRARY_PATH='${libraries}' exec '${program.path}' "$@"\n`);
  chmodSync(file, 0o755);
}

/** Starts Postgres, finds the programs, makes the folders and an identity. */
export async function startSurroundings(): Promise<Surroundings> {
  const folder = mkdtempSync(join(tmpdir(), `reef-test-${process.pid}-`));
  chmodSync(folder, 0o711);
  const [server, age, restic] = await Promise.all([findPostgres(), tool("age"), tool("restic")]);
  const programs = { bin: dirname(server.path), env: server.env };
  const postgres = await startPostgres({
    dataDir: join(folder, "postgres"),
    durable: false,
    log: () => undefined,
    programs,
  });
  const bin = join(folder, "bin");
  const etc = join(folder, "etc");
  for (const name of ["bin", "etc", "etc/api", "etc/gateways"]) mkdirSync(join(folder, name));
  for (const name of ["pg_dump", "pg_restore", "psql"])
    link(bin, name, { path: join(programs.bin, name), env: server.env });
  link(bin, "age", age);
  link(bin, "restic", restic);
  const identity = join(folder, "identity.txt");
  const keygen = Bun.spawnSync([join(dirname(age.path), "age-keygen"), "-o", identity], { env: age.env });
  const recipient = /age1\w+/.exec(keygen.stderr.toString())![0];
  writeFileSync(join(etc, "reef.env"), "JWT_SECRET=planted-secret-of-the-server\nDATABASE_URL=postgres://old\n");
  writeFileSync(join(etc, "gateways/main.env"), 'OPENCLAW_GATEWAY_TOKEN="planted token"\n');
  const backups = join(folder, "backups");
  return {
    folder,
    postgres,
    backups,
    etc,
    identity,
    env: {
      PATH: `${bin}:${process.env["PATH"]}`,
      BACKUP_DIR: backups,
      BACKUP_SECRETS_DIR: etc,
      BACKUP_AGE_RECIPIENTS: recipient,
    },
    async close() {
      await postgres.stop();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

export interface Ran {
  code: number;
  output: string;
}

/** Runs a program of the project to its end; `output` is all it printed. */
export async function run(command: string[], env: Record<string, string>): Promise<Ran> {
  const child = start(command, env);
  const [output, code] = await Promise.all([child.output, child.exited]);
  return { code, output };
}

export function start(command: string[], env: Record<string, string>) {
  const [program = "", ...args] = command;
  const child = Bun.spawn([...dyingWithUs("KILL"), join(root, program), ...args], {
    env,
    stdout: "pipe",
    stderr: "pipe",
  });
  const texts = Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return {
    pid: child.pid,
    exited: child.exited,
    kill: () => child.kill("SIGKILL"),
    output: texts.then((all) => all.join("")),
  };
}

export const runJob = (name: string, env: Record<string, string>) => run(["scripts/bun", `src/jobs/${name}.ts`], env);

/** Names of the whole backups, oldest first. */
export function listBackups(folder: string): string[] {
  return readdirSync(folder)
    .filter((name) => /^\d{8}T\d{6}Z-\w{8}$/.test(name))
    .sort();
}

/** Looks at the arguments of every process again and again until `stop`; then whether one of `secrets` was among them. */
export function watchArguments(secrets: string[]): {
  stop(): { looks: number; programs: Set<string>; seen: string[] };
} {
  let looks = 0;
  const programs = new Set<string>();
  const seen = new Set<string>();
  const timer = setInterval(() => {
    looks += 1;
    for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
      const line = read(`/proc/${pid}/cmdline`);
      programs.add(line.split("\0").find((part) => !part.startsWith("-") && part !== "setpriv") ?? "");
      for (const secret of secrets) if (line.includes(secret)) seen.add(secret);
    }
  }, 5);
  return {
    stop() {
      clearInterval(timer);
      return { looks, programs, seen: [...seen] };
    },
  };
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
