import { defineBench, type Services } from "./bench.ts";
import { writeConversation } from "./history.ts";
import { cpuSeconds, medianOf, percentile, printTable, short } from "./measure.ts";
import { createPeople, PASSWORD, type Person } from "./people.ts";
import { startProgram, type Program } from "./systems/program.ts";
import { JWT_SECRET, openDatabase, startLoadGateway, startReefProgram } from "./systems/reef.ts";

interface Address {
  name: string;
  /** Share of `requests`: signing in is the hash of a password and takes thirty times as long. */
  share: number;
  request(person: Person): [path: string, init: RequestInit];
}
interface Round {
  perSecond: number;
  p50: number;
  p99: number;
  cpuMsEach: number;
}
type Options = Record<"people" | "requests" | "atOnce" | "rounds", number>;

const get = (person: Person): RequestInit => ({ headers: { authorization: `Bearer ${person.token}` } });
const ADDRESSES: Address[] = [
  {
    name: "sign in",
    share: 0.04,
    request: ({ email }) => [
      "/api/auth/login",
      {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ email, password: PASSWORD }),
      },
    ],
  },
  { name: "read the profile", share: 1, request: (person) => ["/api/user/profile", get(person)] },
  { name: "list assistants", share: 1, request: (person) => ["/api/assistants", get(person)] },
  {
    name: "read an assistant",
    share: 1,
    request: (person) => [`/api/assistants/${person.assistantId}`, get(person)],
  },
  {
    name: "history, 50 messages",
    share: 1,
    request: (person) => [`/api/assistants/${person.assistantId}/messages?limit=50`, get(person)],
  },
];

export const http = defineBench({
  summary: "requests per second and p99 of five addresses, beside an Express application with the same queries",
  options: {
    people: { value: 50, help: "people who ask in turn, each with a conversation of 100 messages" },
    requests: { value: 2_000, help: "requests per address, system and round; a 25th of it for signing in" },
    atOnce: { value: 16, help: "requests under way at a time, over kept connections" },
    rounds: { value: 3, help: "rounds, alternating; figures are their medians" },
  },
  async run(services, options) {
    const sql = await openDatabase(services);
    services.say("writing people and conversations");
    const people = await createPeople(sql, options.people);
    for (const person of people) await writeConversation(sql, person, 100);
    await sql`analyze`;
    const reef = await startReefProgram(services, await startLoadGateway(services));
    const express = await startProgram(services, {
      name: "express",
      runtime: "node",
      file: "bench/systems/expressHttp.ts",
      env: { DATABASE_URL: services.databaseUrl, JWT_SECRET },
    });
    const results = await measureAll(services, [reef, express], people, options);
    report(results, options);
  },
});

async function measureAll(
  services: Services,
  programs: Program[],
  people: Person[],
  options: Options,
): Promise<Map<string, Round[]>> {
  const results = new Map<string, Round[]>();
  for (let round = 0; round <= options.rounds; round++) {
    for (const address of ADDRESSES) {
      // The first and the second change places, so that neither always runs on the warmer machine.
      for (const program of round % 2 === 0 ? programs : programs.toReversed()) {
        services.say(`${round === 0 ? "warming up" : `round ${round}`}: ${address.name}, ${program.name}`);
        const requests = Math.ceil(options.requests * address.share * (round === 0 ? 0.25 : 1));
        const measured = await ask(program, address, people, requests, options.atOnce);
        const key = `${address.name}/${program.name}`;
        if (round > 0) results.set(key, [...(results.get(key) ?? []), measured]);
      }
    }
  }
  return results;
}

async function ask(
  program: Program,
  address: Address,
  people: Person[],
  requests: number,
  atOnce: number,
): Promise<Round> {
  const times: number[] = [];
  const cpuBefore = cpuSeconds(program.pid);
  const startedAt = performance.now();
  let next = 0;
  const asker = async () => {
    for (let i = next++; i < requests; i = next++) {
      const [path, init] = address.request(people[i % people.length]!);
      const askedAt = performance.now();
      const response = await fetch(program.url + path, init);
      await response.arrayBuffer();
      times.push(performance.now() - askedAt);
      if (!response.ok) throw new Error(`${program.name} ${path}: ${response.status}`);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, asker));
  const seconds = (performance.now() - startedAt) / 1000;
  const cpuMsEach = ((cpuSeconds(program.pid) - cpuBefore) * 1000) / requests;
  return { perSecond: requests / seconds, p50: percentile(times, 50), p99: percentile(times, 99), cpuMsEach };
}

function report(results: Map<string, Round[]>, options: Options): void {
  console.log(`${options.atOnce} requests at a time; medians of ${options.rounds} rounds, alternating; times in ms.`);
  const of = (key: string, figure: (round: Round) => number) => medianOf(results.get(key) ?? [], figure);
  printTable(
    ["", "", "requests/s", "p50", "p99", "CPU ms each"],
    [...results.keys()].map((key) => [
      ...key.split("/"),
      ...[(r: Round) => r.perSecond, (r: Round) => r.p50, (r: Round) => r.p99, (r: Round) => r.cpuMsEach].map(
        (figure) => short(of(key, figure)),
      ),
    ]),
  );
  console.log("\nReef to Express: more requests, a lower p99, less processor time are better.");
  printTable(
    ["", "requests/s", "p99", "CPU"],
    ADDRESSES.map(({ name }) => {
      const ratio = (figure: (round: Round) => number) =>
        short(of(`${name}/reef`, figure) / of(`${name}/express`, figure));
      return [name, ratio((r) => r.perSecond), ratio((r) => r.p99), ratio((r) => r.cpuMsEach)];
    }),
  );
}
