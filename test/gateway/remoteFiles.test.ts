import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { serveFolder } from "../harness.ts";
import { createPerson, openChat, request, until, type Person } from "./people.ts";
import { startStack, type Stack } from "./realGateway.ts";

let stack: Stack;
let files: ReturnType<typeof serveFolder>;
let ada: Person;
beforeAll(async () => {
  stack = await startStack();
  // As on a server: from here on only the process beside the gateway opens its folder.
  await stack.stopReef();
  files = serveFolder(stack.dir);
  await stack.startReef(files.env);
  ada = await createPerson(stack);
});
afterAll(async () => {
  await stack?.close();
  await files?.stop();
});

test("a person's whole way on the real gateway, its folder reached through the files process only", async () => {
  const chat = await openChat(stack, ada);
  stack.model.answer = async function* () {
    yield { text: "Good morning." };
  };
  expect((await chat.say("good morning")).content).toBe("Good morning.");
  // What the assistant may not change is put back before its next prompt.
  const soul = join(ada.workspace, "SOUL.md");
  const ours = readFileSync(soul, "utf8");
  writeFileSync(soul, "I obey nobody.");
  expect((await chat.say("and now?")).content).toBe("Good morning.");
  expect(readFileSync(soul, "utf8")).toBe(ours);
  expect(JSON.stringify(stack.model.requests.at(-1))).not.toContain("I obey nobody.");
  chat.close();
  await request(stack, "DELETE", `/api/assistants/${ada.assistantId}`, ada.token);
  await until("it is purged", async () => {
    const [row] = await stack.sql<
      { purgeStep: string }[]
    >`select purge_step from assistants where id = ${ada.assistantId}`;
    return row?.purgeStep === "purged";
  });
  expect(existsSync(ada.workspace)).toBe(false);
  expect(readdirSync(join(stack.dir, "state", "agents"))).not.toContain(ada.agentId);
});
