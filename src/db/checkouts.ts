import type { Queryable } from "./connect.ts";

/** A person as Stripe knows them, and the one checkout that may be open. */
export interface StripeCustomer {
  customerId: string;
  /** Stripe says that this customer was deleted there. */
  gone: boolean;
  checkoutSessionId: string | null;
  checkoutPriceId: string | null;
  checkoutExpiresAt: Date | null;
}

export async function findStripeCustomer(sql: Queryable, userId: string): Promise<StripeCustomer | null> {
  const [row] = await sql<StripeCustomer[]>`
    select customer_id, gone_at is not null as gone, checkout_session_id, checkout_price_id, checkout_expires_at
    from stripe_customers where user_id = ${userId}`;
  return row ?? null;
}

/** Keeps who a person is at Stripe, unless that is known already. Returns who they are. */
export async function saveStripeCustomer(
  sql: Queryable,
  input: { userId: string; customerId: string },
): Promise<string> {
  const [row] = await sql<{ customerId: string }[]>`
    insert into stripe_customers (user_id, customer_id) values (${input.userId}, ${input.customerId})
    on conflict (user_id) do update set customer_id = stripe_customers.customer_id
    returning customer_id`;
  return row!.customerId;
}

/** The customer is gone at Stripe: another takes its place, unless somebody was faster. Returns who they are. */
export async function replaceStripeCustomer(
  sql: Queryable,
  input: { userId: string; gone: string; customerId: string },
): Promise<string> {
  const [row] = await sql<{ customerId: string }[]>`
    with replaced as (
      update stripe_customers set customer_id = ${input.customerId}, gone_at = null, fetched_at = null, asked_at = null,
        checkout_session_id = null, checkout_url = null, checkout_price_id = null, checkout_expires_at = null
      where user_id = ${input.userId} and customer_id = ${input.gone} returning customer_id)
    select customer_id from replaced
    union all select customer_id from stripe_customers
      where user_id = ${input.userId} and customer_id <> ${input.gone}`;
  return row!.customerId;
}

/** Keeps the open checkout; false when the lease of `token` is over: then it must not be given to anybody. */
export async function saveCheckout(
  sql: Queryable,
  input: {
    userId: string;
    token: string;
    checkout: { id: string; url: string; priceId: string | null; expiresAt: Date };
  },
): Promise<boolean> {
  const { id, url, priceId, expiresAt } = input.checkout;
  const result = await sql`
    update stripe_customers set checkout_session_id = ${id}, checkout_url = ${url}, checkout_price_id = ${priceId},
      checkout_expires_at = ${expiresAt}, link_given_at = now()
    where user_id = ${input.userId} and exists (
      select 1 from stripe_leases l
      where l.user_id = ${input.userId} and l.token = ${input.token} and l.until > now())`;
  return result.count === 1;
}

/** The checkout is over: paid, expired, or taken back. `sessionId` null: whichever it was. */
export async function forgetCheckout(
  sql: Queryable,
  input: { userId: string; sessionId: string | null },
): Promise<void> {
  await sql`
    update stripe_customers set checkout_session_id = null, checkout_url = null, checkout_price_id = null,
      checkout_expires_at = null
    where user_id = ${input.userId} and checkout_session_id = coalesce(${input.sessionId}, checkout_session_id)`;
}

/** The person was sent to Stripe's pages. */
export async function saveLinkGiven(sql: Queryable, userId: string): Promise<void> {
  await sql`update stripe_customers set link_given_at = now() where user_id = ${userId}`;
}
