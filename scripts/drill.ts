import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { unpack } from "../src/clients/archives.ts";
import { createBackupFolder, type BackupFolder } from "../src/clients/backupFolder.ts";
import { hashWorkspace } from "../src/clients/gatewayCopy.ts";
import { findRestorer, loadDatabase } from "../src/clients/postgresTools.ts";
import { ProgramError } from "../src/clients/programs.ts";
import { createWorkspaces } from "../src/clients/workspaces.ts";
import { ConfigError, loadConfig } from "../src/config.ts";
import { connectDatabase, type Sql } from "../src/db/connect.ts";
import { countRows } from "../src/db/snapshot.ts";
import { describeError } from "../src/lib/errors.ts";
import { createLog } from "../src/lib/log.ts";
import { manifestSchema, type Manifest } from "../src/services/backup.ts";
import { finishRestore } from "../src/services/finishRestore.ts";
import type { Finding } from "../src/services/invariants.ts";
import type { Receipt } from "../src/services/verifyBackup.ts";
import { createScratch, type Scratch } from "./services/drillStack.ts";
import { talkToRestored } from "./services/drillTalk.ts";
import { StartError } from "./services/process.ts";

const help = `Restores the newest backup for real, beside the living system, and tells whether it is good (docs/backups.md).

  scripts/bun scripts/drill.ts                     the newest backup of BACKUP_DIR
  scripts/bun scripts/drill.ts --backup NAME       this one

Its own Postgres and gateway, a scripted model, no mail, no Stripe: nobody is charged or told. REDIS_URL is shared, under
a prefix of its own. The receipt goes to BACKUP_DIR/receipts/NAME.json and, as one line, to standard output.
Exit code: 0 the backup is good, 1 it is not or could not be tried, 78 misconfigured.`;

/** So many workspaces are compared; with more, a random choice of them. */
const SAMPLE = 200;
/** What needs Stripe can't settle here. */
const NEEDS_STRIPE = ["billing_inbox"];
const PATIENCE_SECONDS = "90";
const VERIFY_TRIES = 4;

/** The backup itself is bad, not what it was tried with: retention lets go of it, so this must be sure. */
class BadBackup extends Error {}

/** What programs say when not the backup is to blame, but the room, the version, the extensions or the server here. */
const OUR_FAULT =
  /no space left|disk quota|disk full|out of memory|cannot allocate memory|permission denied|read-only file system|input\/output error|unsupported version|unrecognized configuration parameter|extension .* is not available|connection to server|server closed the connection|terminating connection|database system is/i;

/** A program that ended by itself, and not for want of something here, has judged the backup. */
function judge(what: string, cause: unknown): Error {
  const isBad =
    cause instanceof ProgramError && cause.code !== null && cause.code !== 127 && !OUR_FAULT.test(cause.said);
  return isBad ? new BadBackup(what, { cause }) : new Error(what, { cause });
}

const say = (line: string) => console.error(`drill: ${line}`);

function readOptions() {
  const options = { backup: { type: "string" }, help: { type: "boolean", short: "h" } } as const;
  const { values } = parseArgs({ options });
  if (values.help) {
    console.log(help);
    process.exit(0);
  }
  try {
    return { ...values, config: loadConfig(process.env) };
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    console.error(`drill: ${error.message}`);
    process.exit(78);
  }
}

/** Fills the receipt as it goes, so that a failure keeps what was seen until then. */
async function drill(receipt: Receipt, folder: BackupFolder, redisUrl: string): Promise<void> {
  const { backup } = receipt;
  const timed = async <T>(step: keyof Receipt["seconds"], work: () => Promise<T>): Promise<T> => {
    say(step);
    const began = performance.now();
    try {
      return await work();
    } finally {
      receipt.seconds[step] = Math.round((performance.now() - began) / 100) / 10;
    }
  };
  const manifest = await timed("sums", () => readChecked(folder, backup));
  const [gateway] = manifest.gateways;
  if (!gateway) throw new Error("it has no gateway's files: those are in the backups of the gateway's host");
  const scratch = await createScratch({ gatewayId: gateway.id, redisUrl, log: say });
  const sql = connectDatabase(scratch.postgres.url, { max: 2, name: "drill" });
  try {
    await timed("database", () =>
      loadRows(receipt, { sql, scratch, manifest, dump: join(folder.pathOf(backup), "database.dump") }),
    );
    await timed("files", () => unpackFiles(receipt, { scratch, gateway, from: folder.pathOf(backup) }));
    const workspaces = createWorkspaces(scratch.gatewayDir, createLog("silent"));
    receipt.erasedAgain = await finishRestore({ restored: sql, current: null, folder, workspaces });
    // Another folder is another configuration, which the canary would try at once, at the address of the living one's model.
    await sql`update gateways set canary_green_at = null, canary_until = null`;
    const url = await timed("start", () => scratch.start());
    const { sums = 0, database = 0, files = 0, start = 0 } = receipt.seconds;
    receipt.seconds.untilServing = Math.round((sums + database + files + start) * 10) / 10;
    await timed("invariants", () => checkInvariants(receipt, scratch));
    await timed("conversation", () => talk(receipt, scratch, sql, url));
  } finally {
    await sql.end({ timeout: 2 });
    await scratch.close();
  }
}

async function readChecked(folder: BackupFolder, name: string): Promise<Manifest> {
  const wrong = await folder.check(name);
  if (wrong.length > 0) throw new BadBackup(`damaged: ${wrong.slice(0, 5).join(", ")}`);
  return manifestSchema.parse(await folder.readJson(name, "manifest.json"));
}

