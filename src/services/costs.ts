import {
  findNewestDate,
  listCosts,
  sumCosts,
  sumCostsOfUser,
  type CostCursor,
  type CostGroup,
  type Costs,
  type Period,
} from "../db/costs.ts";
import type { Queryable } from "../db/connect.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { renderUsd } from "../lib/prices.ts";

/** What users and plans cost us, for operators. The users' days are their own; a day is one of them, wherever it was. */

const DEFAULT_DAYS = 30;
const MOST_DAYS = 366;
const DAY_MS = 86_400_000;

export interface CostReport extends Period {
  by: "plan" | "user";
  total: Costs;
  /** Most expensive first. */
  items: CostGroup[];
  nextCursor: string | null;
}

/**
 * A page of what a period has cost, and its whole sum. By default the 30 days up to the newest one that has begun anywhere.
 * Throws `validation_failed` for a period that ends before it begins, is longer than a year, or a cursor that is none.
 */
export async function readCosts(
  deps: Pick<Deps, "sql">,
  query: { from: string | null; to: string | null; by: "plan" | "user"; cursor: string | null; limit: number },
): Promise<CostReport> {
  const { by, limit } = query;
  const after = query.cursor === null ? null : parseCursor(query.cursor);
  // One moment for the page and the sum.
  return deps.sql.begin("isolation level repeatable read read only", async (sql) => {
    const period = await choosePeriod(sql, query);
    const found = await listCosts(sql, { ...period, by, after, limit: limit + 1 });
    const items = found.slice(0, limit);
    const nextCursor = found.length > limit ? renderCursor(items.at(-1)!) : null;
    return { ...period, by, total: await sumCosts(sql, period), items, nextCursor };
  });
}

/** What a user has cost in the last 30 days of theirs. */
export async function readCostsOfUser(sql: Queryable, userId: string): Promise<Costs> {
  return sumCostsOfUser(sql, { userId, days: DEFAULT_DAYS });
}

/** As the API shows it. */
export function renderCosts(costs: Costs) {
  return {
    text_messages: costs.textMessages,
    input_tokens: costs.inputTokens,
    output_tokens: costs.outputTokens,
    voice_input_seconds: costs.voiceInputSeconds,
    voice_output_seconds: costs.voiceOutputSeconds,
    tts_characters: costs.ttsCharacters,
    estimated_cost_usd: renderUsd(costs.costMicroUsd),
    estimated_cost_micro_usd: costs.costMicroUsd,
    unpriced: costs.unpriced,
  };
}

async function choosePeriod(sql: Queryable, asked: { from: string | null; to: string | null }): Promise<Period> {
  const to = asked.to ?? (await findNewestDate(sql));
  const from = asked.from ?? new Date(Date.parse(to) - (DEFAULT_DAYS - 1) * DAY_MS).toISOString().slice(0, 10);
  const days = (Date.parse(to) - Date.parse(from)) / DAY_MS + 1;
  const fault =
    days < 1 ? "must not be after `to`" : days > MOST_DAYS ? `at most ${MOST_DAYS} days before \`to\`` : null;
  if (fault) throw new AppError("validation_failed", { details: [{ path: "from", message: fault }] });
  return { from, to };
}

function renderCursor({ costMicroUsd, group }: CostGroup): string {
  return Buffer.from(JSON.stringify([costMicroUsd, group])).toString("base64url");
}

function parseCursor(cursor: string): CostCursor {
  try {
    const [costMicroUsd, group] = JSON.parse(Buffer.from(cursor, "base64url").toString()) as unknown[];
    if (Number.isSafeInteger(costMicroUsd) && (group === null || (typeof group === "string" && !group.includes("\0"))))
      return { costMicroUsd: costMicroUsd as number, group };
  } catch {
    // No cursor of ours either.
  }
  throw new AppError("validation_failed", { details: [{ path: "cursor", message: "not a `next_cursor`" }] });
}
