import type { ChangeableSubscription, SalesCalls } from "../clients/stripeSales.ts";
import { isCustomerGone } from "../clients/stripeTrouble.ts";
import { findStripeCustomer, saveLinkGiven } from "../db/checkouts.ts";
import { findPortal } from "../db/stripePrices.ts";
import { findPaid } from "../db/subscriptions.ts";
import { AppError } from "../lib/errors.ts";
import type { Identity } from "./accessTokens.ts";
import { countBilling, isLiving, notSynced } from "./checkout.ts";
import { appLink } from "./mailContent.ts";
import { requireSales, syncNow, withStripe, type SaleDeps } from "./stripeWork.ts";
import { viewSubscription, type SubscriptionView } from "./subscription.ts";

/*
 * What somebody does with a subscription they have: at Stripe first, then the row is fetched, then they get the answer.
 * Done twice it is done once. What was given by an operator is not paid for and not touched.
 */

/** Stripe's page for invoices, card and subscription. Throws `no_subscription` for who never bought anything. */
export async function openPortal(deps: SaleDeps, actor: Identity): Promise<string> {
  const { userId } = actor;
  const sales = requireSales(deps);
  await countBilling(deps, userId);
  const customer = await findStripeCustomer(deps.sql, userId);
  if (!customer || customer.gone) throw new AppError("no_subscription");
  const configurationId = await findPortal(deps.sql, deps.stripe.isLive);
  if (configurationId === null) throw notSynced(deps);
  return withStripe(deps, userId, async (lease) => {
    const { customerId } = customer;
    const returnUrl = appLink(deps.config.APP_URL, "subscription?portal=done");
    const url = await sales
      .within(lease.leftMs)
      .openPortal({ customerId, configurationId, returnUrl })
      .catch((error: unknown) => {
        throw isCustomerGone(error) ? new AppError("no_subscription") : error;
      });
    await saveLinkGiven(deps.sql, userId);
    return url;
  });
}

/** It ends with what is paid for. Throws `no_subscription`, `billing_not_configured`, `billing_unavailable`. */
export function cancelSubscription(deps: SaleDeps, actor: Identity): Promise<SubscriptionView> {
  return change(deps, actor, (calls, found) => (found.endsBy === null ? calls.endAtPeriodEnd(found) : undefined));
}

/** It goes on as it is: neither its end nor a cheaper plan waits any more. Throws as `cancelSubscription`. */
export function resumeSubscription(deps: SaleDeps, actor: Identity): Promise<SubscriptionView> {
  return change(deps, actor, (calls, found) => calls.keepGoing(found));
}

async function change(
  deps: SaleDeps,
  actor: Identity,
  act: (calls: SalesCalls, found: ChangeableSubscription) => Promise<void> | undefined,
): Promise<SubscriptionView> {
  const { userId } = actor;
  const sales = requireSales(deps);
  await countBilling(deps, userId);
  const customer = await findStripeCustomer(deps.sql, userId);
  if (!customer) throw new AppError("no_subscription");
  return withStripe(deps, userId, async (lease) => {
    const calls = sales.within(lease.leftMs);
    // The row may be older than what the person has just bought.
    await syncNow(deps, lease, customer.customerId);
    const paid = await findPaid(deps.sql, userId);
    const found =
      isLiving(paid) && paid.status !== "incomplete" ? await calls.findSubscription(paid.subscriptionId) : null;
    if (!found || ENDED.includes(found.status)) throw new AppError("no_subscription");
    await act(calls, found);
    await syncNow(deps, lease, customer.customerId);
    return viewSubscription(deps, userId);
  });
}

const ENDED = ["canceled", "incomplete_expired", "incomplete"];
