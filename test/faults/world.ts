import postgres from "postgres";
import { newId } from "../../src/lib/ids.ts";
import { makeAssistant, makeUser, type Json } from "../factories.ts";
import { createTestDatabase, until } from "../harness.ts";
import { ApiProcess } from "./apiProcess.ts";
import type { CellGateway } from "./gateways.ts";
import { GoodClient, type Stored } from "./goodClient.ts";
import { Proxy } from "./proxy.ts";
import { Script } from "./script.ts";
import type { Servers } from "./servers.ts";

/** The connections of one API process, each through a network that can be struck. */
export interface Network {
  postgres: Proxy;
  redis: Proxy;
  gateway: Proxy;
}

/**
 * Everything of one cell: a database, two API processes and two devices of one person. Device one sends, and prefers
 * process A; device two watches, and prefers B. A answers: B does not reach the gateway before `letTheOtherIn`.
 */
export interface World {
  sql: postgres.Sql;
  servers: Servers;
  gateway: CellGateway;
  script: Script;
  a: ApiProcess;
  b: ApiProcess;
  networkOfA: Network;
  /** Device one's way to A and to B. */
  phoneNetwork: Proxy[];
  devices: [GoodClient, GoodClient];
  assistantId: string;
  userId: string;
  letTheOtherIn(): void;
  /** Device one anew, from what it had stored. */
  restartPhone(stored: Stored): void;
  close(): Promise<void>;
}

export const SAID = "tell me something long";
const PARTS = ["This is the first part of the answer, ", "then comes its middle, ", "and this is the end."];

async function openNetwork(servers: Servers, gateway: CellGateway): Promise<Network> {
  const [postgres, redis, toGateway] = await Promise.all([
    Proxy.open(() => servers.postgres.port()),
    Proxy.open(() => servers.redis.port()),
    Proxy.open(() => gateway.port()),
  ]);
  return { postgres, redis, gateway: toGateway };
}

function through(url: string, proxy: Proxy): string {
  return Object.assign(new URL(url), { port: String(proxy.port) }).toString();
}

export async function openWorld(servers: Servers, gateway: CellGateway): Promise<World> {
  const control = await Proxy.open(() => servers.postgres.port());
  const database = await createTestDatabase(through(servers.postgresUrl, control));
  const sql = postgres(database, { max: 6, onnotice: () => undefined, transform: { column: { from: postgres.toCamel } } });
  const networkOfA = await openNetwork(servers, gateway);
  const networkOfB = await openNetwork(servers, gateway);
  networkOfB.gateway.refuse();
  const prefix = `${newId()}:`;
  const processFor = (name: string, network: Network) => {
    const env = settings({ gateway, network, database, redis: servers.redisUrl, prefix });
    return new ApiProcess(name, env, servers.folder);
  };
  const a = processFor("a", networkOfA);
  const b = processFor("b", networkOfB);
  const proxies = [control, ...Object.values(networkOfA), ...Object.values(networkOfB)] as Proxy[];
  const close = async () => {
    for (const device of devices) device.close();
    script.open();
    await Promise.all([a.kill(), b.kill()]);
    await sql.end({ timeout: 1 });
    const admin = postgres(through(servers.postgresUrl, control), { max: 1, onnotice: () => undefined });
    await admin.unsafe(`drop database "${new URL(database).pathname.slice(1)}" with (force)`).catch(() => undefined);
    await admin.end({ timeout: 1 });
    for (const proxy of proxies) proxy.close();
  };
  const devices: GoodClient[] = [];
  const script = new Script(PARTS);
  try {
    await a.start();
    await Promise.all([b.start(), a.ready()]);
    gateway.play(script);
    const person = await makePerson(a, sql);
    const toA = () => Proxy.open(() => a.port);
    const toB = () => Proxy.open(() => b.port);
    const ways = await Promise.all([toA(), toB(), toA(), toB()]);
    proxies.push(...ways);
    const device = (seed: number, servers: Proxy[], stored?: Stored) => newDevice(person, seed, servers, stored);
    const [toAFromOne, toBFromOne, toAFromTwo, toBFromTwo] = ways as [Proxy, Proxy, Proxy, Proxy];
    devices.push(device(1, [toAFromOne, toBFromOne]), device(2, [toBFromTwo, toAFromTwo]));
    await until("both devices are connected", () => devices.every((one) => one.connected));
    return {
      sql, servers, gateway, script, a, b, networkOfA, close,
      phoneNetwork: [toAFromOne, toBFromOne],
      devices: devices as [GoodClient, GoodClient],
      assistantId: person.assistant.id,
      userId: person.userId,
      letTheOtherIn: () => networkOfB.gateway.pass(),
      restartPhone: (stored) => (devices[0] = device(3, [toAFromOne, toBFromOne], stored)),
    };
  } catch (error) {
    await close();
    throw new Error(`the cell could not begin: ${String(error)}\n${a.log()}\n${b.log()}`);
  }
}

interface Person {
  userId: string;
  token: string;
  assistant: Json;
}

async function makePerson(api: ApiProcess, sql: postgres.Sql): Promise<Person> {
  const user = await makeUser(api);
  const assistant = await makeAssistant(user);
  await until(
    "the assistant is awake",
    async () => (await sql`select 1 from assistants where id = ${assistant.id} and state = 'awake'`).length === 1,
    30_000,
  );
  return { userId: user.id, token: user.token, assistant };
}

function newDevice(person: Person, seed: number, servers: Proxy[], stored?: Stored): GoodClient {
  return new GoodClient({
    servers: servers.map((proxy) => `ws://127.0.0.1:${proxy.port}/ws/chat`),
    token: person.token,
    agentId: person.assistant.agent_id,
    random: seeded(seed),
    ...(stored ? { stored } : {}),
  });
}

/** Numbers from 0 to 1 that are the same in each run (mulberry32). */
function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function settings(given: { gateway: CellGateway; network: Network; database: string; redis: string; prefix: string }) {
  const { gateway, network } = given;
  return {
    NODE_ENV: "test",
    REVEAL_EMAIL_TAKEN: "true",
    DATABASE_URL: through(given.database, network.postgres),
    DATABASE_POOL: "6",
    REDIS_URL: through(given.redis, network.redis),
    REDIS_PREFIX: given.prefix,
    JWT_SECRET: "a secret of the fault tests, long enough",
    OPENCLAW_GATEWAY_URL: `ws://127.0.0.1:${network.gateway.port}`,
    OPENCLAW_GATEWAY_TOKEN: gateway.token,
    OPENCLAW_GATEWAY_DIR: gateway.dir,
    OPENAI_BASE_URL: gateway.modelUrl,
    GATEWAY_RELOAD_DEBOUNCE_MS: "10",
    TURN_LEASE_MS: "1000",
    CHAT_PING_MS: "1000",
  };
}
