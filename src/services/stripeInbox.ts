import { insertAudit } from "../db/audit.ts";
import { findCustomer } from "../db/stripeCustomers.ts";
import { claimEvents, deleteOldEvents, finishEvents, putEventBack, type ClaimedEvent } from "../db/stripeEvents.ts";
import type { Deps } from "../deps.ts";
import { describeError } from "../lib/errors.ts";
import { startLoop, type Loop } from "../lib/loop.ts";
import { backoffDelay, withDeadline } from "../lib/retry.ts";
import type { BillingDeps } from "./billing.ts";
import { syncOrAdopt } from "./stripeCustomers.ts";

export type InboxDeps = BillingDeps & Pick<Deps, "clock">;

/** Longer than the work at one customer may take: who is silent beyond this has died, and another begins again. */
const LEASE_MS = 60_000;
const WORK_MS = 50_000;
const BACKOFF_MS = 1_000;
/** Never given up: Stripe's own outages have lasted hours. */
const BACKOFF_CAP_MS = 300_000;
/** A failure that has come so often is no hiccup. */
const ALARM_ATTEMPTS = 4;
const CUSTOMERS_AT_ONCE = 4;
const EVENTS_AT_ONCE = 100;
const RESYNC_MS = 2_000;
const KEPT_DAYS = 90;
const CHARGE = /^(ch|py)_/;
const STRIPE = { actor: "stripe", ip: null, requestId: null };
const FORGET_MS = 3_600_000;

/*
 * An event is waiting → claimed (due again when its lease is over, should we die) → done, with what came of it
 *                                                                                 → back, later each time, for ever
 * All events of a customer that are claimed together are one fetch: they only say that it is worth one.
 */

/** Works at what waits, several customers at a time, each once, so that one that hangs holds up nobody but itself. */
export function startStripeInbox(deps: InboxDeps): Loop {
  const { sql, log } = deps;
  const active = new Map<string, { customerId: string | null; done: Promise<void> }>();
  let stopping = false;
  let forgotAt = -Infinity;

  const start = (events: ClaimedEvent[]) => {
    const [first] = events as [ClaimedEvent];
    const done = work(deps, events, () => stopping)
      // Their lease ends by itself.
      .catch((error: unknown) => log.warn({ event_id: first.id, reason: describeError(error) }, "let go late"))
      .finally(() => {
        active.delete(first.id);
        loop.wake();
      });
    active.set(first.id, { customerId: first.customerId, done });
  };
  const loop = startLoop({
    name: "stripe inbox",
    debounceMs: 20,
    maxWaitMs: 100,
    resyncMs: RESYNC_MS,
    backoffMs: 500,
    log,
    run: async () => {
      if (stopping || active.size >= CUSTOMERS_AT_ONCE) return;
      const except = [...active.values()].flatMap(({ customerId }) => customerId ?? []);
      const customers = CUSTOMERS_AT_ONCE - active.size;
      const due = await claimEvents(sql, { leaseMs: LEASE_MS, customers, limit: EVENTS_AT_ONCE, except });
      for (const events of groupByCustomer(due)) start(events);
      // Last: what can't be forgotten must not keep anything from being worked on.
      if (deps.clock.now() - forgotAt <= FORGET_MS) return;
      await deleteOldEvents(sql, { days: KEPT_DAYS });
      forgotAt = deps.clock.now();
    },
  });
  return {
    wake: () => loop.wake(),
    async stop() {
      stopping = true;
      await loop.stop();
      await Promise.all([...active.values()].map(({ done }) => done));
    },
  };
}

/** One that names no customer is on its own. */
function groupByCustomer(events: ClaimedEvent[]): ClaimedEvent[][] {
  return [...Map.groupBy(events, ({ customerId, id }) => customerId ?? id).values()];
}

async function work(deps: InboxDeps, events: ClaimedEvent[], isStopping: () => boolean): Promise<void> {
  const [first] = events as [ClaimedEvent];
  try {
    // Left to another process at once.
    if (isStopping()) return await putBack(deps, events, null);
    const { customerId, outcome } = await withDeadline(settle(deps, first), WORK_MS, "the work at an event");
    if (outcome === "unknown_price" || outcome === "missing_customer") return await putBack(deps, events, outcome);
    await finish(deps, events, customerId, outcome);
  } catch (error) {
    await putBack(deps, events, describeError(error));
  }
}

/** Finds the customer that an event is about, and brings what is stored of it up to date. */
async function settle(deps: InboxDeps, event: ClaimedEvent): Promise<{ customerId: string | null; outcome: string }> {
  const customer = event.customerId ?? (await findByObject(deps, event));
  if (customer === null) return { customerId: null, outcome: "ignored: no customer" };
  const { outcome } = await syncOrAdopt(deps, customer);
  return { customerId: customer, outcome: outcome === "unknown_customer" ? "ignored: unknown customer" : outcome };
}

/** A dispute names only its charge. */
async function findByObject({ stripe }: InboxDeps, { objectId }: ClaimedEvent): Promise<string | null> {
  return objectId !== null && CHARGE.test(objectId) ? stripe.findCustomerOfCharge(objectId) : null;
}

/** Notes what came of them; what is to be kept of a dispute is kept once. */
async function finish(
  { sql, log }: InboxDeps,
  events: ClaimedEvent[],
  customerId: string | null,
  outcome: string,
): Promise<void> {
  const ids = events.map((event) => event.id);
  const disputes = await sql.begin(async (tx) => {
    const done = await finishEvents(tx, { ids, customerId, outcome });
    const disputed = done.filter(({ type }) => type === "charge.dispute.created");
    const subjectUserId = customerId === null ? null : ((await findCustomer(tx, customerId))?.userId ?? null);
    for (const { id: eventId, objectId } of disputed) {
      const details = { event: eventId, charge: objectId ?? "" };
      await insertAudit(tx, { ...STRIPE, action: "subscription.disputed", subjectUserId, details });
    }
    return disputed;
  });
  for (const { id: eventId } of disputes)
    log.error({ event_id: eventId, customer_id: customerId }, "a payment is disputed; answer it at Stripe");
}

async function putBack({ sql, log }: InboxDeps, events: ClaimedEvent[], error: string | null): Promise<void> {
  for (const { id: eventId, attempts } of events) {
    const delayMs = error === null ? 0 : backoffDelay(attempts - 1, BACKOFF_MS, BACKOFF_CAP_MS);
    await putEventBack(sql, { id: eventId, attempts, error, delayMs });
  }
  if (error === null) return;
  const attempts = Math.max(...events.map((event) => event.attempts));
  const about = { event_id: events[0]?.id, customer_id: events[0]?.customerId, attempts, reason: error };
  log[attempts >= ALARM_ATTEMPTS ? "error" : "warn"](about, "Stripe's event could not be worked at; trying again");
}
