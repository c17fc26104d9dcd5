import type { FakeError, FakeUsage } from "./gatewayTypes.ts";

/** Which model answered, as rows of the history say it. */
export const model = { api: "openai-completions", provider: "openai-custom", model: "gpt-5-nano" };
/** The same for rows that the gateway itself made up. */
export const injected = { api: "openai-responses", provider: "openclaw", model: "gateway-injected" };
/** What an `error` event says for each reason. */
export const errors: Record<FakeError, { message: string; kind: string }> = {
  rate_limit: { message: "⚠️ stub error 429; Retry-After: 1 seconds", kind: "rate_limit" },
  auth: {
    message:
      "⚠️ openai-custom/gpt-5-nano request failed (authentication failed, HTTP 401). Re-authenticate the provider and try again.",
    kind: "unclassified",
  },
  server_error: {
    message:
      "⚠️ openai-custom/gpt-5-nano request failed (provider internal error, HTTP 500). This is usually temporary — try again shortly.",
    kind: "timeout",
  },
  timeout: { message: "LLM request timed out.", kind: "timeout" },
  format: { message: "LLM request failed: provider rejected the request schema or tool payload.", kind: "schema" },
  unexplained: {
    message:
      'Inline API key for provider "openai-custom" is temporarily disabled after a provider auth/billing failure.',
    kind: "",
  },
};

/** A row's usage: tokens, and their cost in US dollars. */
export function usageOf(input: number, output: number): FakeUsage {
  const cost = { input: (input * 0.05) / 1e6, output: (output * 0.4) / 1e6, cacheRead: 0, cacheWrite: 0 };
  const tokens = { input, output, totalTokens: input + output, cacheRead: 0, cacheWrite: 0 };
  return { ...tokens, cost: { ...cost, total: cost.input + cost.output } };
}

export const textContent = (text: string) => [{ type: "text", text }];
