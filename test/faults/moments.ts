import type postgres from "postgres";
import * as harness from "../harness.ts";
import { PATIENCE_MS, SAID, type World } from "./world.ts";

export const MOMENTS = [
  "before ack",
  "queued",
  "dispatched",
  "first chunk",
  "middle",
  "final seen",
  "committed",
] as const;
export type Moment = (typeof MOMENTS)[number];

const until = (what: string, check: () => Promise<boolean> | boolean) => harness.until(what, check, PATIENCE_MS);

/** Lets what was held go on, model included. Call it once the fault is there. */
export type Release = () => void;

/**
 * Device one says something, and everything stops at the moment: held by a row lock, by the queue's lock, by a model that
 * waits, or by a COMMIT whose answer is kept back. So a strike never has to be timed.
 */
export async function reach(world: World, moment: Moment): Promise<Release> {
  const release = await REACH[moment](world);
  return () => {
    world.script.open();
    release();
  };
}

const REACH: Record<Moment, (world: World) => Promise<Release>> = {
  "before ack": async (world) => {
    const unlock = await lockConversation(world);
    say(world);
    await until("accepting waits for the lock", () => waitsForConversation(world));
    return unlock;
  },
  queued: async (world) => {
    const unlock = await lock(
      world.sql,
      (tx) => tx`select pg_advisory_xact_lock(hashtext('reef:queue'), hashtext('main'))`,
    );
    say(world);
    await acknowledged(world);
    return unlock;
  },
  dispatched: async (world) => {
    say(world);
    await acknowledged(world);
    await until("the model was asked", () => world.gateway.modelCalls() > 0);
    await until("the row says so", () => isTurn(world, "dispatched"));
    return () => undefined;
  },
  "first chunk": (world) => shown(world, 1),
  middle: (world) => shown(world, 2),
  "final seen": async (world) => {
    await shown(world, 2);
    const unlock = await lockConversation(world);
    world.script.open();
    await until("finishing waits for the lock", () => waitsForConversation(world));
    return unlock;
  },
  committed: async (world) => {
    const letGo = await REACH["final seen"](world);
    const hold = holdCommit(world);
    letGo();
    await hold.seen;
    return hold.release;
  },
};

function say(world: World): void {
  world.devices[0].send(SAID);
}

async function acknowledged(world: World): Promise<void> {
  await until("the message is acknowledged", () => world.devices[0].outbox.length === 0);
}

async function shown(world: World, parts: number): Promise<Release> {
  world.script.open(parts);
  say(world);
  const text = world.script.text(parts);
  await until(`both devices show ${parts} part(s)`, () => world.devices.every((one) => one.answer?.text === text));
  await until("the row says so", () => isTurn(world, "streaming"));
  return () => undefined;
}

async function isTurn(world: World, status: string): Promise<boolean> {
  return (await world.sql`select 1 from turns where status = ${status}`).length === 1;
}

function lockConversation(world: World): Promise<Release> {
  return lock(world.sql, (tx) => tx`select 1 from assistants where id = ${world.assistantId} for update`);
}

/** Takes a lock in a transaction that stays open until it is released, or Postgres is killed. */
async function lock(sql: postgres.Sql, take: (tx: postgres.TransactionSql) => Promise<unknown>): Promise<Release> {
  const held = Promise.withResolvers<void>();
  const released = Promise.withResolvers<void>();
  const over = sql.begin(async (tx) => {
    await take(tx);
    held.resolve();
    await released.promise;
  });
  over.catch(held.reject);
  await held.promise;
  return released.resolve;
}

async function waitsForConversation(world: World): Promise<boolean> {
  const rows = await world.sql`
    select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
      and query like '%from assistants where id%for no key update%'`;
  return rows.length > 0;
}

/** Keeps back what Postgres answers to the COMMIT that stores the answer: it is there, and process A does not know. */
function holdCommit(world: World): { seen: Promise<void>; release: Release } {
  const seen = Promise.withResolvers<void>();
  const released = Promise.withResolvers<void>();
  const proxy = world.networkOfA.postgres;
  const check = async () => {
    const answers = await world.sql`select 1 from messages where role = 'assistant'`;
    if (answers.length === 0) return;
    proxy.tap = null;
    seen.resolve();
    await released.promise;
  };
  proxy.tap = (bytes) => (bytes.includes("COMMIT\0") ? check() : undefined);
  return { seen: seen.promise, release: released.resolve };
}
