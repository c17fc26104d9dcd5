import type { Queryable } from "./connect.ts";
import { columns, type User } from "./users.ts";

/** A person as a provider knows them. */
export interface Subject {
  provider: string;
  subject: string;
}

/** An account that an identity may open. */
export interface Candidate {
  user: User;
  /** Whether the identity opens it already; else the account only has the address. */
  known: boolean;
  /** Whether another identity of the provider opens it. */
  taken: boolean;
}

/**
 * The account of an identity, else the one with its address; null where there is neither, or it is being deleted. One
 * statement, so that a parallel sign-in is either seen whole or not at all.
 */
export async function findCandidate(
  sql: Queryable,
  who: Subject & { email: string | null },
): Promise<Candidate | null> {
  const [row] = await sql<(User & Omit<Candidate, "user">)[]>`
    with mine as (select user_id from identities where provider = ${who.provider} and subject = ${who.subject})
    select ${columns(sql)}, coalesce(id = (select user_id from mine), false) as known,
      exists (select 1 from identities i
        where i.user_id = users.id and i.provider = ${who.provider} and i.subject <> ${who.subject}) as taken
    from users where (id = (select user_id from mine) or email = ${who.email}) and status <> 'deleting'
    order by known desc limit 1`;
  if (!row) return null;
  const { known, taken, ...user } = row;
  return { user, known, taken };
}

/** Keeps an account active until the transaction ends: a reset or a deletion that comes later ends what is made in it. */
export async function lockActiveUser(sql: Queryable, userId: string): Promise<boolean> {
  const [row] = await sql`select 1 from users where id = ${userId} and status = 'active' for share`;
  return row !== undefined;
}

/** Adds an identity of a user who is active; false when the identity, or another of its provider, is taken already. */
export async function insertIdentity(
  sql: Queryable,
  input: Subject & { userId: string; email: string; requireVerified: boolean },
): Promise<boolean> {
  const result = await sql`
    insert into identities (provider, subject, user_id, email)
    select ${input.provider}, ${input.subject}, id, ${input.email} from users
    where id = ${input.userId} and email = ${input.email} and status = 'active'
      and (email_verified or not ${input.requireVerified})
    on conflict do nothing`;
  return result.count === 1;
}

/**
 * Keeps the provider's token (sealed), in place of an older one; false when the identity is gone or going. The lock lets
 * a deletion either see this token or keep it from being kept.
 */
export async function saveProviderToken(
  sql: Queryable,
  input: Subject & { userId: string; sealedToken: Buffer },
): Promise<boolean> {
  const result = await sql`
    with owner as (select id from users where id = ${input.userId} and status <> 'deleting' for share)
    update identities set provider_token = ${input.sealedToken} from owner
    where provider = ${input.provider} and subject = ${input.subject} and user_id = owner.id`;
  return result.count === 1;
}

/** Whether an identity opens this user's account. */
export async function isIdentityOf(sql: Queryable, input: Subject & { userId: string }): Promise<boolean> {
  const [row] = await sql`
    select 1 from identities
    where provider = ${input.provider} and subject = ${input.subject} and user_id = ${input.userId}`;
  return row !== undefined;
}
