import { createOperator, listOperators, OPERATOR_NAME, revokeOperator } from "../../services/operators.ts";
import { showTime, takeWords, type Command } from "./command.ts";

function requireName(name: string | undefined): string {
  if (name === undefined) throw new Error("A name is missing.");
  if (!OPERATOR_NAME.test(name)) throw new Error('A name is 1 to 40 of a-z, 0-9, ".", "_", "-".');
  return name;
}

/** `npm run admin -- token …`: who may operate the running system. */
export const tokenCommands: Record<string, Command> = {
  "token create": {
    usage: "token create --name NAME",
    summary: "makes an operator token and shows it this once",
    help: `Makes an operator token for /api/admin and, from elsewhere, /metrics: "Authorization: Bearer op_…". Only its hash is
kept, so it is shown this once (on standard output, alone). NAME is how the audit log calls the operator: 1 to 40 of
a-z, 0-9, ".", "_", "-"; a name is never used twice.`,
    options: ["name"],
    read(words, options) {
      takeWords(words);
      const name = requireName(options["name"]);
      return async (deps, person) => {
        const token = await createOperator(deps, person, name);
        if (token === null) return `The name "${name}" was used before; take another one.`;
        console.error(`admin: the token of "${name}"; it is not shown again:`);
        console.log(token);
        return null;
      };
    },
  },
  "token list": {
    usage: "token list",
    summary: "every token: name, state, when it was made and last used",
    help: `Every operator token, oldest first: name, "living" or when it was revoked, when it was made, when it was last used (to
the minute). The tokens themselves are not kept.`,
    read(words) {
      takeWords(words);
      return async (deps) => {
        for (const token of await listOperators(deps)) {
          const state = token.revokedAt ? `revoked ${showTime(token.revokedAt)}` : "living";
          const times = `made ${showTime(token.createdAt)}  used ${showTime(token.lastUsedAt)}`;
          console.log(`${token.name.padEnd(40)}  ${state.padEnd(24)}  ${times}`);
        }
        return null;
      };
    },
  },
  "token revoke": {
    usage: "token revoke NAME",
    summary: "refuses it from now on",
    help: `The token is refused from the next request on. It can't be given back; make another one under another name.`,
    read(words) {
      const name = requireName(takeWords(words, "A name")[0]);
      return async (deps, person) => {
        if (!(await revokeOperator(deps, person, name))) return `There is no living token of the name "${name}".`;
        console.error(`admin: the token of "${name}" is refused from now on.`);
        return null;
      };
    },
  },
};
