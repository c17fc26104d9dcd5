import Stripe from "stripe";

/** A call to Stripe; what takes longer has failed. */
const CALL_MS = 8_000;
/** Customers under one address that are looked through; more than one is a person who came back. */
const CUSTOMERS_AT_MOST = 300;

/** A checkout that can be paid. */
export interface OpenCheckout {
  id: string;
  url: string;
  priceId: string | null;
  expiresAt: Date;
}

/** A subscription as it can be changed. */
export interface ChangeableSubscription {
  id: string;
  status: string;
  itemId: string;
  priceId: string;
  latestInvoiceId: string | null;
  /** What is to happen at the period's end: a cheaper plan. */
  scheduleId: string | null;
  /** Whether it ends, by the flag or by a date; both are Stripe's ways to say so. */
  endsBy: "date" | "period" | null;
}

/** What Reef asks Stripe for when somebody buys, changes or leaves. Every call rejects with Stripe's own error. */
export type StripeSales = ReturnType<typeof createStripeSales>;
/** The calls of one piece of work, each within what is left of its time. */
export type SalesCalls = ReturnType<StripeSales["within"]>;

/** `leftMs` is asked before each call and may throw. */
export function createStripeSales(stripe: Stripe) {
  return {
    within(leftMs: () => number) {
      const limits = () => ({ timeout: Math.max(1, Math.min(CALL_MS, leftMs())) });
      return {
        ...customerCalls(stripe, limits),
        ...checkoutCalls(stripe, limits),
        ...portalCalls(stripe, limits),
        ...subscriptionCalls(stripe, limits),
      };
    },
  };
}

type Limits = () => { timeout: number };

function customerCalls(stripe: Stripe, limits: Limits) {
  return {
    /** Customers with this address that were made for this user, the oldest first. */
    async findCustomers(who: { email: string; userId: string }): Promise<string[]> {
      const found: string[] = [];
      for (let after: string | undefined, seen = 0; seen < CUSTOMERS_AT_MOST;) {
        const page = await stripe.customers.list(
          { email: who.email, limit: 100, ...(after === undefined ? {} : { starting_after: after }) },
          limits(),
        );
        found.push(...page.data.filter(({ metadata }) => metadata["user_id"] === who.userId).map(({ id }) => id));
        after = page.data.at(-1)?.id;
        seen += page.data.length;
        if (!page.has_more) break;
      }
      return found.reverse();
    },
    /**
     * Makes the customer of a user, once: the same key is the same request. Stripe repeats a failure under its key for a
     * day, and refuses another address under it, so both go on to the next key.
     */
    async createCustomer(who: { email: string; userId: string; replaces: string | null }): Promise<string> {
      const base = ["customer", who.userId, who.replaces].filter((part) => part !== null).join(":");
      for (let n = 0; ; n++) {
        try {
          const made = await stripe.customers.create(
            { email: who.email, metadata: { user_id: who.userId } },
            { ...limits(), idempotencyKey: n === 0 ? base : `${base}:${n}` },
          );
          return made.id;
        } catch (error) {
          if (n >= KEYS_AT_MOST || !isKeySpent(error)) throw error;
        }
      }
    },
    /** Ends everything of a customer; invoices and payments stay. One that is gone is no error. */
    async deleteCustomer(id: string): Promise<void> {
      await unlessMissing(stripe.customers.del(id, {}, limits()));
    },
  };
}

const KEYS_AT_MOST = 20;

function checkoutCalls(stripe: Stripe, limits: Limits) {
  return {
    async findOpenCheckout(id: string): Promise<OpenCheckout | null> {
      const session = await unlessMissing(stripe.checkout.sessions.retrieve(id, {}, limits()));
      return session && toOpenCheckout(session);
    },
    async listOpenCheckouts(customerId: string): Promise<OpenCheckout[]> {
      const page = await stripe.checkout.sessions.list({ customer: customerId, status: "open", limit: 100 }, limits());
      return page.data.map(toOpenCheckout).filter((checkout) => checkout !== null);
    },
    /** Takes a checkout back; one that is not open any more is no error. */
    async expireCheckout(id: string): Promise<void> {
      try {
        await stripe.checkout.sessions.expire(id, {}, limits());
      } catch (error) {
        if (!(error instanceof Stripe.errors.StripeInvalidRequestError)) throw error;
        const session = await unlessMissing(stripe.checkout.sessions.retrieve(id, {}, limits()));
        if (session?.status === "open") throw error;
      }
    },
    async createCheckout(input: {
      customerId: string;
      userId: string;
      priceId: string;
      doneUrl: string;
      cancelledUrl: string;
      key: string;
    }): Promise<OpenCheckout> {
      const session = await stripe.checkout.sessions.create(
        {
          mode: "subscription",
          customer: input.customerId,
          client_reference_id: input.userId,
          line_items: [{ price: input.priceId, quantity: 1 }],
          metadata: { user_id: input.userId, price_id: input.priceId },
          subscription_data: { metadata: { user_id: input.userId } },
          success_url: input.doneUrl,
          cancel_url: input.cancelledUrl,
        },
        { ...limits(), idempotencyKey: input.key },
      );
      const checkout = toOpenCheckout(session);
      if (!checkout) throw new Error("Stripe made a checkout that is not open");
      return checkout;
    },
  };
}

function toOpenCheckout(session: Stripe.Checkout.Session): OpenCheckout | null {
  if (session.status !== "open" || !session.url) return null;
  const priceId = session.metadata?.["price_id"] ?? null;
  return { id: session.id, url: session.url, priceId, expiresAt: new Date(session.expires_at * 1000) };
}

