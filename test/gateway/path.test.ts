import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { personaAnswer } from "../fakes/persona.ts";
import { searchDatabase, searchRedis } from "../deletion/search.ts";
import { messageText } from "../fakes/projectContext.ts";
import {
  createPerson,
  lastSaid,
  openChat,
  PASSWORD,
  readUsage,
  request,
  timesSaid,
  until,
  waitForState,
  type Chat,
  type Person,
} from "./people.ts";
import { startStack, type Stack } from "./realGateway.ts";

let stack: Stack;
let ada: Person;
let bob: Person;
beforeAll(async () => {
  stack = await startStack();
  [ada, bob] = await Promise.all([createPerson(stack), createPerson(stack)]);
});
afterAll(() => stack?.close());

async function withChat<T>(person: Person, talk: (chat: Chat) => Promise<T>): Promise<T> {
  const chat = await openChat(stack, person);
  try {
    return await talk(chat);
  } finally {
    chat.close();
  }
}

const ask = (person: Person, text: string) => withChat(person, async (chat) => (await chat.say(text)).content);

test("two people's assistants talk at once and each gets its own answer", async () => {
  stack.model.answer = async function* (asked) {
    for (const word of ["you", " said", ` ${lastSaid(asked)}`]) {
      yield { text: word };
      yield { delayMs: 60 };
    }
  };
  const answers = await Promise.all([ask(ada, "apples"), ask(bob, "bananas")]);
  expect(answers).toEqual(["you said apples", "you said bananas"]);
});

test("what was streamed is the stored answer", async () => {
  stack.model.answer = function* () {
    for (let n = 1; n <= 12; n++) yield* [{ text: `part ${n}. ` }, { delayMs: 30 }];
  };
  await withChat(ada, async (chat) => {
    const answer = await chat.say("count");
    expect(answer.content).toEndWith("part 12.");
    expect(answer.finish).toBe("complete");
    expect(chat.streamed(answer.turn_id)).toBe(answer.content);
  });
});

test("a reload while an answer streams leaves that answer whole", async () => {
  const gate = Promise.withResolvers<void>();
  stack.model.answer = async function* () {
    yield { text: "before the reload, " };
    await gate.promise;
    yield { text: "after the reload." };
  };
  await withChat(ada, async (chat) => {
    const turnId = await chat.send("tell me something long");
    await until("the answer has begun", () => chat.streamed(turnId) !== "");
    const carol = await createPerson(stack);
    expect(readFileSync(join(stack.dir, "openclaw.json"), "utf8")).toContain(carol.agentId);
    gate.resolve();
    expect((await chat.answerTo(turnId)).content).toBe("before the reload, after the reload.");
  });
});

test("a gateway killed in the middle of an answer: answered once, said once to the model, charged once", async () => {
  const before = await readUsage(stack, ada);
  stack.model.answer = function* () {
    yield* [{ text: "this is lost with " }, { hang: true }];
  };
  await withChat(ada, async (chat) => {
    const turnId = await chat.send("what is a zebrafinch?");
    await until("the answer has begun", () => chat.streamed(turnId) !== "");
    await stack.killGateway();
    stack.model.answer = () => [{ text: "A small bird." }];
    stack.model.requests.length = 0;
    await stack.startGateway();
    expect((await chat.answerTo(turnId)).content).toBe("A small bird.");
    const asked = stack.model.requests.at(-1)!;
    expect(timesSaid(asked, "what is a zebrafinch?")).toBe(1);
    const rows = await stack.sql`select id from messages where turn_id = ${turnId} and role = 'assistant'`;
    expect(rows).toHaveLength(1);
    const after = await readUsage(stack, ada);
    expect(after.used).toBe(before.used + 1);
    expect(after.statuses.at(-1)).toBe("committed");
  });
  stack.model.answer = () => [{ text: "and on." }];
  expect(await ask(ada, "go on")).toBe("and on.");
});

