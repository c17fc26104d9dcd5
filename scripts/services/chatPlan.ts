import type { createCall } from "./chatApi.ts";

interface Plan {
  plan: string;
  price_monthly: string;
  price_yearly: string;
  available: boolean;
}
interface Subscription {
  plan: string;
  current_period_end: string | null;
  cancel_at_period_end: boolean;
  payment_due: { amount: string; pay_url: string | null } | null;
}

/** What `/plan` in the chat says: without words how things stand, with a plan (and "yearly") where it is bought. */
export async function answerPlan(call: ReturnType<typeof createCall>, token: string, words: string[]): Promise<string> {
  const [plan, cycle = "monthly"] = words;
  if (plan === undefined) return describePlans(call, token);
  const wanted = { plan, billing_cycle: cycle };
  const { status, body } = await call<{ checkout_url: string }>("POST", "/api/subscription/checkout", wanted, token);
  return status === 200 ? `Open in a browser: ${body.checkout_url}` : (body.error ?? "That did not work.");
}

async function describePlans(call: ReturnType<typeof createCall>, token: string): Promise<string> {
  const [plans, mine] = await Promise.all([
    call<Plan[]>("GET", "/api/subscription/plans"),
    call<Subscription>("GET", "/api/subscription", undefined, token),
  ]);
  if (plans.status !== 200 || mine.status !== 200) return mine.body.error ?? "The plans can't be read.";
  const { plan, current_period_end: end, cancel_at_period_end: ends, payment_due: due } = mine.body;
  const until = end === null ? "" : `, ${ends ? "ends" : "renews"} on ${end.slice(0, 10)}`;
  const owed = due === null ? "" : ` ${due.amount} USD are due: ${due.pay_url ?? "see the last invoice"}`;
  const sold = plans.body
    .filter((one) => one.available && Number(one.price_monthly) > 0)
    .map((one) => `/plan ${one.plan} (${one.price_monthly} USD a month, ${one.price_yearly} yearly)`);
  const offer = sold.length === 0 ? "Nothing is sold here." : `To change: ${sold.join(", ")}`;
  return `You have the plan ${plan}${until}.${owed}\n${offer}`;
}
