import type { Services } from "./bench.ts";
import { openChatClient, type ChatClient } from "./chatClient.ts";
import { connectDirectly } from "./gatewayClient.ts";
import { createPeople, wakeEveryone, type Person } from "./people.ts";
import { startProgram, type Program } from "./systems/program.ts";
import { GATEWAY_TOKEN, JWT_SECRET, openDatabase, startLoadGateway, startReefProgram } from "./systems/reef.ts";

export type SystemName = "direct" | "ceiling" | "reef" | "floor" | "plain floor";

/** One way from the gateway to the clients. Each has a gateway of its own, so that one's events cost the others nothing. */
export interface RelaySystem {
  name: SystemName;
  /** Null for the direct way, which has nothing in the middle. */
  pid: number | null;
  connect(person: Person): Promise<ChatClient>;
}

export const DESCRIPTIONS: Record<SystemName, string> = {
  direct: "no relay: one connection straight to the gateway",
  ceiling: "bare Bun.serve relay, one upstream connection, nothing stored",
  reef: "Reef, one process, with Postgres and Redis",
  floor: "Express + ws on Node, an upstream connection per client, each subscribed to its own session",
  "plain floor": "the same without subscriptions: each upstream connection hears everybody's events",
};

/** Starts everything, with people whose assistants are awake. */
export async function startRelaySystems(
  services: Services,
  count: number,
): Promise<{ systems: RelaySystem[]; people: Person[] }> {
  const sql = await openDatabase(services);
  const people = await createPeople(sql, count);
  const gateway = await startLoadGateway(services);
  const reef = await startReefProgram(services, gateway, {
    GATEWAY_WORKING_SET: String(count),
    GATEWAY_MAX_RUNS: String(count),
  });
  await wakeEveryone(sql);
  const direct = await connectDirectly((await startLoadGateway(services)).url, GATEWAY_TOKEN);
  services.onEnd(() => direct.close());
  return {
    people,
    systems: [
      { name: "direct", pid: null, connect: async (person) => direct.clientOf(person) },
      behind("ceiling", await startCeiling(services)),
      behind("reef", reef),
      behind("floor", await startFloor(services, "scoped")),
      behind("plain floor", await startFloor(services, "all")),
    ],
  };
}

function behind(name: SystemName, program: Program): RelaySystem {
  return { name, pid: program.pid, connect: (person) => openChatClient(program.url, person) };
}

export async function startCeiling(services: Services): Promise<Program> {
  const env = await upstreamOf(services);
  return startProgram(services, { name: "ceiling", runtime: "bun", file: "bench/systems/bareRelay.ts", env });
}

export async function startFloor(services: Services, upstream: "scoped" | "all"): Promise<Program> {
  const env = { ...(await upstreamOf(services)), JWT_SECRET, UPSTREAM: upstream };
  const name = `floor ${upstream}`;
  return startProgram(services, { name, runtime: "node", file: "bench/systems/expressRelay.ts", env });
}

async function upstreamOf(services: Services): Promise<Record<string, string>> {
  const gateway = await startLoadGateway(services);
  return { GATEWAY_URL: gateway.url.replace(/^http/, "ws"), GATEWAY_TOKEN };
}
