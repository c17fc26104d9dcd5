import { parseArgs } from "node:util";
import { ConfigError, loadConfig } from "../config.ts";
import { connectDatabase } from "../db/connect.ts";
import { migrate, planMigrations } from "../db/migrate.ts";
import { isUnavailable } from "../http/problem.ts";

const help = `Brings the database to this release's schema. scripts/deploy.sh runs it before the processes are replaced.

  bun src/jobs/migrate.ts            applies what is missing
  bun src/jobs/migrate.ts --check    only reads: whether the settings are valid, and what would be applied

A migration whose file begins with "-- breaking" is one that older releases can't run on: --check ends with 3.
Exit code: 0 done, or could be; 1 refused or failed, nothing of the failed migration stays; 3 something breaking is to be
applied; 75 the database does not answer (try later); 78 a setting is not valid.`;

const CODES = { failed: 1, breaking: 3, tryLater: 75, misconfigured: 78 } as const;

function end(sentence: string, code: number): never {
  console.error(`migrate: ${sentence}`);
  process.exit(code);
}

function readOptions() {
  try {
    const { values } = parseArgs({
      options: { check: { type: "boolean", default: false }, help: { type: "boolean", short: "h", default: false } },
    });
    return values;
  } catch (error) {
    return end(`${error instanceof Error ? error.message : String(error)} See --help.`, CODES.failed);
  }
}

function readConfig() {
  try {
    return loadConfig(process.env);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return end(error.message, CODES.misconfigured);
  }
}

async function main(): Promise<void> {
  const options = readOptions();
  if (options.help) return console.log(help);
  const sql = connectDatabase(readConfig().DATABASE_URL, { max: 1, name: "migrate" });
  try {
    const { pending, newer } = await planMigrations(sql);
    if (newer.length > 0) console.log(`migrate: the database also has ${newer.join(", ")} of a newer release`);
    if (!options.check) return console.log(`migrate: applied ${(await migrate(sql)).join(", ") || "nothing"}`);
    console.log(`migrate: to be applied: ${pending.map(({ name }) => name).join(", ") || "nothing"}`);
    const breaking = pending.filter((migration) => migration.breaking).map(({ name }) => name);
    if (breaking.length > 0) end(`releases before this one can't run after ${breaking.join(", ")}`, CODES.breaking);
  } catch (error) {
    const sentence = error instanceof Error ? error.message : String(error);
    end(sentence, isUnavailable(error) ? CODES.tryLater : CODES.failed);
  } finally {
    await sql.end({ timeout: 1 });
  }
}

await main();
