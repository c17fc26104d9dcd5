import { z } from "zod";

const usd = z.number().min(0).max(1_000_000);

/** What a model costs us, in USD: per million tokens, per minute heard, per million characters spoken. */
export const priceTable = z.record(
  z.string().min(1),
  z.strictObject({
    input: usd.optional(),
    cachedInput: usd.optional(),
    output: usd.optional(),
    minute: usd.optional(),
    characters: usd.optional(),
  }),
);
export type PriceTable = z.infer<typeof priceTable>;

/** OpenAI's list prices of November 2026 (openai.com/api/pricing). */
export const LIST_PRICES: PriceTable = {
  "gpt-5-nano": { input: 0.05, cachedInput: 0.005, output: 0.4 },
  "whisper-1": { minute: 0.006 },
  "gpt-4o-transcribe": { minute: 0.006 },
  "gpt-4o-mini-transcribe": { minute: 0.003 },
  "tts-1": { characters: 15 },
  "tts-1-hd": { characters: 30 },
};

/** Money as the API shows it: USD with six decimals. */
export function renderUsd(microUsd: number): string {
  return `${Math.trunc(microUsd / 1_000_000)}.${String(microUsd % 1_000_000).padStart(6, "0")}`;
}

/** What so much of a model costs, in micro-USD, rounded up; null for a model that the table does not have. */
export function estimateCost(
  prices: PriceTable,
  model: string,
  amount: { seconds?: number; characters?: number },
): number | null {
  if (!Object.hasOwn(prices, model)) return null;
  const { minute = 0, characters: perMillion = 0 } = prices[model]!;
  const { seconds = 0, characters = 0 } = amount;
  // Per million characters in USD is per character in micro-USD.
  const microUsd = (seconds / 60) * minute * 1_000_000 + characters * perMillion;
  // What binary fractions add is not rounded up.
  return Math.ceil(Number(microUsd.toFixed(6)));
}

/** A table as JSON; what it does not name keeps its list price. */
export const pricesSetting = z
  .string()
  .transform((value, context) => {
    try {
      return JSON.parse(value) as unknown;
    } catch {
      context.addIssue({ code: "custom", message: "must be JSON" });
      return z.NEVER;
    }
  })
  .pipe(priceTable)
  .transform((table) => ({ ...LIST_PRICES, ...table }))
  .default(LIST_PRICES)
  .describe(
    "What models cost us, as JSON by model, in USD: per million tokens (input, cachedInput, output), per minute heard (minute), per million characters spoken (characters); a model that is not named keeps its list price (src/lib/prices.ts)",
  )
  .meta({ example: '{"gpt-5-nano":{"input":0.05,"cachedInput":0.005,"output":0.4}}' });
