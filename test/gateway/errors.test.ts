import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { Answer } from "../fakes/openai.ts";
import { createPerson, openChat, readRows, readUsage, until, type Person } from "./people.ts";
import { startStack, type Stack } from "./realGateway.ts";

/** What the provider says must stay with the provider. */
const QUOTE = "planted provider text 5c1d";

let stack: Stack;
let ada: Person;
let bob: Person;
beforeAll(async () => {
  // The gateway itself would retry for minutes.
  stack = await startStack({ TURN_FIRST_TEXT_MS: "5000", TURN_BETWEEN_TEXT_MS: "5000" });
  [ada, bob] = await Promise.all([createPerson(stack), createPerson(stack)]);
  // An agent's first answer takes long, on a busy machine all of those seconds: it would never get to the model's failure.
  for (const person of [ada, bob]) await expectGoodAnswer(person);
});
afterAll(() => stack?.close());

async function failOnce(person: Person, answer: Answer) {
  stack.model.answer = answer;
  const before = await readUsage(stack, person);
  const chat = await openChat(stack, person);
  try {
    const message = await chat.say("hello");
    const error = await until("the error frame", () => chat.frames.find((frame) => frame.type === "error"));
    const after = await readUsage(stack, person);
    const seen = JSON.stringify(chat.frames) + (await readRows(stack, person));
    return { message, error, charged: after.used - before.used, status: after.statuses.at(-1), seen };
  } finally {
    chat.close();
  }
}

async function expectGoodAnswer(person: Person): Promise<void> {
  stack.model.answer = () => [{ text: "All is well." }];
  const chat = await openChat(stack, person);
  const answer = await chat.say("and now?");
  chat.close();
  expect([answer.content, answer.finish]).toEqual(["All is well.", "complete"]);
}

describe("a model that fails", () => {
  const faults: [string, string, Answer][] = [
    ["429", "assistant_unavailable", () => [{ status: 429, retryAfter: 1, message: QUOTE }]],
    ["500", "assistant_unavailable", () => [{ status: 500, message: QUOTE }]],
    ["400", "turn_failed", () => [{ status: 400, message: QUOTE }]],
    ["hang", "turn_failed", () => [{ hang: true }]],
    ["cut at once", "assistant_unavailable", () => [{ cut: true }]],
    ["cut in the middle", "assistant_unavailable", () => [{ text: "Half a" }, { delayMs: 50 }, { cut: true }]],
    ["no text at all", "turn_failed", () => []],
  ];
  test.each(faults)(
    "%s: error frame, row, quota given back, and the next answer is good",
    async (name, code, answer) => {
      const failed = await failOnce(ada, answer);
      expect(failed.error).toMatchObject({ code, turn_id: failed.message.turn_id });
      expect(failed.message.finish).toBe("error");
      expect(failed.message.content).not.toBe("");
      if (name === "cut in the middle") expect(failed.message.content).toBe("Half a");
      expect([failed.charged, failed.status]).toEqual([0, "released"]);
      expect(failed.seen).not.toContain(QUOTE);
      expect(failed.seen).not.toMatch(/openai|gpt-5|rate.limit|HTTP \d|provider/i);
      expect(stack.model.running).toBe(0);
      await expectGoodAnswer(ada);
    },
  );

  // Last: the gateway keeps a refused key of this agent aside for up to a minute.
  test("401: only this assistant is held up, and nothing of the key is told", async () => {
    const failed = await failOnce(bob, () => [{ status: 401, message: QUOTE }]);
    expect(failed.error).toMatchObject({ code: "assistant_unavailable" });
    expect(failed.message.finish).toBe("error");
    expect([failed.charged, failed.status]).toEqual([0, "released"]);
    expect(failed.seen).not.toContain(QUOTE);
    expect(failed.seen).not.toMatch(/openai-custom\/gpt|\b401\b|authenticat/i);
    await expectGoodAnswer(ada);
  });
});
