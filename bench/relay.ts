import { defineBench, type Services } from "./bench.ts";
import type { ChatClient } from "./chatClient.ts";
import { cpuSeconds, cpuSecondsOfTree, medianOf, percentile, printTable, short, verdict } from "./measure.ts";
import type { Person } from "./people.ts";
import { DESCRIPTIONS, startRelaySystems, type RelaySystem, type SystemName } from "./relaySystems.ts";

/** The rate of an unhurried model: the real gateway puts text together for about this long. */
const EVERY_MS = 75;

interface Flood {
  chunksPerSecond: number;
  busy: number;
  cpuMsPerThousand: number;
  besideMsPerThousand: number;
}
type Delays = Record<"p50" | "p95" | "p99", number>;

export const relay = defineBench({
  summary: "chunks per second, processor time and added latency, beside a bare relay and an Express relay",
  options: {
    sockets: {
      value: 75,
      help: "devices, each with an assistant of its own; 75 make 1,000 chunks a second when paced",
    },
    turns: { value: 1, help: "turns per device and round in the flood" },
    chunks: { value: 200, help: "chunks per turn in the flood" },
    size: { value: 24, help: "characters per chunk, at least 19" },
    seconds: { value: 3, help: "how long an answer takes when paced" },
    rounds: { value: 3, help: "rounds, alternating; figures are their medians" },
  },
  async run(services, options) {
    services.say("starting the relays");
    const { systems, people } = await startRelaySystems(services, options.sockets);
    const floods = collector<Flood>(systems);
    const delays = collector<Delays>(systems);
    for (let round = 0; round <= options.rounds; round++) {
      for (const system of systems) {
        services.say(`${round === 0 ? "warming up" : `round ${round} of ${options.rounds}`}: ${system.name}`);
        const measured = await measure(services, system, people, options, round === 0);
        if (round === 0) continue;
        floods[system.name].push(measured.flood);
        if (measured.delays) delays[system.name].push(measured.delays);
      }
    }
    report(floods, delays, options);
  },
});

type Options = Record<"sockets" | "turns" | "chunks" | "size" | "seconds" | "rounds", number>;

function collector<T>(systems: RelaySystem[]): Record<SystemName, T[]> {
  return Object.fromEntries(systems.map(({ name }) => [name, []])) as unknown as Record<SystemName, T[]>;
}

async function measure(
  services: Services,
  system: RelaySystem,
  people: Person[],
  options: Options,
  warmingUp: boolean,
): Promise<{ flood: Flood; delays: Delays | null }> {
  const clients = await Promise.all(people.map((person) => system.connect(person)));
  // Everybody's events to everybody is work in the square of the sockets, and can't be paced at this rate at all.
  const plain = system.name === "plain floor";
  const chunks = Math.ceil(options.chunks / (plain ? 20 : warmingUp ? 2 : 1));
  const flood = await runFlood(services, system, clients, { ...options, chunks });
  const seconds = warmingUp ? 0.5 : options.seconds;
  const delays = plain ? null : await runPaced(clients, { ...options, seconds });
  for (const client of clients) client.close();
  return { flood, delays };
}

async function runFlood(
  services: Services,
  system: RelaySystem,
  clients: ChatClient[],
  options: Options,
): Promise<Flood> {
  const usage = () => ({
    at: performance.now(),
    own: system.pid === null ? 0 : cpuSeconds(system.pid),
    beside: system.name === "reef" ? cpuSecondsOfTree(services.postgresPid) + cpuSeconds(services.redisPid) : 0,
  });
  const before = usage();
  let chunks = 0;
  await Promise.all(
    clients.map(async (client) => {
      for (let turn = 0; turn < options.turns; turn++) {
        const seen = await client.turn(`chunks=${options.chunks} every=0 size=${options.size}`);
        chunks += seen.chunks;
      }
    }),
  );
  const after = usage();
  const seconds = (after.at - before.at) / 1000;
  if (chunks !== clients.length * options.turns * options.chunks) throw new Error(`${system.name} lost chunks`);
  return {
    chunksPerSecond: chunks / seconds,
    busy: (after.own - before.own) / seconds,
    cpuMsPerThousand: ((after.own - before.own) * 1_000_000) / chunks,
    besideMsPerThousand: ((after.beside - before.beside) * 1_000_000) / chunks,
  };
}

