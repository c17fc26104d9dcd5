import { createRandom } from "./random.ts";

/** What the model does next in a run. */
export type ModelStep =
  | { do: "say"; text: string }
  | { do: "tool" }
  | { do: "retry" }
  | { do: "pause"; ms: number }
  | { do: "fail"; reason: string }
  | { do: "hang" };

const KINDS = ["plain", "tool", "pause", "slow", "retry", "fail", "hang", "empty"] as const;
const WEIGHTS = { plain: 44, tool: 14, pause: 11, slow: 8, retry: 8, fail: 6, hang: 6, empty: 3 };

/** `calm`: it answers at once; `slow`: it answers, with long pauses; else it may do anything. */
export type ModelMood = "calm" | "slow" | "any";
const MOODS = { calm: ["plain", "tool"], slow: ["slow", "pause"] } as const;

/** What the model says to a text that it is asked for the n-th time. */
export function scriptOf(seed: number, text: string, asked: number, mood: ModelMood): ModelStep[] {
  const random = createRandom(seed, "model", text, asked);
  const kind = mood === "any" ? random.weighted(KINDS, (one) => WEIGHTS[one]) : random.pick(MOODS[mood]);
  // Asked again, a model may say the same or something else.
  const voice = random.chance(0.5) ? text : `${text}'${asked}`;
  const words = (from: number): ModelStep[] =>
    Array.from({ length: random.int(1, 3) }, (_, i) => ({
      do: "say",
      text: `${i > 0 ? " " : ""}${voice}.${from + i}`,
    }));
  switch (kind) {
    case "plain":
      return words(0);
    case "tool":
      return [...(random.chance(0.7) ? words(0) : []), { do: "tool" }, ...words(10)];
    case "pause":
      return [...words(0), { do: "pause", ms: random.int(300, 3000) }, { do: "say", text: ` ${voice}.end` }];
    case "slow":
      return [0, 1, 2].flatMap((n): ModelStep[] => [
        { do: "say", text: `${n > 0 ? " " : ""}${voice}.${n}` },
        { do: "pause", ms: random.int(2000, 3500) },
      ]);
    case "retry":
      return [...(random.chance(0.5) ? words(0) : []), { do: "retry" }, ...words(20)];
    case "fail":
      return [
        ...(random.chance(0.5) ? words(0) : []),
        { do: "fail", reason: random.pick(["rate_limit", "format", "server_error"]) },
      ];
    case "hang":
      return [...(random.chance(0.5) ? words(0) : []), { do: "hang" }];
    case "empty":
      return [];
  }
}

/** Whether the script ends in an answer by itself. */
export function answers(steps: ModelStep[]): boolean {
  return steps.some((step) => step.do === "say") && !steps.some((step) => step.do === "fail" || step.do === "hang");
}
