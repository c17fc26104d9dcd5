import { existsSync } from "node:fs";
import type { Config } from "../config.ts";
import { runProgram, type Command } from "./programs.ts";

type PostgresConfig = Pick<Config, "DATABASE_URL" | "BACKUP_POSTGRES_CONTAINER">;

/** The connection as libpq's programs read it from their environment: a password in their arguments could be listed. */
export function connectionEnv(databaseUrl: string): Record<string, string> {
  const url = new URL(databaseUrl);
  const named = {
    PGHOST: decodeURIComponent(url.hostname).replace(/^\[|\]$/g, "") || (url.searchParams.get("host") ?? ""),
    PGPORT: url.port,
    PGUSER: decodeURIComponent(url.username),
    PGPASSWORD: decodeURIComponent(url.password),
    PGDATABASE: decodeURIComponent(url.pathname.slice(1)),
    PGSSLMODE: url.searchParams.get("sslmode") ?? url.searchParams.get("ssl") ?? "",
  };
  return Object.fromEntries(Object.entries(named).filter(([, value]) => value !== ""));
}

/**
 * Writes the database as `snapshot` sees it to `output`, in pg_dump's custom format. Takes a pg_dump of the server's own
 * major, installed here or, through docker, in the server's container. Returns a warning, or null. Rejects with a sentence
 * when there is none. `version`: the server's, as `server_version_num` (150020 for 15.20).
 */
export async function dumpDatabase(
  config: PostgresConfig,
  input: { snapshot: string; version: number; output: string; signal: AbortSignal },
): Promise<string | null> {
  const { version, output, signal } = input;
  const major = Math.floor(version / 10_000);
  const args = ["--format=custom", "--no-password", `--snapshot=${input.snapshot}`];
  const env = connectionEnv(config.DATABASE_URL);
  const port = env["PGPORT"] ?? "5432";
  const named = config.BACKUP_POSTGRES_CONTAINER;
  const installed = named === undefined ? await findInstalled("pg_dump", major) : null;
  // One that is older than its server may write what no other server reads (15.18 of a 15.20).
  const old = installed !== null && installed.version < version;
  const container = installed !== null && !old ? null : (named ?? (await findContainer(port)));
  if (container !== null) await runProgram({ ...inContainer(container, "pg_dump", args), env, output, signal });
  else if (installed !== null) await runProgram({ program: installed.program, args, env, output, signal });
  else
    throw new Error(
      `no pg_dump ${major} here, and no container that publishes port ${port}: install postgresql-client-${major}, or set BACKUP_POSTGRES_CONTAINER`,
    );
  return old && container === null ? `pg_dump is older than the server: update postgresql-client-${major}` : null;
}

/** The pg_restore here that reads dumps of a server of `version` (as `server_version_num`). Rejects with a sentence when there is none. */
export async function findRestorer(version: number): Promise<string> {
  const major = Math.floor(version / 10_000);
  const found = await findInstalled("pg_restore");
  if (found !== null && Math.floor(found.version / 10_000) >= major) return found.program;
  const instead = found === null ? "no pg_restore" : `only pg_restore ${Math.floor(found.version / 10_000)}`;
  throw new Error(`${instead} here, the dump is of Postgres ${major}: install postgresql-client-${major}`);
}

/** Loads a dump into an empty database. Rejects when anything in it can't be loaded. */
export async function loadDatabase(databaseUrl: string, dump: string, restorer: string): Promise<void> {
  const env = connectionEnv(databaseUrl);
  const args = ["--exit-on-error", "--no-owner", "--no-privileges", "--no-password", `--dbname=${env["PGDATABASE"]}`];
  await runProgram({ program: restorer, args: [...args, dump], env });
}

const MAJORS = Array.from({ length: 12 }, (_, n) => 14 + n);

/** The newest of this major, or of all: pg_restore reads the dumps of its own major and of older ones. */
async function findInstalled(name: string, major?: number): Promise<{ program: string; version: number } | null> {
  const folders = (major === undefined ? MAJORS : [major]).map((n) => `/usr/lib/postgresql/${n}/bin/${name}`);
  let best: { program: string; version: number } | null = null;
  for (const program of [...folders.filter((path) => existsSync(path)), name]) {
    const version = await versionOf(program);
    if (major !== undefined && Math.floor(version / 10_000) !== major) continue;
    if (version > (best?.version ?? 0)) best = { program, version };
  }
  return best;
}

/** As `server_version_num`; 0: it does not run. */
async function versionOf(program: string): Promise<number> {
  const said = await runProgram({ program, args: ["--version"] }).catch(() => "");
  const [, major, minor] = /\(PostgreSQL\) (\d+)(?:\.(\d+))?/.exec(said) ?? [];
  return major === undefined ? 0 : Number(major) * 10_000 + Number(minor ?? 0);
}

async function findContainer(port: string): Promise<string | null> {
  const args = ["ps", "--filter", `publish=${port}`, "--format", "{{.Names}}"];
  const names = await runProgram({ program: "docker", args }).catch(() => "");
  return names.trim().split("\n")[0] || null;
}

/** Inside, the server is asked over its own socket; docker takes the values of the variables from our environment. */
function inContainer(container: string, program: string, args: string[]): Pick<Command, "program" | "args"> {
  const passed = ["PGUSER", "PGPASSWORD", "PGDATABASE"].flatMap((name) => ["--env", name]);
  return { program: "docker", args: ["exec", ...passed, container, program, ...args] };
}
