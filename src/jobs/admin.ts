import { userInfo } from "node:os";
import { parseArgs } from "node:util";
import { ConfigError, loadConfig } from "../config.ts";
import { createDeps, type Deps } from "../deps.ts";
import { createLog } from "../lib/log.ts";
import { alarmCommands } from "./admin/alarms.ts";
import type { Act, Command } from "./admin/command.ts";
import { billingCommands } from "./admin/billing.ts";
import { canaryCommands } from "./admin/canary.ts";
import { costCommands } from "./admin/costs.ts";
import { gatewayCommands } from "./admin/gateways.ts";
import { grantCommands } from "./admin/grants.ts";
import { stripeCommands } from "./admin/stripe.ts";
import { tokenCommands } from "./admin/tokens.ts";

/** Every command by its words. */
const commands: Record<string, Command> = {
  ...tokenCommands,
  ...grantCommands,
  ...billingCommands,
  ...costCommands,
  ...stripeCommands,
  ...gatewayCommands,
  ...alarmCommands,
  ...canaryCommands,
};

const CALL = "npm run admin -- ";
const widest = Math.max(...Object.values(commands).map(({ usage }) => usage.length));
const lines = Object.values(commands).map(({ usage, summary }) => `  ${CALL}${usage.padEnd(widest)}   ${summary}`);
const help = `What an operator does to the running system by hand.

${lines.join("\n")}

It acts on the system that "npm start" runs on <REEF_DATA_DIR or .data>, or on the one that DATABASE_URL and the other
settings in .env.example name. "--help" after a command says more about it. Exit code: 0 done, 1 not done, 2 misused.`;

function exit(code: 1 | 2, sentence: string): never {
  console.error(`admin: ${sentence}`);
  process.exit(code);
}

/** The command whose words the line begins with, the longest first, and the words after them. */
function findCommand(words: string[]): { command: Command; rest: string[] } | null {
  for (const length of [2, 1]) {
    const command = commands[words.slice(0, length).join(" ")];
    if (command && words.length >= length) return { command, rest: words.slice(length) };
  }
  return null;
}

function readLine(): Act {
  try {
    const named = Object.values(commands).flatMap(({ options = [] }) => options);
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: {
        ...Object.fromEntries(named.map((name) => [name, { type: "string" as const }])),
        help: { type: "boolean", short: "h", default: false },
      },
    });
    const { help: wantsHelp, ...options } = values as Record<string, string | undefined> & { help: boolean };
    const found = findCommand(positionals);
    if (wantsHelp || positionals.length === 0) {
      console.log(found ? `${CALL}${found.command.usage}\n\n${found.command.help}` : help);
      process.exit(wantsHelp ? 0 : 2);
    }
    if (!found) throw new Error(`There is no command "${positionals.join(" ")}".`);
    const strange = Object.keys(options).find((name) => !found.command.options?.includes(name));
    if (strange !== undefined) throw new Error(`It takes no --${strange}.`);
    return found.command.read(found.rest, options);
  } catch (error) {
    return exit(2, `${error instanceof Error ? error.message : String(error)} See npm run admin -- --help.`);
  }
}

function connect(): Deps {
  try {
    return createDeps({ ...loadConfig(process.env), DATABASE_POOL: 4 }, createLog("silent"));
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return exit(2, `No running system is known here: start one (npm start), or give its settings. ${error.message}`);
  }
}

async function main(): Promise<void> {
  const act = readLine();
  const deps = connect();
  const refusal = await act(deps, { osUser: process.env["REEF_OPERATOR"]?.trim() || userInfo().username }).catch(
    (error: unknown) => {
      const code = (error as { code?: unknown }).code;
      return `The database does not answer as it should (${typeof code === "string" ? code : "unknown"}); nothing was done.`;
    },
  );
  await deps.close();
  if (typeof refusal === "string") exit(1, refusal);
  if (refusal !== null) exit(refusal.code, refusal.sentence);
  process.exit(0);
}

await main();
