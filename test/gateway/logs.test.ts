import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Step } from "../fakes/openai.ts";
import { createPerson, openChat, toolResults, type Chat } from "./people.ts";
import { startStack, type Stack } from "./realGateway.ts";

const PHRASE = "quince-lantern-4417";

let stack: Stack;
let chat: Chat;
beforeAll(async () => {
  stack = await startStack();
  chat = await openChat(stack, await createPerson(stack));
});
afterAll(async () => {
  chat?.close();
  await stack?.close();
});

/** OpenClaw tells of a tool that fails with its arguments and the file's content: on a server that is the journal. */
test("nothing that a person or an assistant writes is in the gateway's logs, not when a tool fails", async () => {
  const steps: Step[] = [
    { tool: "write", arguments: { path: "notes.md", content: PHRASE } },
    { tool: "edit", arguments: { path: "notes.md", edits: [{ oldText: `no ${PHRASE}`, newText: PHRASE }] } },
    { tool: "read", arguments: { path: `../${PHRASE}` } },
  ];
  stack.model.requests.length = 0;
  stack.model.answer = (asked) =>
    stack.model.requests.length === 1 ? steps : [{ text: [PHRASE, ...toolResults(asked)].join("\n") }];
  await chat.say(`please note ${PHRASE}`);
  expect(toolResults(stack.model.requests.at(-1)!)).toHaveLength(3);
  const logs = ["console.log", "gateway.log"].map((name) => join(stack.dir, name)).filter((path) => existsSync(path));
  for (const log of logs) expect([log, readFileSync(log, "utf8").includes(PHRASE)]).toEqual([log, false]);
});
