import { AppError } from "../../lib/errors.ts";
import { readCosts, renderCosts, type CostReport } from "../../services/costs.ts";
import { takeWords, type Command } from "./command.ts";

/** Rows of the table; /api/admin/costs has all of them. */
const COSTS_SHOWN = 100;

/** `npm run admin -- costs`: what its use costs. */
export const costCommands: Record<string, Command> = {
  costs: {
    usage: "costs [--from DATE] [--to DATE] [--by plan|user]",
    summary: "what each plan (or user) has used and cost us",
    help: `A table of what was used and what it has cost us by the price table (PRICES), most expensive first: by plan, or by user
(the ${COSTS_SHOWN} most expensive ones). DATE is like 2026-11-26, both days included; by default the last 30 days. Days are the
users' own. The last column counts what was charged and whose cost is not known (a stopped answer tells no tokens).
/api/admin/costs says the same, page by page.`,
    options: ["from", "to", "by"],
    read(words, { from, to, by = "plan" }) {
      takeWords(words);
      for (const date of [from, to])
        if (date !== undefined && !isDate(date)) throw new Error(`"${date}" is no date like 2026-11-26.`);
      if (by !== "plan" && by !== "user") throw new Error("--by is plan or user.");
      const query = { from: from ?? null, to: to ?? null, by, cursor: null, limit: COSTS_SHOWN } as const;
      return async (deps) => {
        try {
          console.log(renderTable(await readCosts(deps, query)));
          return null;
        } catch (error) {
          if (!(error instanceof AppError)) throw error;
          return `${error.message} ${JSON.stringify(error.extras.details ?? "")}`;
        }
      };
    },
  },
};

function isDate(text: string): boolean {
  return /^\d{4}-\d\d-\d\d$/.test(text) && new Date(text).toJSON()?.slice(0, 10) === text;
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
