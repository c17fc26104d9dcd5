type ErrorType = "api_error" | "card_error" | "idempotency_error" | "invalid_request_error";

interface StripeErrorBody {
  type: ErrorType;
  message: string;
  code?: string;
  param?: string;
  decline_code?: string;
  charge?: string;
  payment_intent?: unknown;
}

/** An answer of Stripe that is no success. `kept`: a retry with the same idempotency key gets it again. */
export class StripeFault extends Error {
  kept = true;
  constructor(
    readonly status: number,
    readonly body: StripeErrorBody,
  ) {
    super(body.message);
  }
}

/** A request that makes no sense: 400. */
export function invalidRequest(message: string, extra: { code?: string; param?: string } = {}): StripeFault {
  return new StripeFault(400, { type: "invalid_request_error", message, ...extra });
}

/** Refused before anything ran; Stripe keeps no answer of such a request. */
export function invalidParameter(message: string, param: string, code?: string): StripeFault {
  const fault = invalidRequest(message, { param, ...(code !== undefined && { code }) });
  fault.kept = false;
  return fault;
}

/** 404 when the path names what isn't there, 400 when a parameter does. */
export function missing(kind: string, id: string, where: { param?: string; otherMode?: "live" | "test" } = {}) {
  const other = where.otherMode
    ? `; a similar object exists in ${where.otherMode} mode, but a ${where.otherMode === "live" ? "test" : "live"} mode key was used to make this request.`
    : "";
  const message = `No such ${kind}: '${id}'${other}`;
  const body = { type: "invalid_request_error" as const, code: "resource_missing", message };
  return where.param
    ? new StripeFault(400, { ...body, param: where.param })
    : new StripeFault(404, { ...body, param: "id" });
}

export function cardDeclined(charge: string | null, intent: unknown): StripeFault {
  return new StripeFault(402, {
    type: "card_error",
    code: "card_declined",
    decline_code: "generic_decline",
    message: "Your card was declined.",
    ...(charge !== null && { charge }),
    payment_intent: intent,
  });
}

/** The bank wants to hear from the person first. */
export function actionRequired(code: string, intent: unknown): StripeFault {
  const message =
    "Payment for this subscription requires additional user action before it can be completed successfully.";
  return new StripeFault(402, { type: "card_error", code, message, payment_intent: intent });
}
