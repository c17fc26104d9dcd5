import { ConfigError, loadDatabaseConfig } from "../config.ts";
import { connectDatabase } from "../db/connect.ts";
import { migrate } from "../db/migrate.ts";
import { createOwnDatabase, opens, ownerOf, serverMajor } from "../db/ownDatabase.ts";

const help = `Makes the application's role and database, and brings the schema to this release. Called by setup.sh and before a deploy.

  bun src/jobs/prepareDatabase.ts          with DATABASE_URL and, where the role is to be made, DATABASE_ADMIN_URL (a
                                           superuser's, of the same server) in the environment
  … --server-version                       prints the major version of DATABASE_URL's server, e.g. 16, and changes nothing

Prints a line for each thing it changed, none when all was right. Exit code: 0 done, 1 failed, 78 a setting is missing.`;

async function main(): Promise<void> {
  const args = process.argv.slice(2);
  if (args.includes("--help") || args.includes("-h")) return console.log(help);
  const { DATABASE_URL: url } = loadDatabaseConfig(process.env);
  const adminUrl = process.env["DATABASE_ADMIN_URL"]?.trim() || null;
  if (args.includes("--server-version")) {
    await withDatabase(url, async (sql) => console.log(await serverMajor(sql)));
    return;
  }
  if (adminUrl !== null) {
    const done = await withDatabase(adminUrl, (sql) => createOwnDatabase(sql, ownerOf(url), () => opens(url))).catch(
      async (error: unknown) => {
        // What Docker says of a superuser's password was true when its volume was made: it is needed for the first time only.
        const refused = (error as { code?: string }).code === "28P01";
        if (!refused || !(await opens(url).catch(() => false))) throw error;
        console.error("The superuser's password is refused; DATABASE_URL opens, so it is left out.");
        return [];
      },
    );
    for (const line of done) console.log(line);
  }
  const applied = await withDatabase(url, migrate);
  if (applied.length > 0) console.log(`migrated: ${applied.join(", ")}`);
}

async function withDatabase<T>(url: string, work: (sql: ReturnType<typeof connectDatabase>) => Promise<T>): Promise<T> {
  const sql = connectDatabase(url, { max: 2, name: "reef-setup" });
  try {
    return await work(sql);
  } finally {
    await sql.end({ timeout: 2 });
  }
}

main().catch((error: unknown) => {
  if (error instanceof ConfigError) {
    console.error(error.message);
    process.exit(78);
  }
  console.error(`The database could not be prepared: ${error instanceof Error ? error.message : String(error)}`);
  process.exit(1);
});
