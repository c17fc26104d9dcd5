import { afterAll, beforeAll, expect, test } from "bun:test";
import { connectDatabase, type Sql } from "../../src/db/connect.ts";
import { createTestDatabase } from "../harness.ts";

/** When a day ends, in every time zone that Postgres knows, until 2037. */

let sql: Sql;
beforeAll(async () => {
  sql = connectDatabase(await createTestDatabase(), { max: 1, name: "zones" });
  await sql`set statement_timeout = 0`;
  // Every change of the clocks: looked for by ten days, then by half hours.
  await sql.unsafe(`
    create function pg_temp.ahead(t timestamptz, zone text) returns interval language sql stable as
      $$ select (t at time zone zone) - (t at time zone 'UTC') $$;
    create temp table changes as
    with zones as (select name as zone from pg_timezone_names where name !~ '^posix'),
    spans as (
      select zone, t from zones, generate_series('2025-12-20'::timestamptz, '2038-01-10', '10 days') t
      where pg_temp.ahead(t, zone) <> pg_temp.ahead(t + interval '10 days', zone))
    select zone, before + interval '30 minutes' as at from spans,
      lateral generate_series(t, t + interval '10 days' - interval '30 minutes', '30 minutes') before
    where pg_temp.ahead(before, zone) <> pg_temp.ahead(before + interval '30 minutes', zone);
    -- Zones that do the same at the same times are looked at once.
    create temp table kinds as
    select min(zone) as zone, count(*) as zones from (
      select name as zone, coalesce(c.list, '') || pg_temp.ahead('2026-01-01', name) as does
      from pg_timezone_names left join (
        select zone, string_agg(at || ' ' || pg_temp.ahead(at, zone), ',' order by at) as list from changes group by zone) c
      on c.zone = name where name !~ '^posix') z
    group by does;`);
});
afterAll(() => sql.end());

/** Zones whose clocks are changed at or around midnight are among them. */
const AT_MIDNIGHT = [
  "Africa/Cairo",
  "America/Santiago",
  "Asia/Beirut",
  "America/Havana",
  "Atlantic/Azores",
  "Asia/Gaza",
  "America/Nuuk",
  "America/Asuncion",
  "Australia/Lord_Howe",
  "Antarctica/Troll",
  "Africa/Casablanca",
  "Pacific/Chatham",
];

test("around every change of the clocks a day ends at the first instant of a later date, found by trying them all", async () => {
  const wrong = await sql`
    with tries as (
      select c.zone, c.at, t, (t at time zone c.zone)::date as date
      from changes c join kinds k on k.zone = c.zone,
        lateral generate_series(c.at - interval '2 days', c.at + interval '2 days', '15 minutes') t
      where c.at between '2026-01-01' and '2037-12-31'
      group by c.zone, c.at, t
    ), ends as (
      select zone, at, d.day, min(t) filter (where date > d.day) as first, max(t) filter (where date <= d.day) as last
      from tries, lateral (select (at at time zone zone)::date + n as day from generate_series(-1, 1) n) d
      group by zone, at, d.day
    )
    select zone, day::text, first, last, end_of_day(day, zone) as says from ends
    where end_of_day(day, zone) <> first or last >= first or first is null`;
  expect(wrong as unknown[]).toEqual([]);
  const [row] = await sql<{ changes: number; kinds: number; named: number }[]>`
    select (select count(*) from changes) as changes, (select count(*) from kinds) as kinds,
      (select count(distinct zone) from changes where zone = any(${AT_MIDNIGHT}::text[])) as named`;
  expect([row!.changes > 3_000, row!.kinds > 60, row!.named >= AT_MIDNIGHT.length - 1]).toEqual([true, true, true]);
});

test("on all the other days it ends at midnight: its last microsecond is of the day, the next one is not", async () => {
  const wrong = await sql`
    select zone, day::text, e from kinds, generate_series('2026-01-01'::date, '2037-12-31', '3 days') g,
      lateral (select g::date as day) d, lateral (select end_of_day(d.day, zone) as e) x
    where (e at time zone zone)::date <= day or ((e - interval '1 microsecond') at time zone zone)::date > day
      or e - interval '25 hours' > (day + 1)::timestamp at time zone zone`;
  expect(wrong as unknown[]).toEqual([]);
});
