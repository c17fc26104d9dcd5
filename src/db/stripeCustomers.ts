import type { Queryable } from "./connect.ts";

/*
 * `stripe_customers`: whose money is whose. What is fetched of a customer is numbered: a fetch takes its ticket before it
 * asks Stripe, and is stored only while none with a later ticket was. So of two fetches at once the older answer never
 * replaces the newer one, and nothing is locked while Stripe is asked.
 */

/** A fetch that may begin. `ticket` numbers it among those of its customer. */
export interface Fetch {
  customerId: string;
  userId: string;
  ticket: number;
}

const begun = (sql: Queryable) => sql`returning customer_id, user_id, fetch_started as ticket`;

/** Takes the next ticket; null when nobody here is this customer. */
export async function beginFetch(sql: Queryable, customerId: string): Promise<Fetch | null> {
  const [row] = await sql<Fetch[]>`
    update stripe_customers set fetch_started = fetch_started + 1, asked_at = now()
    where customer_id = ${customerId} ${begun(sql)}`;
  return row ?? null;
}

/** The same for a user, unless somebody did within the last `maxAgeMs`; null then, and where there is no customer. */
export async function beginStaleFetch(
  sql: Queryable,
  input: { userId: string; maxAgeMs: number },
): Promise<Fetch | null> {
  const [row] = await sql<Fetch[]>`
    update stripe_customers set fetch_started = fetch_started + 1, asked_at = now()
    where user_id = ${input.userId} and gone_at is null
      and (asked_at is null or asked_at < now() - make_interval(secs => ${input.maxAgeMs / 1000}))
    ${begun(sql)}`;
  return row ?? null;
}

/**
 * Notes that this fetch is the one that is stored; false when a later one was, the customer is another by now, or the
 * account is being deleted.
 */
export async function storeFetch(sql: Queryable, fetch: Fetch, input: { gone: boolean }): Promise<boolean> {
  const result = await sql`
    update stripe_customers set fetch_stored = ${fetch.ticket}, fetched_at = now(),
      gone_at = case when ${input.gone} then coalesce(gone_at, now()) end,
      checkout_session_id = case when not ${input.gone} then checkout_session_id end,
      checkout_url = case when not ${input.gone} then checkout_url end,
      checkout_price_id = case when not ${input.gone} then checkout_price_id end,
      checkout_expires_at = case when not ${input.gone} then checkout_expires_at end
    where user_id = ${fetch.userId} and customer_id = ${fetch.customerId} and fetch_stored < ${fetch.ticket}
      and exists (select 1 from users u where u.id = stripe_customers.user_id and u.status <> 'deleting')`;
  return result.count === 1;
}

/**
 * Takes in a customer that Stripe says is this user's; false when the user has another one that lives, or is going, or
 * is nobody.
 */
export async function adoptCustomer(sql: Queryable, input: { userId: string; customerId: string }): Promise<boolean> {
  const result = await sql`
    insert into stripe_customers as c (user_id, customer_id)
    select id, ${input.customerId}::text from users where id = ${input.userId} and status <> 'deleting'
    on conflict (user_id) do update set customer_id = excluded.customer_id, gone_at = null
      where c.gone_at is not null and c.customer_id <> excluded.customer_id`;
  return result.count === 1;
}

/** `gone`: Stripe has deleted it. */
export interface CustomerHead {
  userId: string;
  customerId: string;
  gone: boolean;
}

/** Customers in the order of their ids, after one; those of people who are leaving are their deletion's. */
export async function listCustomers(sql: Queryable, input: { after: string; limit: number }): Promise<CustomerHead[]> {
  return sql<CustomerHead[]>`
    select c.user_id, c.customer_id, c.gone_at is not null as gone
    from stripe_customers c join users u on u.id = c.user_id and u.status <> 'deleting'
    where c.customer_id > ${input.after} order by c.customer_id limit ${input.limit}`;
}

/** `leaving`: the account is being deleted. */
export async function findCustomer(
  sql: Queryable,
  customerId: string,
): Promise<(CustomerHead & { leaving: boolean }) | null> {
  const [row] = await sql<(CustomerHead & { leaving: boolean })[]>`
    select c.user_id, c.customer_id, c.gone_at is not null as gone, u.status = 'deleting' as leaving
    from stripe_customers c join users u on u.id = c.user_id where c.customer_id = ${customerId}`;
  return row ?? null;
}
