import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { Redis } from "ioredis";
import type { Sql } from "../../src/db/connect.ts";

/** Every table of the schema. */
export async function listTables(sql: Sql): Promise<string[]> {
  const rows = await sql<{ name: string }[]>`
    select table_name as name from information_schema.tables
    where table_schema = 'public' and table_type = 'BASE TABLE' order by 1`;
  return rows.map((row) => row.name);
}

/** Tables in which a row says anywhere what is looked for, whatever the type of its columns (bytea as hex). */
export async function searchDatabase(sql: Sql, words: string[]): Promise<string[]> {
  const found: string[] = [];
  const patterns = words.flatMap((word) => [`%${word}%`, `%${Buffer.from(word).toString("hex")}%`]);
  for (const table of await listTables(sql)) {
    const [row] = await sql<{ n: number }[]>`
      select count(*) as n from ${sql(table)} t where t::text ilike any(${patterns}::text[])`;
    if (row!.n > 0) found.push(table);
  }
  return found;
}

/** Tables with a row of this user: by `user_id`, and by any column that refers to `users`. */
export async function listTablesOf(sql: Sql, userId: string): Promise<string[]> {
  const columns = await sql<{ table: string; column: string }[]>`
    select table_name as "table", column_name as "column" from information_schema.columns
    where table_schema = 'public' and column_name = 'user_id'
    union
    select c.conrelid::regclass::text, a.attname from pg_constraint c
    join pg_attribute a on a.attrelid = c.conrelid and a.attnum = any(c.conkey)
    where c.contype = 'f' and c.confrelid = 'users'::regclass
    union select 'users', 'id' order by 1`;
  const found: string[] = [];
  for (const { table, column } of columns) {
    const [row] = await sql<{ n: number }[]>`
      select count(*) as n from ${sql(table)} where ${sql(column)} = ${userId}`;
    if (row!.n > 0) found.push(table);
  }
  return found;
}

/** Keys whose name or value says what is looked for, of every type. */
export async function searchRedis(url: string, words: string[]): Promise<string[]> {
  const redis = new Redis(url);
  const read: Record<string, (key: string) => Promise<unknown>> = {
    string: (key) => redis.get(key),
    hash: (key) => redis.hgetall(key),
    list: (key) => redis.lrange(key, 0, -1),
    set: (key) => redis.smembers(key),
    zset: (key) => redis.zrange(key, "0", "-1"),
    stream: (key) => redis.xrange(key, "-", "+"),
  };
  const found: string[] = [];
  for (const key of await redis.keys("*")) {
    const value = (await read[await redis.type(key)]?.(key)) ?? null;
    const text = JSON.stringify([key, value]);
    if (words.some((word) => text.includes(word))) found.push(key);
  }
  redis.disconnect();
  return found;
}

/** Files and folders whose path or bytes say what is looked for. */
export function searchFiles(dir: string, words: string[]): string[] {
  return listFiles(dir).filter((path) => {
    const bytes = readFileSync(path);
    return words.some((word) => path.includes(word) || bytes.includes(word));
  });
}

export function listFiles(dir: string): string[] {
  return readdirSync(dir, { recursive: true, encoding: "utf8" })
    .map((name) => join(dir, name))
    .filter((path) => statSync(path, { throwIfNoEntry: false })?.isFile());
}

/** Every row of a user and every byte of their agents' files, to be compared. */
export async function takeSnapshot(sql: Sql, dir: string, userId: string, agentIds: string[]): Promise<string> {
  const rows: unknown[] = [];
  for (const table of await listTablesOf(sql, userId)) {
    const column = table === "users" ? "id" : "user_id";
    rows.push(table, await sql`select t::text from ${sql(table)} t where ${sql(column)} = ${userId} order by 1`);
  }
  const files = listFiles(dir)
    .filter((path) => agentIds.some((id) => path.includes(id)))
    .sort()
    .map((path) => [path, readFileSync(path).toString("base64")]);
  return JSON.stringify([rows, files], null, 1);
}
