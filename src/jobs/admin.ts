import { userInfo } from "node:os";
import { parseArgs } from "node:util";
import { ConfigError, loadConfig } from "../config.ts";
import { createDeps, type Deps } from "../deps.ts";
import { createLog } from "../lib/log.ts";
import { createOperator, listOperators, OPERATOR_NAME, revokeOperator } from "../services/operators.ts";

const help = `Manages who may operate the running system.

  npm run admin -- token create --name NAME   makes an operator token and shows it this once
  npm run admin -- token list                 every token: name, state, when it was made and last used
  npm run admin -- token revoke NAME          refuses it from now on

It acts on the system that "npm start" runs on <REEF_DATA_DIR or .data>, or on the one that DATABASE_URL and the other
settings in .env.example name. "--help" after a command says more about it. Exit code: 0 done, 1 not done, 2 misused.`;

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
};

function exit(code: 1 | 2, sentence: string): never {
  console.error(`admin: ${sentence}`);
  process.exit(code);
}

function readOptions() {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: { name: { type: "string" }, help: { type: "boolean", short: "h", default: false } },
    });
    const [noun, verb = "", ...rest] = positionals;
    const known = noun === "token" ? helpOf[verb] : undefined;
    if (values.help || noun === undefined) {
      console.log(known ?? help);
      process.exit(values.help ? 0 : 2);
    }
    if (known === undefined) throw new Error(`There is no command "${positionals.join(" ")}".`);
    const name = verb === "create" ? values.name : rest.shift();
    if (rest.length > 0 || (verb !== "create" && values.name !== undefined)) throw new Error("Too many arguments.");
    if (verb === "list") {
      if (name !== undefined) throw new Error("Too many arguments.");
      return { verb, name: "" };
    }
    if (name === undefined) throw new Error("A name is missing.");
    if (!OPERATOR_NAME.test(name)) throw new Error('A name is 1 to 40 of a-z, 0-9, ".", "_", "-".');
    return { verb, name };
  } catch (error) {
    return exit(2, `${error instanceof Error ? error.message : String(error)} See npm run admin -- --help.`);
  }
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
async function act(deps: Deps, verb: string, name: string): Promise<string | null> {
  const actor = { osUser: userInfo().username };
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

async function main(): Promise<void> {
  const { verb, name } = readOptions();
  const deps = connect();
  const refusal = await act(deps, verb, name).catch((error: unknown) => {
    const code = (error as { code?: unknown }).code;
    return `The database does not answer as it should (${typeof code === "string" ? code : "unknown"}); nothing was done.`;
  });
  await deps.close();
  if (refusal !== null) exit(1, refusal);
  process.exit(0);
}

await main();
