import type { SalesCalls } from "../clients/stripeSales.ts";
import { findStripeCustomer, replaceStripeCustomer, saveStripeCustomer } from "../db/checkouts.ts";
import { findEmail } from "../db/users.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";

/*
 * A person is one customer at Stripe, for ever. Whoever makes one has the person's lease, looks first whether Stripe has
 * one that was made for them (a process may have died before it was kept, however long ago), and makes it under a key that
 * is the person's. One that was deleted at Stripe is replaced by another.
 */

type CustomerDeps = Pick<Deps, "sql">;

/** Who the user is at Stripe; found or made when that is not known. */
export async function ensureCustomer(deps: CustomerDeps, calls: SalesCalls, userId: string): Promise<string> {
  const known = await findStripeCustomer(deps.sql, userId);
  if (known?.gone) return replaceCustomer(deps, calls, { userId, gone: known.customerId });
  if (known) return known.customerId;
  return saveStripeCustomer(deps.sql, { userId, customerId: await findOrMake(deps, calls, userId, null) });
}

/** Another customer in place of one that is no more. */
export async function replaceCustomer(
  deps: CustomerDeps,
  calls: SalesCalls,
  { userId, gone }: { userId: string; gone: string },
): Promise<string> {
  const customerId = await findOrMake(deps, calls, userId, gone);
  return replaceStripeCustomer(deps.sql, { userId, gone, customerId });
}

async function findOrMake(
  { sql }: CustomerDeps,
  calls: SalesCalls,
  userId: string,
  gone: string | null,
): Promise<string> {
  const email = await findEmail(sql, userId);
  if (email === null) throw new AppError("unauthorized");
  const found = (await calls.findCustomers({ email, userId })).find((id) => id !== gone);
  return found ?? (await calls.createCustomer({ email, userId, replaces: gone }));
}