function portalCalls(stripe: Stripe, limits: Limits) {
  return {
    /** A page where the person sees invoices, card and subscription; with `change` only to confirm that. */
    async openPortal(input: {
      customerId: string;
      configurationId: string;
      returnUrl: string;
      change?: { subscriptionId: string; itemId: string; priceId: string };
    }): Promise<string> {
      const { change, returnUrl } = input;
      const session = await stripe.billingPortal.sessions.create(
        {
          customer: input.customerId,
          configuration: input.configurationId,
          return_url: returnUrl,
          ...(change === undefined ? {} : { flow_data: renderChange(change, returnUrl) }),
        },
        limits(),
      );
      return session.url;
    },
  };
}

function subscriptionCalls(stripe: Stripe, limits: Limits) {
  return {
    async findSubscription(id: string): Promise<ChangeableSubscription | null> {
      const found = await unlessMissing(stripe.subscriptions.retrieve(id, {}, limits()));
      return found && toChangeable(found);
    },
    /** What lives of a customer's, however it stands. */
    async listLivingSubscriptions(customerId: string): Promise<string[]> {
      // Unless asked for, Stripe leaves out what was cancelled.
      const page = await unlessMissing(stripe.subscriptions.list({ customer: customerId, limit: 100 }, limits()));
      return (page?.data ?? []).filter(({ status }) => !OVER.includes(status)).map(({ id }) => id);
    },
    /** It ends with what is paid for; nothing else waits for that moment then. */
    async endAtPeriodEnd({ id, scheduleId }: ChangeableSubscription): Promise<void> {
      if (scheduleId !== null) await release(stripe, scheduleId, limits);
      await stripe.subscriptions.update(id, { cancel_at_period_end: true }, limits());
    },
    /** It goes on as it is. */
    async keepGoing({ id, scheduleId, endsBy }: ChangeableSubscription): Promise<void> {
      if (scheduleId !== null) await release(stripe, scheduleId, limits);
      if (endsBy === null) return;
      const change = endsBy === "date" ? { cancel_at: "" as const } : { cancel_at_period_end: false };
      await stripe.subscriptions.update(id, change, limits());
    },
    /**
     * Drops a subscription that was never paid. Its invoice first: Stripe voids none that was paid meanwhile, and nobody can
     * pay one that is void.
     */
    async dropUnpaid({ id, latestInvoiceId }: ChangeableSubscription): Promise<void> {
      if (latestInvoiceId !== null) await voidInvoice(stripe, latestInvoiceId, limits);
      await unlessMissing(stripe.subscriptions.cancel(id, {}, limits()));
    },
  };
}

const OVER = ["canceled", "incomplete_expired"];

function renderChange(
  change: { subscriptionId: string; itemId: string; priceId: string },
  returnUrl: string,
): Stripe.BillingPortal.SessionCreateParams.FlowData {
  const { subscriptionId: subscription, itemId: id, priceId: price } = change;
  return {
    type: "subscription_update_confirm",
    subscription_update_confirm: { subscription, items: [{ id, price, quantity: 1 }] },
    after_completion: { type: "redirect", redirect: { return_url: returnUrl } },
  };
}

function toChangeable(subscription: Stripe.Subscription): ChangeableSubscription {
  const item = subscription.items.data[0]!;
  const ends = subscription.cancel_at_period_end ? "period" : subscription.cancel_at === null ? null : "date";
  return {
    id: subscription.id,
    status: subscription.status,
    itemId: item.id,
    priceId: item.price.id,
    latestInvoiceId: idOf(subscription.latest_invoice),
    scheduleId: idOf(subscription.schedule),
    endsBy: ends,
  };
}

function idOf(reference: string | { id?: string } | null): string | null {
  return typeof reference === "string" ? reference : (reference?.id ?? null);
}

/** One that is over already is no error. */
async function release(stripe: Stripe, scheduleId: string, limits: Limits): Promise<void> {
  try {
    await stripe.subscriptionSchedules.release(scheduleId, {}, limits());
  } catch (error) {
    if (!(error instanceof Stripe.errors.StripeInvalidRequestError)) throw error;
    const schedule = await unlessMissing(stripe.subscriptionSchedules.retrieve(scheduleId, {}, limits()));
    if (schedule?.status === "active" || schedule?.status === "not_started") throw error;
  }
}

/** One that is void already is no error; one that was paid is. */
async function voidInvoice(stripe: Stripe, id: string, limits: Limits): Promise<void> {
  try {
    await stripe.invoices.voidInvoice(id, {}, limits());
  } catch (error) {
    if (!(error instanceof Stripe.errors.StripeInvalidRequestError)) throw error;
    const invoice = await stripe.invoices.retrieve(id, {}, limits());
    if (invoice.status !== "void") throw error;
  }
}

/** Null instead of Stripe's `resource_missing`. */
export async function unlessMissing<T>(asking: Promise<T>): Promise<T | null> {
  return asking.catch((error: unknown) => {
    if (error instanceof Stripe.errors.StripeInvalidRequestError && error.code === "resource_missing") return null;
    throw error;
  });
}

/** Nothing else will ever come of this key: it repeats a failure, or was another request's. */
function isKeySpent(error: unknown): boolean {
  if (error instanceof Stripe.errors.StripeIdempotencyError && error.statusCode === 400) return true;
  return error instanceof Stripe.errors.StripeError && error.headers?.["idempotent-replayed"] === "true";
}
