import Stripe from "stripe";

/** Why a call to Stripe did not work, by names and codes: messages may hold anything. */
export interface StripeTrouble {
  /** `away`: it may work later. `refused`: Stripe does not want this request, or our key. */
  kind: "away" | "refused";
  type: string;
  code: string | undefined;
  status: number | undefined;
  param: string | undefined;
  /** Stripe's own name of the request, for its dashboard. */
  requestId: string | undefined;
  retryAfterSeconds: number | null;
}

/** Null for what did not come from Stripe's package. */
export function readStripeTrouble(error: unknown): StripeTrouble | null {
  if (!(error instanceof Stripe.errors.StripeError)) return null;
  const { type, code, statusCode: status, param, requestId, headers } = error;
  const refused = status !== undefined && status >= 400 && status < 500 && status !== 409 && status !== 429;
  const retryAfter = Number(headers?.["retry-after"]);
  return {
    kind: refused ? "refused" : "away",
    type,
    code,
    status,
    param,
    requestId,
    retryAfterSeconds: Number.isFinite(retryAfter) && retryAfter > 0 ? Math.min(retryAfter, 600) : null,
  };
}

/** Whether Stripe does not know the customer (any more), or only in its other mode. */
export function isCustomerGone(error: unknown): boolean {
  const trouble = readStripeTrouble(error);
  return trouble?.code === "resource_missing" && trouble.param === "customer";
}