describe("memory", () => {
  beforeAll(async () => {
    stack.model.answer = personaAnswer({ wordDelayMs: 2 });
    // Room for one: waking one puts the other to sleep.
    await stack.stopReef();
    await stack.startReef({ GATEWAY_WORKING_SET: "1" });
  });

  test("is written to MEMORY.md and to nobody else's", async () => {
    await ask(ada, "remember that my cat is called Miso");
    expect(readFileSync(join(ada.workspace, "MEMORY.md"), "utf8")).toContain("Miso");
    expect(readFileSync(join(bob.workspace, "MEMORY.md"), "utf8")).not.toContain("Miso");
  });

  test("outlasts sleep and wake", async () => {
    await ask(bob, "hello");
    await waitForState(stack, ada.assistantId, "asleep");
    expect(readFileSync(join(stack.dir, "openclaw.json"), "utf8")).not.toContain(ada.agentId);
    expect(await ask(ada, "what is my cat called?")).toBe("Your cat is called Miso.");
    expect(stack.model.requests.at(-1)!.messages.some((m) => messageText(m).includes("zebrafinch"))).toBe(true);
  });

  test("outlasts a restart of the gateway and of Reef", async () => {
    await stack.stopReef();
    await stack.stopGateway();
    await stack.startGateway();
    await stack.startReef({ GATEWAY_WORKING_SET: "1" });
    expect(await ask(ada, "what is my cat called?")).toBe("Your cat is called Miso.");
    expect(await ask(bob, "what is my cat called?")).not.toContain("Miso");
  });
});

test("a deleted assistant leaves nothing in the gateway's folder", async () => {
  await stack.stopReef();
  await stack.startReef();
  const phrase = "quizzaciously-4471";
  // A neutral name: what is sent as media leaves its file name (not its text) in the gateway's shared database.
  const file = "list.txt";
  stack.model.answer = (asked) =>
    asked.messages.at(-1)?.role === "tool"
      ? [{ text: `I keep ${phrase}.\nMEDIA:./${file}` }]
      : [{ tool: "write", arguments: { path: file, content: phrase } }];
  await ask(bob, `please keep ${phrase}`);
  expect(filesWith(stack.dir, phrase)).not.toEqual([]);
  await request(stack, "DELETE", `/api/assistants/${bob.assistantId}`, bob.token);
  await until("the purge has ended", async () => {
    const [row] = await stack.sql<{ purgeStep: string }[]>`
      select purge_step from assistants where id = ${bob.assistantId}`;
    return row?.purgeStep === "purged";
  });
  expect(readFileSync(join(stack.dir, "openclaw.json"), "utf8")).not.toContain(bob.agentId);
  for (const place of [`workspaces/${bob.agentId}`, `state/agents/${bob.agentId}`, `parked/${bob.agentId}`])
    expect(existsSync(join(stack.dir, place))).toBe(false);
  const trash = join(stack.dir, "home/.Trash");
  expect(existsSync(trash) ? readdirSync(trash) : []).toEqual([]);
  expect(filesWith(stack.dir, phrase)).toEqual([]);
  stack.model.answer = () => [{ text: "still here." }];
  expect(await ask(ada, "are you there?")).toBe("still here.");
});

test("whoever leaves is found nowhere: the gateway's folder with its databases, Postgres, Redis", async () => {
  const phrase = "flibbertigibbet-8812";
  const dora = await createPerson(stack);
  stack.model.answer = (asked) =>
    asked.messages.at(-1)?.role === "tool"
      ? [{ text: `I keep ${phrase}.` }]
      : [{ tool: "write", arguments: { path: "list.txt", content: phrase } }];
  await ask(dora, `please keep ${phrase}`);
  const words = [phrase, dora.agentId, dora.userId];
  expect(filesWith(stack.dir, phrase)).not.toEqual([]);
  expect(await searchDatabase(stack.sql, [phrase])).toContain("messages");
  await request(stack, "DELETE", "/api/user/account", dora.token, { password: PASSWORD });
  await until("the deletion has ended", async () => {
    const rows = await stack.sql`select 1 from account_deletions where user_id = ${dora.userId} and step = 'done'`;
    return rows.length === 1;
  });
  expect(filesWith(stack.dir, phrase)).toEqual([]);
  for (const place of [`workspaces/${dora.agentId}`, `state/agents/${dora.agentId}`, `parked/${dora.agentId}`])
    expect(existsSync(join(stack.dir, place))).toBe(false);
  expect(await searchDatabase(stack.sql, [phrase, dora.agentId])).toEqual([]);
  expect(await searchRedis(String(process.env["TEST_REDIS_URL"]), words)).toEqual([]);
  stack.model.answer = () => [{ text: "still here." }];
  expect(await ask(ada, "are you there?")).toBe("still here.");
});

/** Every file under a folder whose name or bytes hold `phrase`. */
function filesWith(folder: string, phrase: string): string[] {
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.name.includes(phrase) || (entry.isFile() && holds(join(entry.parentPath, entry.name))))
    .map((entry) => join(entry.parentPath, entry.name));

  function holds(path: string): boolean {
    try {
      return readFileSync(path).includes(phrase);
    } catch {
      return false; // gone since the folder was listed
    }
  }
}
