import { readFileSync } from "node:fs";
import { StartError } from "../scripts/services/process.ts";
import { defineBench, type Services } from "./bench.ts";
import { openChatClient, type ChatClient } from "./chatClient.ts";
import { cpuSeconds, memoryBytes, printTable, short, verdict } from "./measure.ts";
import { createPeople, type Person } from "./people.ts";
import { startCeiling, startFloor } from "./relaySystems.ts";
import type { Program } from "./systems/program.ts";
import { openDatabase, startLoadGateway, startReefProgram } from "./systems/reef.ts";

/** Connections being opened at a time. */
const AT_ONCE = 50;

interface Held {
  name: string;
  sockets: number;
  bytesEach: number;
  openedPerSecond: number;
  /** Share of a core that the process uses while nothing happens. */
  busy: number;
}

export const idle = defineBench({
  summary: "memory per idle chat socket, each of another person, on one Reef process and on the relays beside it",
  options: {
    sockets: { value: 10_000, help: "sockets on Reef and on the bare relay" },
    floor: { value: 4_000, help: "sockets on the Express relay, which needs two descriptors for each" },
    settle: { value: 6, help: "seconds to wait before memory is read, and to look at the processor" },
  },
  async run(services, options) {
    requireDescriptors(Math.max(options.sockets, options.floor * 2) + 500);
    services.say("creating people");
    const sql = await openDatabase(services);
    const people = await createPeople(sql, Math.max(options.sockets, options.floor));
    const gateway = await startLoadGateway(services);
    const reef = await startReefProgram(services, gateway);
    const held: Held[] = [];
    held.push(await hold(services, "reef", reef, people.slice(0, options.sockets), options.settle));
    const ceiling = await startCeiling(services);
    held.push(await hold(services, "ceiling", ceiling, people.slice(0, options.sockets), options.settle));
    const floor = await startFloor(services, "scoped");
    held.push(await hold(services, "floor", floor, people.slice(0, options.floor), options.settle));
    printTable(
      ["", "sockets", "bytes per idle socket", "opened/s", "busy cores while idle"],
      held.map((one) => [one.name, one.sockets, one.bytesEach, short(one.openedPerSecond), short(one.busy)]),
    );
    const kilobytes = held[0]!.bytesEach / 1024;
    console.log(verdict("KB per idle socket on Reef", kilobytes, "≤ 15", kilobytes <= 15));
  },
});

/** Opens the sockets, lets the process settle, reads its memory and its idle work, and lets them go. */
async function hold(
  services: Services,
  name: string,
  program: Program,
  people: Person[],
  settleSeconds: number,
): Promise<Held> {
  // The first connections warm up code, pools and heap: that is not what one more socket costs.
  await openAll(program, people.slice(0, AT_ONCE)).then((clients) => clients.forEach((client) => client.close()));
  await Bun.sleep(1_000);
  const before = memoryBytes(program.pid);
  services.say(`${name}: opening ${people.length} sockets`);
  const startedAt = performance.now();
  const clients = await openAll(program, people);
  const openedSeconds = (performance.now() - startedAt) / 1000;
  services.say(`${name}: letting ${people.length} sockets idle`);
  await Bun.sleep(settleSeconds * 1000);
  const cpuBefore = cpuSeconds(program.pid);
  await Bun.sleep(settleSeconds * 1000);
  const busy = (cpuSeconds(program.pid) - cpuBefore) / settleSeconds;
  const bytes = memoryBytes(program.pid) - before;
  for (const client of clients) client.close();
  await program.stop();
  return {
    name,
    sockets: people.length,
    bytesEach: Math.round(bytes / people.length),
    openedPerSecond: people.length / openedSeconds,
    busy,
  };
}

async function openAll(program: Program, people: Person[]): Promise<ChatClient[]> {
  const clients: ChatClient[] = [];
  let next = 0;
  const opener = async () => {
    for (let person = people[next++]; person; person = people[next++])
      clients.push(await openChatClient(program.url, person));
  };
  await Promise.all(Array.from({ length: AT_ONCE }, opener));
  return clients;
}

// Bun and Node raise their own soft limit to the hard one; only that one can be in the way.
function requireDescriptors(wanted: number): void {
  const limits = readFileSync("/proc/self/limits", "utf8");
  const hard = Number(/^Max open files\s+\S+\s+(\d+)/m.exec(limits)?.[1] ?? Number.POSITIVE_INFINITY);
  if (hard < wanted)
    throw new StartError(`${wanted} open files are needed, ${hard} allowed: raise it (ulimit -Hn) or give --sockets.`);
}
