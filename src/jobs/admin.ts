import { userInfo } from "node:os";
import { parseArgs } from "node:util";
import { ConfigError, loadConfig } from "../config.ts";
import { createDeps, type Deps } from "../deps.ts";
import { createLog } from "../lib/log.ts";
import { AppError } from "../lib/errors.ts";
import { readCosts, renderCosts, type CostReport } from "../services/costs.ts";
import { createOperator, listOperators, OPERATOR_NAME, revokeOperator } from "../services/operators.ts";

const help = `Manages who may operate the running system, and shows what its use costs.

  npm run admin -- token create --name NAME   makes an operator token and shows it this once
  npm run admin -- token list                 every token: name, state, when it was made and last used
  npm run admin -- token revoke NAME          refuses it from now on
  npm run admin -- costs                      what each plan (or user) has used and cost us

It acts on the system that "npm start" runs on <REEF_DATA_DIR or .data>, or on the one that DATABASE_URL and the other
settings in .env.example name. "--help" after a command says more about it. Exit code: 0 done, 1 not done, 2 misused.`;

/** Rows of the table; /api/admin/costs has all of them. */
const COSTS_SHOWN = 100;

const helpOf: Record<string, string> = {
  create: `npm run admin -- token create --name NAME

Makes an operator token for /api/admin and, from elsewhere, /metrics: "Authorization: Bearer op_…". Only its hash is
kept, so it is shown this once (on standard output, alone). NAME is how the audit log calls the operator: 1 to 40 of
a-z, 0-9, ".", "_", "-"; a name is never used twice.`,
  list: `npm run admin -- token list

Every operator token, oldest first: name, "living" or when it was revoked, when it was made, when it was last used (to
the minute). The tokens themselves are not kept.`,
  revoke: `npm run admin -- token revoke NAME

The token is refused from the next request on. It can't be given back; make another one under another name.`,
  costs: `npm run admin -- costs [--from DATE] [--to DATE] [--by plan|user]

A table of what was used and what it has cost us by the price table (PRICES), most expensive first: by plan, or by user
(the ${COSTS_SHOWN} most expensive ones). DATE is like 2026-11-26, both days included; by default the last 30 days. Days are the
users' own. The last column counts what was charged and whose cost is not known (a stopped answer tells no tokens).
/api/admin/costs says the same, page by page.`,
};

function exit(code: 1 | 2, sentence: string): never {
  console.error(`admin: ${sentence}`);
  process.exit(code);
}

type Command =
  | { verb: "create" | "list" | "revoke"; name: string }
  | { verb: "costs"; from: string | null; to: string | null; by: "plan" | "user" };

const string = { type: "string" } as const;
const options = {
  name: string,
  from: string,
  to: string,
  by: string,
  help: { type: "boolean", short: "h", default: false },
} as const;

function readCommand(): Command {
  try {
    const { values, positionals } = parseArgs({ allowPositionals: true, options });
    const [noun, ...rest] = positionals;
    const verb = noun === "token" ? rest.shift() : noun;
    const known = (noun === "token" && verb !== "costs") || noun === "costs" ? helpOf[verb ?? ""] : undefined;
    if (values.help || noun === undefined) {
      console.log(known ?? help);
      process.exit(values.help ? 0 : 2);
    }
    if (known === undefined) throw new Error(`There is no command "${positionals.join(" ")}".`);
    const { help: _, ...given } = values;
    return verb === "costs" ? readCostsCommand(rest, given) : readTokenCommand(verb as TokenVerb, rest, given);
  } catch (error) {
    return exit(2, `${error instanceof Error ? error.message : String(error)} See npm run admin -- --help.`);
  }
}

type TokenVerb = "create" | "list" | "revoke";
type Given = { [name in "name" | "from" | "to" | "by"]?: string };

function readTokenCommand(verb: TokenVerb, rest: string[], { name: named, ...others }: Given): Command {
  const name = verb === "create" ? named : rest.shift();
  const tooMany = rest.length > 0 || (verb !== "create" && named !== undefined) || Object.keys(others).length > 0;
  if (tooMany || (verb === "list" && name !== undefined)) throw new Error("Too many arguments.");
  if (verb === "list") return { verb, name: "" };
  if (name === undefined) throw new Error("A name is missing.");
  if (!OPERATOR_NAME.test(name)) throw new Error('A name is 1 to 40 of a-z, 0-9, ".", "_", "-".');
  return { verb, name };
}