/**
 * Answers of `seconds` each, one after the other on every socket, their beginnings spread evenly: the first is a part of
 * one, to spread them, and not counted.
 */
async function runPaced(clients: ChatClient[], options: Options): Promise<Delays> {
  const chunks = Math.ceil((options.seconds * 1000) / EVERY_MS);
  const ask = (client: ChatClient, n: number) => client.turn(`chunks=${n} every=${EVERY_MS} size=${options.size}`);
  const turns = await Promise.all(
    clients.map(async (client, i) => {
      await Bun.sleep((i * EVERY_MS) / clients.length);
      await ask(client, 1 + Math.floor((chunks * i) / clients.length));
      return ask(client, chunks);
    }),
  );
  const delays = turns.flatMap((turn) => turn.delays);
  return { p50: percentile(delays, 50), p95: percentile(delays, 95), p99: percentile(delays, 99) };
}

function report(floods: Record<SystemName, Flood[]>, delays: Record<SystemName, Delays[]>, options: Options): void {
  const names = Object.keys(floods) as SystemName[];
  for (const name of names) console.log(`${name}: ${DESCRIPTIONS[name]}`);
  console.log(
    `\nFlood: ${options.sockets} sockets, ${options.turns} turn(s) of ${options.chunks} chunks each, as fast as`,
  );
  console.log(`the gateway and the relay can on the same cores. Medians of ${options.rounds} rounds, alternating.`);
  printTable(
    ["", "chunks/s", "busy cores", "CPU ms per 1,000 chunks", "Postgres + Redis", "chunks per CPU second"],
    names.map((name) => {
      const of = (figure: (flood: Flood) => number) => short(medianOf(floods[name], figure));
      const middle = name !== "direct";
      return [
        name,
        of((flood) => flood.chunksPerSecond),
        middle ? of((flood) => flood.busy) : "–",
        middle ? of((flood) => flood.cpuMsPerThousand) : "–",
        name === "reef" ? of((flood) => flood.besideMsPerThousand) : "–",
        middle ? of((flood) => 1_000_000 / flood.cpuMsPerThousand) : "–",
      ];
    }),
  );
  reportRatios(floods);
  reportDelays(names, delays, options);
}

function reportRatios(floods: Record<SystemName, Flood[]>): void {
  const rate = (name: SystemName) => medianOf(floods[name], (flood) => flood.chunksPerSecond);
  const cost = (name: SystemName) => medianOf(floods[name], (flood) => flood.cpuMsPerThousand);
  for (const floor of ["floor", "plain floor"] as const) {
    const ratio = rate("reef") / rate(floor);
    console.log(verdict(`chunks/s, Reef to the ${floor}`, ratio, "≥ 3", ratio >= 3));
    console.log(`  by processor time of the relay alone: ${short(cost(floor) / cost("reef"))}`);
  }
  const ratio = rate("reef") / rate("ceiling");
  console.log(verdict("chunks/s, Reef to the ceiling", ratio, "≥ 0.60", ratio >= 0.6));
  console.log(`  by processor time of the relay alone: ${short(cost("ceiling") / cost("reef"))}`);
}

function reportDelays(names: SystemName[], delays: Record<SystemName, Delays[]>, options: Options): void {
  const rate = Math.round((options.sockets * 1000) / EVERY_MS);
  console.log(`\nPaced: ${rate} chunks a second in all, a chunk per socket every ${EVERY_MS} ms; from the gateway's`);
  console.log(`making of a chunk to the client's reading of it, ms; "added" is what is more than on the direct way.`);
  const of = (name: SystemName, p: keyof Delays) => medianOf(delays[name], (one) => one[p]);
  const shown = names.filter((name) => delays[name].length > 0);
  printTable(
    ["", "p50", "p95", "p99", "added p50", "added p95", "added p99"],
    shown.map((name) => [
      name,
      ...(["p50", "p95", "p99"] as const).map((p) => short(of(name, p))),
      ...(["p50", "p95", "p99"] as const).map((p) => short(of(name, p) - of("direct", p))),
    ]),
  );
  const added = of("reef", "p95") - of("direct", "p95");
  console.log(verdict(`added by Reef at p95, ${rate} chunks/s, ms`, added, "≤ 8", added <= 8));
}
