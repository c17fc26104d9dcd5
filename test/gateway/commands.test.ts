import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { COMMAND_TEXTS } from "../../src/services/canaryProbes.ts";
import { createPerson, lastSaid, openChat, type Chat } from "./people.ts";
import { startStack, type Stack } from "./realGateway.ts";

let stack: Stack;
let chat: Chat;
beforeAll(async () => {
  stack = await startStack();
  chat = await openChat(stack, await createPerson(stack));
  stack.model.answer = (asked) => [{ text: `You said: ${lastSaid(asked)}` }];
});
afterAll(async () => {
  chat?.close();
  await stack?.close();
});

/** What the canary says on every gateway, and more of the same kind. */
const TEXTS = [
  ...COMMAND_TEXTS,
  "/model openai-custom/other -g",
  "/model x -g",
  "please stop",
  "abort",
  "exit",
  "halt",
  "/reset",
  "/help",
  "!ls",
  "hello\n/status",
  "/think high what is two and two?",
  "NO_REPLY",
  "HEARTBEAT_OK",
  "a/b and c/d stay as they are",
  "/",
];

test.each(TEXTS)("%j is plain text to the gateway", async (text) => {
  const config = readFileSync(join(stack.dir, "openclaw.json"), "utf8");
  stack.model.requests.length = 0;
  const answer = await chat.say(text);
  expect(stack.model.requests).toHaveLength(1);
  expect(lastSaid(stack.model.requests[0]!)).toBe(text.trim());
  expect(answer.finish).toBe("complete");
  expect(answer.content).toContain("You said:");
  expect(readFileSync(join(stack.dir, "openclaw.json"), "utf8")).toBe(config);
});
