import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";

const SRC = join(import.meta.dir, "../src");

/** A file imports only leftwards or within its own level. */
const LEVELS = [
  ["lib"],
  ["config", "protocol"],
  ["db", "clients"],
  ["deps"],
  ["services"],
  ["http"],
  ["routes", "jobs"],
  ["server"],
  ["process"],
  ["main", "files"],
];
const MAY_READ_ENVIRONMENT = [
  "files.ts",
  "main.ts",
  // Hands it on, whole, to the programs it runs.
  "clients/programs.ts",
  "jobs/admin.ts",
  "jobs/alarm.ts",
  "jobs/doctor.ts",
  "jobs/migrate.ts",
  "jobs/finishRestore.ts",
  "jobs/parkAgents.ts",
  "jobs/prepareDatabase.ts",
  "jobs/runTimer.ts",
  "jobs/verify.ts",
];
const MAY_TOUCH_FILES = [
  "clients/archives.ts",
  "clients/backupFolder.ts",
  "clients/canaryFiles.ts",
  "clients/commonPasswords.ts",
  "clients/gatewayCopy.ts",
  "clients/host.ts",
  "clients/mailFolder.ts",
  "clients/mailTemplates.ts",
  "clients/ownFiles.ts",
  "clients/postgresTools.ts",
  "clients/programs.ts",
  "clients/sqliteCopies.ts",
  "clients/workspaceFiles.ts",
  "clients/workspaces.ts",
  "clients/workspaceSize.ts",
  "db/migrate.ts",
];
const MAY_USE_BUN = ["files.ts", "lib/passwords.ts", "process.ts", "routes/chat.ts", "routes/docs.ts"];
/** Rows found by the gateway or by a lease, not asked for by a person: the reconciler's and the engine's own writes. */
const GATEWAY_SIDE = ["db/workingSet.ts", "db/turns.ts", "db/gateways.ts"];
const USER_OWNED =
  /\b(update|delete from)\s+(assistants|messages|turns|refresh_tokens|usage_logs|daily_usage|idempotency_keys|exports)\b/i;

interface Source {
  path: string;
  text: string;
}

const sources: Source[] = readdirSync(SRC, { recursive: true, encoding: "utf8" })
  .filter((path) => path.endsWith(".ts"))
  .map((path) => ({ path, text: readFileSync(join(SRC, path), "utf8") }));

function levelOf(path: string): number {
  const head = path.includes("/") ? path.split("/")[0]! : path.replace(/\.ts$/, "");
  return LEVELS.findIndex((names) => names.includes(head));
}

function importsOf({ path, text }: Source): string[] {
  return [...text.matchAll(/from "(\.[^"]+)"/g)].map((match) => normalize(join(dirname(path), match[1]!)));
}

/** What is wrong with a file, as sentences. */
function faultsOf(source: Source): string[] {
  const { path, text } = source;
  const faults: string[] = [];
  const say = (bad: boolean, fault: string) => bad && faults.push(`${path}: ${fault}`);
  say(levelOf(path) < 0, "is in no folder of the architecture");
  for (const target of importsOf(source)) {
    const folder = dirname(path);
    const own = folder !== "." && dirname(target) === folder;
    say(!own && (levelOf(target) < 0 || levelOf(target) > levelOf(path)), `must not import ${target}`);
    say(
      !own && levelOf(target) === levelOf(path) && folder.split("/")[0] !== target.split("/")[0],
      `must not import ${target} beside it`,
    );
  }
  say(/process\.env/.test(text) && !MAY_READ_ENVIRONMENT.includes(path), "reads the environment");
  say(/\bsql(<[^`]*>)?`/.test(text) && !path.startsWith("db/"), "holds SQL");
  say(/from "node:fs/.test(text) && !MAY_TOUCH_FILES.includes(path), "touches the file system");
  say(/\bBun\./.test(text) && !MAY_USE_BUN.includes(path), "uses Bun's own API");
  say(text.split("\n").length > 301, "is longer than 300 lines");
  say(/\b(TODO|FIXME|XXX|HACK)\b/.test(text), "leaves something undone");
  if (path.startsWith("db/") && !GATEWAY_SIDE.includes(path)) {
    for (const [statement] of text.matchAll(/`[^`]*`/g))
      say(USER_OWNED.test(statement) && !statement.includes("user_id"), "writes a user's row without naming the user");
  }
  return faults;
}

test("the source keeps to the architecture", () => {
  expect(sources.length).toBeGreaterThan(40);
  expect(sources.flatMap(faultsOf)).toEqual([]);
});

describe("the test can fail", () => {
  const bad: [string, string, string][] = [
    ["lib/x.ts", 'import { a } from "../db/users.ts";', "must not import db/users.ts"],
    ["db/x.ts", 'import { a } from "../clients/gateway.ts";', "must not import clients/gateway.ts beside it"],
    ["services/x.ts", "const a = process.env.A;", "reads the environment"],
    ["services/x.ts", "await sql`select 1`;", "holds SQL"],
    ["services/x.ts", 'import { rm } from "node:fs/promises";', "touches the file system"],
    ["services/x.ts", "Bun.sleep(1);", "uses Bun's own API"],
    ["db/x.ts", "sql`update messages set content = ''`", "writes a user's row without naming the user"],
    ["misc/x.ts", "", "is in no folder of the architecture"],
  ];
  for (const [path, text, fault] of bad) {
    test(`${path}: ${fault}`, () => expect(faultsOf({ path, text })).toContain(`${path}: ${fault}`));
  }
});