function readCostsCommand(rest: string[], { name, from, to, by = "plan" }: Given): Command {
  if (rest.length > 0 || name !== undefined) throw new Error("Too many arguments.");
  for (const date of [from, to])
    if (date !== undefined && !isDate(date)) throw new Error(`"${date}" is no date like 2026-11-26.`);
  if (by !== "plan" && by !== "user") throw new Error("--by is plan or user.");
  return { verb: "costs", from: from ?? null, to: to ?? null, by };
}

function isDate(text: string): boolean {
  return /^\d{4}-\d\d-\d\d$/.test(text) && new Date(text).toJSON()?.slice(0, 10) === text;
}

function connect(): Deps {
  try {
    return createDeps({ ...loadConfig(process.env), DATABASE_POOL: 2 }, createLog("silent"));
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return exit(2, `No running system is known here: start one (npm start), or give its settings. ${error.message}`);
  }
}

const time = (date: Date | null) => date?.toISOString().slice(0, 16).replace("T", " ") ?? "never";

/** Does it; a sentence where it could not be done. */
async function act(deps: Deps, command: Command): Promise<string | null> {
  const actor = { osUser: userInfo().username };
  if (command.verb === "costs") {
    const report = await readCosts(deps, { ...command, cursor: null, limit: COSTS_SHOWN });
    console.log(renderTable(report));
    return null;
  }
  const { verb, name } = command;
  if (verb === "create") {
    const token = await createOperator(deps, actor, name);
    if (token === null) return `The name "${name}" was used before; take another one.`;
    console.error(`admin: the token of "${name}"; it is not shown again:`);
    console.log(token);
  } else if (verb === "revoke") {
    if (!(await revokeOperator(deps, actor, name))) return `There is no living token of the name "${name}".`;
    console.error(`admin: the token of "${name}" is refused from now on.`);
  } else {
    for (const token of await listOperators(deps)) {
      const state = token.revokedAt ? `revoked ${time(token.revokedAt)}` : "living";
      console.log(
        `${token.name.padEnd(40)}  ${state.padEnd(24)}  made ${time(token.createdAt)}  used ${time(token.lastUsedAt)}`,
      );
    }
  }
  return null;
}

/** What was used and cost, a line per plan or user, its columns as wide as they must be, the sum last. */
function renderTable({ from, to, by, items, total, nextCursor }: CostReport): string {
  const head = [by, "messages", "tokens in", "out", "heard s", "spoken s", "characters", "USD", "unpriced"];
  const line = (name: string, costs: CostReport["total"]) => {
    const shown = renderCosts(costs);
    const { text_messages, input_tokens, output_tokens, voice_input_seconds, voice_output_seconds } = shown;
    const numbers = [text_messages, input_tokens, output_tokens, voice_input_seconds, voice_output_seconds];
    return [name, ...[...numbers, shown.tts_characters].map(String), shown.estimated_cost_usd, String(shown.unpriced)];
  };
  const rows = [
    head,
    ...items.map(({ group, ...costs }) => line(group ?? "(have left)", costs)),
    ...(nextCursor === null ? [] : [["…", ...head.slice(1).map(() => "")]]),
    line("all", total),
  ];
  const widths = head.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const render = (row: string[]) =>
    row.map((cell, n) => (n === 0 ? cell.padEnd(widths[n]!) : cell.padStart(widths[n]!))).join("  ");
  return [`${from} to ${to}`, ...rows.map(render)].map((text) => text.trimEnd()).join("\n");
}

async function main(): Promise<void> {
  const command = readCommand();
  const deps = connect();
  const refusal = await act(deps, command).catch((error: unknown) => {
    if (error instanceof AppError) return `${error.message} ${JSON.stringify(error.extras.details ?? "")}`;
    const code = (error as { code?: unknown }).code;
    return `The database does not answer as it should (${typeof code === "string" ? code : "unknown"}); nothing was done.`;
  });
  await deps.close();
  if (refusal !== null) exit(1, refusal);
  process.exit(0);
}

await main();
