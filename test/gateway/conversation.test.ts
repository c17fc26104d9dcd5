import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { isAnswer, makeAssistant, makeUser, openChat, type Chat, type Json } from "../factories.ts";
import { until } from "../harness.ts";
import { filesWith, startRealReef, type RealReef } from "./realReef.ts";

let reef: RealReef;
let persona: RealReef["model"]["answer"];
beforeAll(async () => {
  reef = await startRealReef({ GATEWAY_WORKING_SET: "2" });
  persona = reef.model.answer;
}, 60_000);
afterAll(() => reef.stop(), 30_000);

/** Says something and waits for the stored answer to it. */
async function ask(chat: Chat, text: string): Promise<string> {
  const clientId = chat.say(text);
  const ack = await until("an ack", () =>
    chat.frames.find((frame) => frame.type === "ack" && frame.client_id === clientId),
  );
  return (
    await until(
      "an answer",
      () => chat.frames.find((frame) => isAnswer(frame) && frame.turn_id === ack.turn_id),
      30_000,
    )
  ).content;
}
const stateOf = async (id: string): Promise<string> =>
  (await reef.process.deps.sql`select state from assistants where id = ${id}`)[0]!["state"];

test("two people talk at once, each with an assistant that knows only its own; memory outlives sleep and restarts", async () => {
  const people = await Promise.all([makeUser(reef), makeUser(reef)]);
  const assistants: Json[] = await Promise.all(people.map((person) => makeAssistant(person)));
  const open = () => Promise.all(people.map((person, i) => openChat(reef, person.token, assistants[i].agent_id)));
  let chats = await open();
  await Promise.all([ask(chats[0]!, "My name is Ada"), ask(chats[1]!, "My name is Bob")]);
  await Promise.all([
    ask(chats[0]!, "Remember that my cat is called Miso"),
    ask(chats[1]!, "Remember that my dog is called Rex"),
  ]);
  const memoryOf = (i: number) =>
    ["MEMORY.md", "USER.md"]
      .map((name) => readFileSync(join(reef.dir, "workspaces", assistants[i].agent_id, name), "utf8"))
      .join();
  expect([memoryOf(0).includes("Miso"), memoryOf(0).includes("Rex"), memoryOf(1).includes("Rex")]).toEqual([
    true,
    false,
    true,
  ]);

  // A third and fourth push both out of a working set of two.
  for (let i = 0; i < 2; i++) {
    const other = await makeUser(reef);
    await makeAssistant(other);
  }
  await until(
    "the first two sleep",
    async () => (await stateOf(assistants[0].id)) === "asleep" && (await stateOf(assistants[1].id)) === "asleep",
    20_000,
  );
  expect(await ask(chats[0]!, "What is my cat called?")).toContain("Miso");

  await reef.restartProcess();
  await reef.restartGateway();
  chats = await open();
  const [cat, dog] = await Promise.all([
    ask(chats[0]!, "What is my cat called?"),
    ask(chats[1]!, "What is my dog called?"),
  ]);
  expect([cat.includes("Miso"), dog.includes("Rex"), cat.includes("Rex")]).toEqual([true, true, false]);
}, 90_000);

test("an answer goes on whole while the configuration is reloaded", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const chat = await openChat(reef, user.token, assistant.agent_id);
  reef.model.answer = async function* () {
    for (let i = 0; i < 40; i++) {
      yield { text: `word${i} ` };
      yield { delayMs: 60 };
    }
  };
  const clientId = chat.say("tell me");
  await until("it streams", () => chat.frames.some((frame) => frame.type === "chunk"), 20_000);
  const other = await makeAssistant(await makeUser(reef));
  await until("another one was woken meanwhile", async () => (await stateOf(other.id)) === "awake", 20_000);
  const answer = await until("the answer", () => chat.frames.find(isAnswer), 20_000);
  reef.model.answer = persona;
  expect(clientId).toBeString();
  expect(answer).toMatchObject({
    finish: "complete",
    content: Array.from({ length: 40 }, (_, i) => `word${i}`).join(" "),
  });
}, 60_000);

test("the gateway is killed in mid-answer: the turn is answered once, and the model sees the message once", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const chat = await openChat(reef, user.token, assistant.agent_id);
  reef.model.answer = async function* () {
    yield { text: "It begins " };
    yield { hang: true };
  };
  chat.say("a question for the killed gateway");
  await until("it streams", () => chat.frames.some((frame) => frame.type === "chunk"), 20_000);
  reef.model.answer = async function* () {
    yield { text: "It begins and ends." };
  };
  await reef.restartGateway(true);
  expect(await until("the answer", () => chat.frames.find(isAnswer), 30_000)).toMatchObject({
    finish: "complete",
    content: "It begins and ends.",
  });
  const last = JSON.stringify(reef.model.requests.at(-1));
  expect(last.split("a question for the killed gateway").length - 1).toBe(1);
  const ledger = await reef.process.deps.sql`select status from usage_logs where user_id = ${user.id}`;
  expect(ledger.map((row) => row["status"])).toEqual(["committed"]);
  reef.model.answer = persona;
}, 90_000);

test("a deleted assistant leaves no trace in the gateway's folder", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const chat = await openChat(reef, user.token, assistant.agent_id);
  await ask(chat, "Remember that my secret is zanzibar-phrase-4711");
  expect(filesWith(reef.dir, "zanzibar-phrase-4711").length).toBeGreaterThan(0);
  await user.call("DELETE", `/api/assistants/${assistant.id}`);
  await until(
    "it is purged",
    async () =>
      (await reef.process.deps.sql`select 1 from assistants where id = ${assistant.id} and purge_step = 'purged'`)
        .length === 1,
    30_000,
  );
  expect(filesWith(reef.dir, "zanzibar-phrase-4711")).toEqual([]);
  expect(readFileSync(join(reef.dir, "openclaw.json"), "utf8")).not.toContain(assistant.agent_id);
}, 60_000);

test("commands and stop words of the gateway are plain text", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const chat = await openChat(reef, user.token, assistant.agent_id);
  reef.model.answer = async function* () {
    yield { text: "heard" };
  };
  for (const text of ["/status", "/model x -g", "please run /status now", "stop", "/new", "first line\n/reset"]) {
    expect(await ask(chat, text)).toBe("heard");
    expect(JSON.stringify(reef.model.requests.at(-1)).replaceAll("\u2060", "")).toContain(
      JSON.stringify(text).slice(1, -1),
    );
  }
  reef.model.answer = persona;
}, 60_000);
