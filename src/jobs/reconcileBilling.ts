import { reconcileBillingNow } from "../services/reconcileBilling.ts";
import { runTimer } from "./runTimer.ts";

const help = `Compares every subscription with Stripe and puts right what differs. By reef-reconcile-billing.timer; by hand, with every
difference printed: npm run admin -- billing repair.

  scripts/bun src/jobs/reconcileBilling.ts

What is left raises the alarm stripe-drift.

Exit code: 0 compared (or at work already), 1 Stripe did not answer, 75 the database does not answer, 78 misconfigured.`;

await runTimer(
  {
    name: "reconcile-billing",
    scope: "deployment",
    limitMs: 900_000,
    work: (deps, lock) => reconcileBillingNow(deps, lock.signal),
  },
  help,
);
