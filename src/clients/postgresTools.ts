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
 * Writes the database as `snapshot` sees it to `output`, in pg_dump's custom format. Takes the pg_dump of the server's
 * own major, installed here or, through docker, in the server's container. Rejects with a sentence when there is none.
 */
export async function dumpDatabase(
  config: PostgresConfig,
  input: { snapshot: string; major: number; output: string; signal: AbortSignal },
): Promise<void> {
  const args = ["--format=custom", "--no-password", `--snapshot=${input.snapshot}`];
  const env = connectionEnv(config.DATABASE_URL);
  const rest = { env, output: input.output, signal: input.signal };
  const program = await findInstalled("pg_dump", input.major);
  if (program !== null) return void (await runProgram({ program, args, ...rest }));
  const container = await findContainer(config, env["PGPORT"] ?? "5432");
  if (container === null)
    throw new Error(
      `no pg_dump ${input.major} here, and no container that publishes port ${env["PGPORT"] ?? "5432"}: install postgresql-client-${input.major}, or set BACKUP_POSTGRES_CONTAINER`,
    );
  await runProgram({ ...inContainer(container, "pg_dump", args), ...rest });
}

/** Loads a dump into an empty database. Rejects when anything in it can't be loaded. */
export async function loadDatabase(databaseUrl: string, dump: string, signal?: AbortSignal): Promise<void> {
  const args = ["--exit-on-error", "--no-owner", "--no-privileges", "--no-password"];
  const env = connectionEnv(databaseUrl);
  const major = await newestOf("pg_restore");
  if (major === null) throw new Error("no pg_restore here: install postgresql-client");
  await runProgram({
    program: major,
    args: [...args, `--dbname=${env["PGDATABASE"]}`, dump],
    env,
    ...(signal ? { signal } : {}),
  });
}

async function findInstalled(name: string, major: number): Promise<string | null> {
  for (const program of [`/usr/lib/postgresql/${major}/bin/${name}`, name])
    if ((await majorOf(program)) === major) return program;
  return null;
}

/** pg_restore reads the dumps of its own major and of older ones. */
async function newestOf(name: string): Promise<string | null> {
  for (let major = 30; major >= 14; major -= 1) {
    const program = `/usr/lib/postgresql/${major}/bin/${name}`;
    if (existsSync(program)) return program;
  }
  return (await majorOf(name)) === null ? null : name;
}

async function majorOf(program: string): Promise<number | null> {
  const said = await runProgram({ program, args: ["--version"] }).catch(() => "");
  const major = /\(PostgreSQL\) (\d+)/.exec(said)?.[1];
  return major === undefined ? null : Number(major);
}

async function findContainer(config: PostgresConfig, port: string): Promise<string | null> {
  if (config.BACKUP_POSTGRES_CONTAINER) return config.BACKUP_POSTGRES_CONTAINER;
  const args = ["ps", "--filter", `publish=${port}`, "--format", "{{.Names}}"];
  const names = await runProgram({ program: "docker", args }).catch(() => "");
  return names.trim().split("\n")[0] || null;
}

/** Inside, the server is asked over its own socket; docker takes the values of the variables from our environment. */
function inContainer(container: string, program: string, args: string[]): Pick<Command, "program" | "args"> {
  const passed = ["PGUSER", "PGPASSWORD", "PGDATABASE"].flatMap((name) => ["--env", name]);
  return { program: "docker", args: ["exec", ...passed, container, program, ...args] };
}
