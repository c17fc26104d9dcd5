import { newId } from "../src/lib/ids.ts";
import { defineBench, type Services } from "./bench.ts";
import { openChatClient, type ChatClient } from "./chatClient.ts";
import { percentile, printTable, short } from "./measure.ts";
import { createPeople, PASSWORD, wakeEveryone, type Person } from "./people.ts";
import type { Program } from "./systems/program.ts";
import { openDatabase, startLoadGateway, startReefProgram } from "./systems/reef.ts";

type Options = Record<"chatters" | "messages" | "storm" | "samples", number>;

/** A route whose answer must take the same time whether the account is known or not. */
interface Secret {
  name: string;
  path: string;
  body(email: string): object;
}
const SECRETS: Secret[] = [
  { name: "log in, wrong password", path: "/api/auth/login", body: (email) => ({ email, password: "not this one" }) },
  { name: "forgot password", path: "/api/auth/forgot-password", body: (email) => ({ email }) },
  { name: "sign up", path: "/api/auth/signup", body: (email) => ({ email, password: PASSWORD }) },
];
/** In front of each request, so that no throttle is measured: every one comes from another address. */
const PROXIES = { TRUSTED_PROXIES: "1", REVEAL_EMAIL_TAKEN: "false" };
let addresses = 0;
const STORM_PEOPLE = 200;

export const logins = defineBench({
  summary: "chat acknowledgements with and without a storm of sign-ins; sign-in of known and unknown accounts",
  options: {
    chatters: { value: 10, help: "people who chat, one message after the other" },
    messages: { value: 20, help: "messages of each, per phase; there are two phases with a storm and two without" },
    storm: { value: 200, help: "sign-ins under way at a time during the storm" },
    samples: { value: 150, help: "requests for known and as many for unknown accounts, alternating, per route" },
  },
  async run(services, options) {
    const sql = await openDatabase(services);
    services.say("creating people");
    const people = await createPeople(sql, options.chatters + Math.max(STORM_PEOPLE, options.samples));
    const reef = await startReefProgram(services, await startLoadGateway(services), PROXIES);
    const chatters = people.slice(0, options.chatters);
    // The others stay asleep: a gateway's working set is not what is measured.
    await sql`delete from assistants where id <> all(${chatters.map((person) => person.assistantId)}::uuid[])`;
    services.say("waking the chatters' assistants");
    await wakeEveryone(sql);
    // Somebody else's: a fifty-first sign-in of a chatter would end the session that chats.
    const others = people.slice(options.chatters);
    await compareChats(services, reef, { chatters, others }, options);
    await compareSecrets(services, reef, others.slice(0, options.samples));
  },
});

/** Alternating, so that neither always runs on the warmer machine. */
async function compareChats(
  services: Services,
  reef: Program,
  { chatters, others }: Record<"chatters" | "others", Person[]>,
  options: Options,
): Promise<void> {
  const clients = await Promise.all(chatters.map((person) => openChatClient(reef.url, person)));
  await chat(clients, 2);
  const quiet: number[] = [];
  const stormy: number[] = [];
  let signedIn = 0;
  for (let round = 0; round < 2; round++) {
    services.say(`round ${round + 1}: chats alone`);
    quiet.push(...(await chat(clients, options.messages)));
    services.say(`round ${round + 1}: chats in a storm of ${options.storm} sign-ins at a time`);
    const storm = startStorm(reef, others, options.storm);
    stormy.push(...(await chat(clients, options.messages)));
    signedIn += await storm.stop();
  }
  for (const client of clients) client.close();
  console.log(
    `\nFrom a message to its acknowledgement, ms; ${chatters.length} people chatting, ${signedIn} sign-ins answered meanwhile.`,
  );
  printTable(
    ["", "messages", "p5", "p50", "p95"],
    [rowOf("alone", quiet), rowOf(`${options.storm} sign-ins under way`, stormy)],
  );
}

async function chat(clients: ChatClient[], messages: number): Promise<number[]> {
  const times: number[] = [];
  await Promise.all(
    clients.map(async (client) => {
      for (let i = 0; i < messages; i++) {
        const seen = await client.turn("chunks=5 every=10 size=24");
        times.push(seen.ackAt - seen.sentAt);
      }
    }),
  );
  return times;
}

/** Keeps so many sign-ins under way until it is stopped; tells how many were answered. */
function startStorm(reef: Program, people: Person[], atOnce: number): { stop(): Promise<number> } {
  let on = true;
  let answered = 0;
  const one = async (i: number) => {
    while (on) {
      const email = people[i % people.length]!.email;
      const response = await post(reef, "/api/auth/login", { email, password: PASSWORD });
      if (response.status === 200) answered += 1;
    }
  };
  const all = Promise.all(Array.from({ length: atOnce }, (_, i) => one(i)));
  return {
    async stop() {
      on = false;
      await all;
      return answered;
    },
  };
}

async function compareSecrets(services: Services, reef: Program, people: Person[]): Promise<void> {
  const rows: (string | number)[][] = [];
  for (const secret of SECRETS) {
    services.say(`known and unknown accounts: ${secret.name}`);
    if ((await post(reef, secret.path, secret.body("warm.up@example.org"))).status === 404) {
      rows.push([secret.name, "no such route", "", "", "", ""]);
      continue;
    }
    const known: number[] = [];
    const unknown: number[] = [];
    for (const [i, person] of people.entries()) {
      const pair = [
        () => time(reef, secret, person.email, known),
        () => time(reef, secret, `${newId()}@example.org`, unknown),
      ];
      for (const ask of i % 2 === 0 ? pair : pair.toReversed()) await ask();
    }
    rows.push([secret.name, ...rowOf("known", known)], ["", ...rowOf("unknown", unknown)]);
    const difference = (p: number) => short(percentile(known, p) - percentile(unknown, p));
    rows.push(["", "known less unknown", "", difference(5), difference(50), difference(95)]);
  }
  console.log("\nOne request at a time, known and unknown accounts in turns; ms.");
  printTable(["", "account", "requests", "p5", "p50", "p95"], rows);
}

function rowOf(name: string, times: number[]): (string | number)[] {
  return [name, times.length, ...[5, 50, 95].map((p) => short(percentile(times, p)))];
}

async function time(reef: Program, secret: Secret, email: string, into: number[]): Promise<void> {
  const at = performance.now();
  await post(reef, secret.path, secret.body(email));
  into.push(performance.now() - at);
}

async function post(reef: Program, path: string, body: object): Promise<Response> {
  const n = addresses++;
  const response = await fetch(reef.url + path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-forwarded-for": `10.${n >> 16}.${(n >> 8) & 255}.${n & 255}` },
    body: JSON.stringify(body),
  });
  await response.arrayBuffer();
  return response;
}
