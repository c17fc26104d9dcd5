import { parseArgs } from "node:util";
import { createBackupFolder } from "../clients/backupFolder.ts";
import { createWorkspaces } from "../clients/workspaces.ts";
import { ConfigError, loadConfig, type Config } from "../config.ts";
import { connectDatabase } from "../db/connect.ts";
import { createLog } from "../lib/log.ts";
import { finishRestore } from "../services/finishRestore.ts";

const help = `Forgets in a restored database and folder whoever was erased since the backup. Called by scripts/restore.sh.

  scripts/bun src/jobs/finishRestore.ts --database reef_restoring --gateway-dir /var/lib/reef-gateway/main.restoring

DATABASE_URL names the database that will be replaced; the restored one is on the same server.
Exit code: 0 done, 1 failed, 78 misconfigured.`;

function readConfig(): Config {
  try {
    return loadConfig(process.env);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    console.error(`finish-restore: ${error.message}`);
    process.exit(78);
  }
}

async function main(): Promise<void> {
  const options = {
    database: { type: "string" },
    "gateway-dir": { type: "string" },
    help: { type: "boolean" },
  } as const;
  const { database, "gateway-dir": gatewayDir, help: asked } = parseArgs({ options }).values;
  if (asked) return console.log(help);
  if (!database || !gatewayDir) throw new Error("--database and --gateway-dir are needed; see --help");
  const config = readConfig();
  const restoredUrl = Object.assign(new URL(config.DATABASE_URL), { pathname: `/${encodeURIComponent(database)}` });
  const restored = connectDatabase(restoredUrl.href, { max: 2, name: "reef restore" });
  const current = connectDatabase(config.DATABASE_URL, { max: 1, name: "reef restore" });
  try {
    const done = await finishRestore({
      restored,
      current,
      folder: createBackupFolder(config.BACKUP_DIR),
      workspaces: createWorkspaces(gatewayDir, createLog("warn")),
    });
    console.log(
      `erased again: ${done.users} people, ${done.assistants} assistants; files left out: those of ${done.left} agents`,
    );
  } finally {
    await Promise.all([restored.end({ timeout: 2 }), current.end({ timeout: 2 })]);
  }
}

await main().catch((error: unknown) => {
  console.error(`finish-restore: ${error instanceof Error ? error.message : String(error)}`);
  process.exit(1);
});