type Loading = { sql: Sql; scratch: Scratch; manifest: Manifest; dump: string };

async function loadRows(receipt: Receipt, { sql, scratch, manifest, dump }: Loading): Promise<void> {
  // What is missing here says nothing of the backup.
  const restorer = await findRestorer(manifest.postgres);
  await loadDatabase(scratch.postgres.url, dump, restorer).catch((error: unknown) => {
    throw judge("database.dump can't be loaded", error);
  });
  const found = await countRows(sql);
  const tables = new Set([...Object.keys(found), ...Object.keys(manifest.rows)]);
  const wrong = [...tables].filter((table) => found[table] !== manifest.rows[table]);
  receipt.rows = { tables: tables.size, total: Object.values(found).reduce((sum, rows) => sum + rows, 0), wrong };
  if (wrong.length > 0) throw new BadBackup(`other numbers of rows: ${wrong.join(", ")}`);
}

type Unpacking = { scratch: Scratch; gateway: Manifest["gateways"][number]; from: string };

async function unpackFiles(receipt: Receipt, { scratch, gateway, from }: Unpacking): Promise<void> {
  mkdirSync(join(scratch.gatewayDir, "home"), { mode: 0o700 });
  for (const part of ["workspaces", "state"])
    await unpack(join(from, "gateways", gateway.id, `${part}.tar`), scratch.gatewayDir).catch((error: unknown) => {
      throw judge(`${part}.tar can't be unpacked`, error);
    });
  const all = Object.entries(gateway.workspaces);
  const sample = all.sort(() => Math.random() - 0.5).slice(0, SAMPLE);
  const wrong: string[] = [];
  for (const [agentId, hash] of sample)
    if ((await hashWorkspace(join(scratch.gatewayDir, "workspaces", agentId))) !== hash) wrong.push(agentId);
  receipt.workspaces = { total: all.length, compared: sample.length, wrong };
  if (wrong.length > 0) throw new BadBackup(`workspaces that are not what they were: ${wrong.slice(0, 5).join(", ")}`);
}

async function checkInvariants(receipt: Receipt, scratch: Scratch): Promise<void> {
  for (let tries = 1; ; tries += 1) {
    const text = await scratch.run("verify", ["--json", "--patience", PATIENCE_SECONDS]);
    const { findings } = JSON.parse(text) as { findings: Finding[] };
    const counted = findings.filter(({ status, id }) => status !== "ok" && !NEEDS_STRIPE.includes(id));
    const broken = counted.map(({ id, status, reason }) => (status === "violated" ? id : `${id} (${reason})`));
    receipt.invariants = { checked: findings.length, broken };
    if (broken.length === 0) return;
    // A gateway that is busy with its start may not be reached by the first.
    const mayPass = counted.every(({ status }) => status === "unchecked");
    if (!mayPass || tries === VERIFY_TRIES) throw new Error(`what must hold does not: ${broken.join(", ")}`);
  }
}

async function talk(receipt: Receipt, scratch: Scratch, sql: Sql, url: string): Promise<void> {
  receipt.conversation = await talkToRestored(scratch, sql, url);
  if (receipt.conversation === null) return;
  const { answered, history, memory } = receipt.conversation;
  if (!answered) throw new Error("the restored assistant did not answer as its model did");
  if (history === false || memory === false)
    throw new Error(`the restored assistant has forgotten: history ${history}, memory ${memory}`);
}

const wordsOf = (cause: Error) => (cause instanceof ProgramError && cause.said !== "" ? cause.said : cause.message);

/** What went wrong in our own words, and what Postgres or a program said of it, which may quote a person's row. */
function describe(error: unknown): Pick<Receipt, "fault" | "said"> {
  const { message, cause, constructor } = error as Error;
  const isOurs = error instanceof BadBackup || error instanceof StartError || constructor === Error;
  if (isOurs) return { fault: message, ...(cause instanceof Error ? { said: wordsOf(cause) } : {}) };
  return { fault: describeError(error) || "it failed", said: String(error) };
}

async function main(): Promise<number> {
  const { backup, config } = readOptions();
  const folder = createBackupFolder(config.BACKUP_DIR);
  const name = backup ?? (await folder.list())[0]?.name;
  if (!name) throw new Error(`${config.BACKUP_DIR} has no backup: run src/jobs/backup.ts first`);
  const release = await folder.use(name);
  const receipt: Receipt = {
    backup: name,
    at: new Date().toISOString(),
    ok: false,
    proof: "unknown",
    seconds: {},
    fault: null,
  };
  const began = performance.now();
  try {
    await drill(receipt, folder, config.REDIS_URL);
    Object.assign(receipt, { ok: true, proof: "verified" });
  } catch (error) {
    Object.assign(receipt, describe(error));
    if (error instanceof BadBackup) receipt.proof = "failed";
    say(`${receipt.fault}${receipt.said === undefined ? "" : `: ${receipt.said}`}`);
  }
  receipt.seconds.total = Math.round((performance.now() - began) / 100) / 10;
  await folder.writeReceipt(name, receipt);
  await release();
  console.log(JSON.stringify(receipt));
  return receipt.ok ? 0 : 1;
}

process.exit(
  await main().catch((error: unknown) => {
    say(error instanceof Error ? error.message : String(error));
    return 1;
  }),
);
