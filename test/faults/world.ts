import { mkdtempSync } from "node:fs";
import { join } from "node:path";
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
  keepTheOtherOut(): void;
  /** Device one anew, from what it had stored. */
  restartPhone(stored: Stored): void;
  close(): Promise<void>;
}

/** For steps that are quick, unless the machine is busy. */
export const PATIENCE_MS = 30_000;
export const SAID = "tell me something long";
const PARTS = ["This is the first part of the answer, ", "then comes its middle, ", "and this is the end."];

export async function openWorld(servers: Servers, gateway: CellGateway): Promise<World> {
  const closers: (() => unknown)[] = [];
  const close = async () => {
    for (const closer of closers.splice(0).reverse()) await closer();
  };
  const openProxy = async (target: () => number) => {
    const proxy = await Proxy.open(target);
    closers.push(() => proxy.close());
    return proxy;
  };
  const parts: Parts = { servers, gateway, openProxy, closers };
  try {
    const { url, sql } = await openDatabase(parts);
    const script = new Script(PARTS);
    closers.push(() => script.open());
    const prefix = `${newId()}:`;
    const networkOfA = await openNetwork(parts);
    const networkOfB = await openNetwork(parts);
    networkOfB.gateway.refuse();
    const a = openProcess(parts, "a", { network: networkOfA, database: url, prefix });
    const b = openProcess(parts, "b", { network: networkOfB, database: url, prefix });
    await Promise.all([a.start(), b.start()]);
    await a.ready();
    gateway.play(script);
    const person = await makePerson(a, sql);
    const devices = await openDevices(parts, person, a, b);
    return {
      sql,
      servers,
      gateway,
      script,
      a,
      b,
      networkOfA,
      close,
      phoneNetwork: devices.phoneNetwork,
      devices: devices.pair,
      restartPhone: devices.restartPhone,
      assistantId: person.assistant.id,
      userId: person.userId,
      letTheOtherIn: () => networkOfB.gateway.pass(),
      keepTheOtherOut: () => {
        networkOfB.gateway.refuse();
        networkOfB.gateway.cut();
      },
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** What the parts of a world are made with; each registers its end. */
interface Parts {
  servers: Servers;
  gateway: CellGateway;
  openProxy: (target: () => number) => Promise<Proxy>;
  closers: (() => unknown)[];
}

/** A clone of its own, and the test's way to it, which is never struck. */
async function openDatabase({ servers, openProxy, closers }: Parts): Promise<{ url: string; sql: postgres.Sql }> {
  const base = through(servers.postgresUrl, await openProxy(() => servers.postgres.port()));
  const url = await createTestDatabase(base);
  const options = { onnotice: () => undefined, transform: { column: { from: postgres.toCamel } } };
  const sql = postgres(url, { ...options, max: 6 });
  closers.push(async () => {
    await sql.end({ timeout: 1 });
    const admin = postgres(base, { ...options, max: 1 });
    await admin.unsafe(`drop database "${new URL(url).pathname.slice(1)}" with (force)`).catch(() => undefined);
    await admin.end({ timeout: 1 });
  });
  return { url, sql };
}

async function openNetwork({ servers, gateway, openProxy }: Parts): Promise<Network> {
  return {
    postgres: await openProxy(() => servers.postgres.port()),
    redis: await openProxy(() => servers.redis.port()),
    gateway: await openProxy(() => gateway.port()),
  };
}

function openProcess(
  { servers, gateway, closers }: Parts,
  name: string,
  given: { network: Network; database: string; prefix: string },
): ApiProcess {
  const logs = mkdtempSync(join(servers.folder, "logs-"));
  const api = new ApiProcess(name, settings({ gateway, redis: servers.redisUrl, ...given }), logs);
  closers.push(() => api.kill());
  return api;
}

async function openDevices({ openProxy, closers }: Parts, person: Person, a: ApiProcess, b: ApiProcess) {
  const phoneNetwork = [await openProxy(() => a.port), await openProxy(() => b.port)];
  const otherNetwork = [await openProxy(() => b.port), await openProxy(() => a.port)];
  const pair: World["devices"] = [newDevice(person, 1, phoneNetwork), newDevice(person, 2, otherNetwork)];
  closers.push(() => pair.forEach((device) => device.close()));
  await until("both devices are connected", () => pair.every((device) => device.connected), PATIENCE_MS);
  const restartPhone = (stored: Stored) => void (pair[0] = newDevice(person, 3, phoneNetwork, stored));
  return { pair, phoneNetwork, restartPhone };
}

function through(url: string, proxy: Proxy): string {
  return Object.assign(new URL(url), { port: String(proxy.port) }).toString();
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
    PATIENCE_MS,
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
    SIGNUPS_PER_HOUR: "1000000",
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
