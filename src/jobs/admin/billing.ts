import type { Deps } from "../../deps.ts";
import { describeError } from "../../lib/errors.ts";
import { compareBilling, type Difference } from "../../services/billingDrift.ts";
import { reconcileBilling } from "../../services/reconcileBilling.ts";
import { takeWords, type Command, type Refusal } from "./command.ts";

/** A webhook that is on its way has arrived by then. */
const SETTLE_MS = 3_000;

function show({ customerId, userId, what }: Difference): string {
  return `${customerId}  ${userId ?? "nobody here"}  ${what}`;
}

function count(n: number, what: string): string {
  return `${n} ${what}${n === 1 ? "" : "s"}`;
}

/** Stripe away is no difference. */
async function trying(deps: Deps, work: () => Promise<Refusal | null>): Promise<Refusal | null> {
  if (!deps.stripe.isConfigured) return { code: 2, sentence: "Nothing is sold here: STRIPE_SECRET_KEY is missing." };
  return work().catch((error: unknown) => ({
    code: 2 as const,
    sentence: `It could not be compared (${describeError(error)}); nothing is known.`,
  }));
}

/** `npm run admin -- billing …`: what is stored of subscriptions, and what Stripe says. */
export const billingCommands: Record<string, Command> = {
  "billing verify": {
    usage: "billing verify",
    summary: "compares every subscription with Stripe; changes nothing",
    help: `Reads all subscriptions from Stripe and compares them with the rows, in both directions. One line for each customer that
differs: the customer, the user, what is said here and at Stripe. What differs is looked at twice, since a webhook may be
on its way. It only reads. Exit code: 0 all are equal, 1 some differ, 2 it could not be compared.`,
    read(words) {
      takeWords(words);
      return (deps) =>
        trying(deps, async () => {
          const { compared, differences } = await compareBilling(deps, { settleMs: SETTLE_MS });
          for (const difference of differences) console.log(show(difference));
          console.error(`admin: ${count(compared, "customer")} compared.`);
          return differences.length === 0 ? null : `${count(differences.length, "difference")}.`;
        });
    },
  },
  "billing repair": {
    usage: "billing repair",
    summary: "compares, and puts right what differs",
    help: `Compares as "billing verify" does and fetches what differs anew, which is what a webhook would have done: plans, limits,
assistants and mails follow. The running processes do this by themselves every BILLING_RECONCILE_MS. Exit code: 0 all is
right now, 1 something is left that a person has to look at (printed, with the reason), 2 it could not be compared.`,
    read(words) {
      takeWords(words);
      return (deps) =>
        trying(deps, async () => {
          const { compared, repaired, left } = await reconcileBilling(deps, { settleMs: SETTLE_MS });
          for (const difference of repaired) console.log(`mended  ${show(difference)}`);
          for (const difference of left) console.log(`left    ${show(difference)}`);
          console.error(`admin: ${count(compared, "customer")} compared, ${repaired.length} mended.`);
          return left.length === 0 ? null : `${count(left.length, "difference")} left.`;
        });
    },
  },
};
