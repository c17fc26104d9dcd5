import type { FakeGateway } from "../fakes/gateway.ts";
import { isAnswer, makeAssistant, makeUser, openChat, type TestUser } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

/** A user with one assistant. */
export interface Person {
  user: TestUser;
  assistantId: string;
  agentId: string;
}

export interface Town {
  reef: TestReef;
  /** With one answered message each. */
  people: Person[];
  /** With an answered and a failed message; with an answered and a stopped one; with nothing left. */
  failed: Person;
  stopped: Person;
  purged: Person;
}

const answer: Parameters<FakeGateway["setAnswer"]>[0] = async function* (turn) {
  yield { text: "Well, " };
  if (turn.text === "fail") yield { error: "format" };
  if (turn.text === "long") yield { hang: true };
  yield { text: "yes." };
};

async function makePerson(reef: TestReef): Promise<Person> {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  return { user, assistantId: assistant.id, agentId: assistant.agent_id };
}

async function talk(reef: TestReef, person: Person, text: string, stop = false): Promise<void> {
  const chat = await openChat(reef, person.user.token, person.agentId);
  chat.say(text);
  if (stop) {
    await chat.next("some text", (frame) => frame.type === "chunk");
    chat.send({ type: "stop" });
  }
  await chat.next("the answer", isAnswer);
  chat.close();
}

/** A Reef after some traffic: answered, failed, stopped; one paused and asleep, one deleted and purged. */
export async function makeTown(size: number): Promise<Town> {
  // Room for all of them to be awake.
  const reef = await startTestReef({ GATEWAY_WORKING_SET: "60" });
  reef.gateway.setAnswer(answer);
  const people: Person[] = [];
  for (let n = 0; n < size + 4; n++) people.push(await makePerson(reef));
  await Promise.all(people.map((person) => talk(reef, person, "hello")));
  const [purged, failed, stopped, paused] = people.splice(0, 4) as [Person, Person, Person, Person];
  await talk(reef, failed, "fail");
  await talk(reef, stopped, "long", true);
  await paused.user.call("POST", `/api/assistants/${paused.assistantId}/pause`);
  await purged.user.call("DELETE", `/api/assistants/${purged.assistantId}`);
  await until("one is purged and one sleeps", async () => {
    const [row] = await reef.sql<{ n: number }[]>`
      select count(*)::int as n from assistants
      where (id = ${purged.assistantId} and purge_step = 'purged') or (id = ${paused.assistantId} and state = 'asleep')`;
    return row!.n === 2;
  });
  return { reef, people, failed, stopped, purged };
}
