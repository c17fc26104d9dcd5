import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto";
import postgres from "postgres";
import type { Queryable, Sql } from "./connect.ts";

/** Who the application is in Postgres, as its DATABASE_URL says. */
export interface DatabaseOwner {
  role: string;
  password: string;
  database: string;
}

/** Takes a DATABASE_URL apart. Throws a sentence that names no value. */
export function ownerOf(databaseUrl: string): DatabaseOwner {
  const url = new URL(databaseUrl);
  const owner = {
    role: decodeURIComponent(url.username),
    password: decodeURIComponent(url.password),
    database: decodeURIComponent(url.pathname.slice(1)),
  };
  if (Object.values(owner).includes("")) throw new Error("DATABASE_URL must name a role, its password and a database.");
  return owner;
}

/** The server's major version, e.g. 16. */
export async function serverMajor(sql: Queryable): Promise<number> {
  const [row] = await sql<{ version: number }[]>`select current_setting('server_version_num')::int as version`;
  return Math.floor((row?.version ?? 0) / 10_000);
}

/**
 * Makes the application's role and database with a superuser's (or a CREATEROLE CREATEDB role's) connection: the role may
 * log in and owns its one database, which nobody else may connect to; it may do nothing else on the server. Returns what
 * it changed, as sentences; none when all was right. `canLogIn` tells whether the role's password is the one given.
 */
export async function createOwnDatabase(
  admin: Sql,
  owner: DatabaseOwner,
  canLogIn: () => Promise<boolean>,
): Promise<string[]> {
  const { role, database } = owner;
  const done: string[] = [];
  const [found] = await admin<{ all: boolean }[]>`
    select rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls as all
    from pg_roles where rolname = ${role}`;
  const rights = "login nosuperuser nocreatedb nocreaterole noreplication nobypassrls";
  if (!found) {
    await admin.unsafe(`create role ${quote(role)} ${rights} password '${scramVerifier(owner.password)}'`);
    done.push(`role ${role} made`);
  } else if (found.all)
    throw new Error(`The role ${role} may do more than the application needs: give another DATABASE_ROLE.`);
  const [standing] = await admin<{ owner: string }[]>`
    select pg_get_userbyid(datdba) as owner from pg_database where datname = ${database}`;
  if (standing && standing.owner !== role)
    throw new Error(`The database ${database} belongs to ${standing.owner}: give another DATABASE_NAME.`);
  if (!standing) {
    // Only a member may give a database away; a superuser is one of every role.
    await admin.unsafe(`grant ${quote(role)} to current_user`);
    const locale = `encoding 'UTF8' template template0 owner ${quote(role)}`;
    await admin.unsafe(`create database ${quote(database)} ${locale}`);
    done.push(`database ${database} made`);
  }
  // Not only of a new one: whoever made it may have died before this.
  const [open] = await admin<
    { open: boolean }[]
  >`select has_database_privilege('public', ${database}, 'connect') as open`;
  if (open?.open) {
    await admin.unsafe(`revoke all on database ${quote(database)} from public`);
    if (standing) done.push(`database ${database} closed to others`);
  }
  if (found && !(await canLogIn())) {
    await admin.unsafe(`alter role ${quote(role)} ${rights} password '${scramVerifier(owner.password)}'`);
    done.push(`password of role ${role} set`);
  }
  return done;
}

/** Whether a URL opens its database. False for a refused password only; throws whatever else is wrong. */
export async function opens(databaseUrl: string): Promise<boolean> {
  const sql = postgres(databaseUrl, { max: 1, connect_timeout: 10, onnotice: () => undefined });
  try {
    await sql`select 1`;
    return true;
  } catch (error) {
    if ((error as { code?: string }).code === "28P01") return false;
    throw error;
  } finally {
    await sql.end({ timeout: 1 });
  }
}

const quote = (name: string) => `"${name.replaceAll('"', '""')}"`;

/** What Postgres keeps of a password (RFC 5803): so the password itself is in no statement, and in no log of them. */
function scramVerifier(password: string): string {
  const salt = randomBytes(16);
  const salted = pbkdf2Sync(password.normalize("NFKC"), salt, 4096, 32, "sha256");
  const hmac = (text: string) => createHmac("sha256", salted).update(text).digest();
  const stored = createHash("sha256").update(hmac("Client Key")).digest("base64");
  return `SCRAM-SHA-256$4096:${salt.toString("base64")}$${stored}:${hmac("Server Key").toString("base64")}`;
}
