import { connectDatabase, type Sql } from "../../src/db/connect.ts";
import { createTestDatabase } from "../harness.ts";

/** Where schedules run one after the other: connections of its own, and a time of its own in Postgres. */
export interface Lane {
  name: string;
  /** The connections of the simulated processes: `now()` is the lane's time. */
  pool: Sql;
  /** Of the simulation itself, with the real time. */
  admin: Sql;
  setTime(ms: number): Promise<void>;
  /** How many of the lane's queries wait for a lock. */
  waitingForLocks(): Promise<number>;
  close(): Promise<void>;
}

const PLANS = [3, 8, 1000];
const POOL = 16;

/** A database in which `now()` is told by a row: for queries by the search path, for column defaults by name. */
export async function createSimulatedDatabase(): Promise<string> {
  const url = await createTestDatabase();
  const sql = connectDatabase(url, { max: 1, name: "simulation setup" });
  await sql.unsafe(`
    create schema sim;
    create unlogged table sim.clock (lane text primary key, now timestamptz not null) with (fillfactor = 20);
    create function sim.now() returns timestamptz language sql stable as
      $$ select now from sim.clock where lane = current_setting('sim.lane') $$;
    do $$ declare c record; begin
      for c in select table_name, column_name from information_schema.columns
        where table_schema = 'public' and column_default = 'now()' loop
        execute format('alter table public.%I alter column %I set default sim.now()', c.table_name, c.column_name);
      end loop; end $$;`);
  for (const [index, messages] of PLANS.entries()) {
    await sql`insert into plan_limits
      select ${planOf(messages)}, ${100 + index}, 5, ${messages}, 0, 0, 0, tts_model, voices, chat_model, 0, 0
      from plan_limits where plan = 'free'`;
  }
  await sql.end();
  return url;
}

export function planOf(messages: number): string {
  return `sim-${messages}`;
}

/** How many messages a day the people of the simulation may have. */
export const planLimits = PLANS;

export async function openLane(databaseUrl: string, name: string): Promise<Lane> {
  const url = new URL(databaseUrl);
  url.searchParams.set("sim.lane", name);
  const admin = connectDatabase(url.toString(), { max: 1, name: `${name} admin` });
  url.searchParams.set("search_path", "sim,public,pg_catalog");
  const pool = connectDatabase(url.toString(), { max: POOL, name });
  await admin`insert into sim.clock values (${name}, now())`;
  return {
    name,
    pool,
    admin,
    async setTime(ms) {
      await admin`update sim.clock set now = ${new Date(ms)} where lane = ${name}`;
    },
    async waitingForLocks() {
      const [row] = await admin<{ n: number }[]>`
        select count(*)::int as n from pg_stat_activity where application_name = ${name} and wait_event_type = 'Lock'`;
      return row!.n;
    },
    async close() {
      await Promise.all([pool.end({ timeout: 1 }), admin.end({ timeout: 1 })]);
    },
  };
}
