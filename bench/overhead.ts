import { defineBench, type Services } from "./bench.ts";
import { openChatClient, type ChatClient, type TurnSeen } from "./chatClient.ts";
import { connectDirectly } from "./gatewayClient.ts";
import { median, percentile, printTable, short, verdict } from "./measure.ts";
import { createPeople, wakeEveryone } from "./people.ts";
import { startRealGateway } from "./systems/realGateway.ts";
import { GATEWAY_TOKEN, openDatabase, startLoadGateway, startReefProgram } from "./systems/reef.ts";

/** Reef goes on for a moment after the answer (usage, the workspace's files): it must not fall into the next turn. */
const SETTLE_MS = 60;
/** Turns that are not counted: each of the database connections must have seen each statement once. */
const WARM_UP = { real: 10, load: 25 };
const LOAD_TURN = "chunks=4 every=10 size=24";

interface Pairs {
  direct: TurnSeen[];
  reef: TurnSeen[];
}

export const overhead = defineBench({
  summary: "the same turn straight to the gateway and through Reef: time to the first text and to the end",
  options: {
    turns: { value: 60, help: "turns each way on the real gateway; 0 leaves it out" },
    load: { value: 100, help: "turns each way on the load gateway, which itself takes no time and so no noise" },
  },
  async run(services, options) {
    const sql = await openDatabase(services);
    const [person] = await createPeople(sql, 1);
    for (const real of [true, false]) {
      const turns = real ? options.turns : options.load;
      if (turns === 0) continue;
      services.say(`starting the ${real ? "real" : "load"} gateway and Reef`);
      const { url, modelUrl } = real ? await startRealGateway(services) : await loadGateway(services);
      const reef = await startReefProgram(services, { url }, { OPENAI_BASE_URL: modelUrl });
      await wakeEveryone(sql);
      const straight = await connectDirectly(url, GATEWAY_TOKEN);
      const through = await openChatClient(reef.url, person!);
      const pairs = await alternate(services, straight.clientOf(person!), through, {
        turns,
        warmUp: real ? WARM_UP.real : WARM_UP.load,
      });
      through.close();
      await reef.stop();
      report(real ? "The real gateway" : "The load gateway (four chunks, one every 10 ms)", pairs);
    }
  },
});

async function loadGateway(services: Services): Promise<{ url: string; modelUrl: string }> {
  return { url: (await startLoadGateway(services)).url, modelUrl: "http://127.0.0.1:1/v1" };
}

async function alternate(
  services: Services,
  direct: ChatClient,
  reef: ChatClient,
  { turns, warmUp }: { turns: number; warmUp: number },
): Promise<Pairs> {
  const pairs: Pairs = { direct: [], reef: [] };
  const ways = [
    ["direct", direct],
    ["reef", reef],
  ] as const;
  for (let i = 0; i < turns + warmUp; i++) {
    if (i % 10 === 0) services.say(`turn ${Math.max(0, i - warmUp)} of ${turns}, each way`);
    // Who goes first changes, so that neither always profits from what the other has warmed up.
    for (const [name, client] of i % 2 === 0 ? ways : ways.toReversed()) {
      const seen = await client.turn(LOAD_TURN);
      if (i >= warmUp) pairs[name].push(seen);
      await Bun.sleep(SETTLE_MS);
    }
  }
  return pairs;
}

function report(gateway: string, pairs: Pairs): void {
  const first = (turn: TurnSeen) => turn.firstTextAt - turn.sentAt;
  const end = (turn: TurnSeen) => turn.endAt - turn.sentAt;
  console.log(`\n${gateway}: ${pairs.reef.length} turns each way, alternating; ms from sending.`);
  const rows = [
    { name: "to the first text", of: first },
    { name: "to the end", of: end },
  ].map(({ name, of }) => {
    const [straight, through] = [pairs.direct.map(of), pairs.reef.map(of)];
    const differences = through.map((ms, i) => ms - straight[i]!);
    const p = (values: number[]) => [percentile(values, 50), percentile(values, 95)] as const;
    const [a, b] = [p(straight), p(through)];
    return { name, figures: [...a, ...b, b[0] - a[0], b[1] - a[1], median(differences)] };
  });
  printTable(
    ["", "direct p50", "direct p95", "Reef p50", "Reef p95", "added p50", "added p95", "median of pairs"],
    rows.map(({ name, figures }) => [name, ...figures.map(short)]),
  );
  for (const { name, figures } of rows)
    console.log(verdict(`added at p95 ${name}, ms`, figures[5]!, "≤ 8", figures[5]! <= 8));
}
