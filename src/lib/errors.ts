/**
 * The closed table of error codes: what a program may rely on. `status` is the HTTP status, `message` the default
 * sentence for people. The same codes travel on the chat socket as `{type:"error", code, …}`.
 */
export const ERRORS = {
  validation_failed: { status: 400, message: "Some fields are missing or not valid; see details." },
  invalid_json: { status: 400, message: "The body is not valid JSON." },
  invalid_frame: {
    status: 400,
    message: "This frame is not one that the chat socket understands; see the documentation.",
  },
  message_too_long: { status: 400, message: "A message has at most 32,000 characters; send it in parts." },
  weak_password: { status: 400, message: "This password is too easy to guess; choose another one." },
  token_invalid: { status: 400, message: "This link is not valid any more; ask for a new one." },
  password_required: { status: 400, message: "Give your password, or a fresh sign-in with Apple or Google." },
  unsupported_audio: { status: 400, message: "This audio can't be read; send m4a, mp3, wav, webm, ogg or flac." },
  invalid_signature: { status: 400, message: "This is not signed by Stripe, or too long ago." },
  nothing_heard: { status: 400, message: "There is no speech in this audio; nothing was charged." },
  nothing_to_speak: { status: 400, message: "There is nothing in this text that can be spoken." },
  unauthorized: { status: 401, message: "Sign in: a valid access token is needed." },
  token_expired: { status: 401, message: "The access token has expired; refresh it." },
  invalid_credentials: { status: 401, message: "E-mail address or password is wrong." },
  invalid_id_token: { status: 401, message: "This sign-in with Apple or Google is not valid; try again." },
  invalid_refresh_token: { status: 401, message: "The refresh token is not valid or has expired; sign in again." },
  session_revoked: { status: 401, message: "This session has ended; sign in again." },
  account_suspended: { status: 403, message: "This account is suspended; write to support." },
  forbidden: { status: 403, message: "This is not allowed with this token." },
  assistant_limit_reached: { status: 403, message: "Your plan has no room for another assistant." },
  voice_not_in_plan: { status: 403, message: "This voice is not part of your plan." },
  not_found: { status: 404, message: "There is nothing here." },
  assistant_not_found: { status: 404, message: "There is no such assistant." },
  session_not_found: { status: 404, message: "There is no such session." },
  user_not_found: { status: 404, message: "There is no such user." },
  method_not_allowed: { status: 405, message: "This address does not take this method." },
  body_too_slow: { status: 408, message: "The body took too long to arrive; send it again, or a shorter one." },
  email_taken: { status: 409, message: "There is an account with this e-mail address already; sign in instead." },
  identity_taken: { status: 409, message: "This Apple or Google account opens another account here." },
  no_password: {
    status: 409,
    message: 'This account has no password yet; set one with "forgot password".',
  },
  export_running: { status: 409, message: "Your data is being exported already; wait until that is done." },
  email_unverified: {
    status: 409,
    message: "An account has this e-mail address already; sign in with its password, or reset that.",
  },
  account_deleting: { status: 409, message: "This account is being deleted; nothing else can be done with it." },
  assistant_paused: { status: 409, message: "This assistant is paused; resume it to go on talking." },
  idempotency_conflict: { status: 409, message: "This Idempotency-Key was used with another request." },
  idempotency_in_progress: {
    status: 409,
    message: "The first request with this Idempotency-Key is still running; try again shortly.",
  },
  client_id_conflict: {
    status: 409,
    message: "This client_id was used for another text; use a new one for each message.",
  },
  already_subscribed: { status: 409, message: "You have this plan already." },
  no_subscription: { status: 409, message: "There is no subscription to change; choose a plan first." },
  body_too_large: { status: 413, message: "The body is too large." },
  unsupported_media_type: { status: 415, message: "Send the body as application/json." },
  upgrade_required: { status: 426, message: "This address speaks WebSocket only." },
  RATE_LIMITED: { status: 429, message: "Today's messages are used up." },
  voice_limit_reached: { status: 429, message: "Today's voice is used up." },
  too_many_attempts: { status: 429, message: "Too many attempts; wait a little and try again." },
  timezone_changed: { status: 429, message: "The time zone can be changed once in 24 hours." },
  too_many_frames: { status: 429, message: "Too many frames at once; slow down." },
  client_gone: { status: 499, message: "The client went away before it was answered." },
  turn_failed: { status: 502, message: "I could not answer that. Nothing was charged; please send it again." },
  internal_error: { status: 500, message: "Something went wrong on our side. Nothing was lost; please try again." },
  assistant_unavailable: {
    status: 503,
    message: "The assistant can't be reached right now. Nothing was charged; please try again in a minute.",
  },
  provider_not_configured: { status: 503, message: "This way to sign in is not offered here." },
  provider_unavailable: { status: 503, message: "Apple or Google can't be reached right now; try again in a moment." },
  billing_not_configured: { status: 503, message: "Nothing is sold here." },
  billing_unavailable: {
    status: 503,
    message: "The payment service can't be reached right now; try again in a moment. Nothing is done or charged twice.",
  },
  voice_unavailable: { status: 503, message: "Voice is not available right now; try again in a moment." },
  service_unavailable: { status: 503, message: "The service is not ready; try again in a moment." },
} as const satisfies Record<string, { status: number; message: string }>;

export type ErrorCode = keyof typeof ERRORS;

/** What else an error may tell: for programs (`retry_after` in seconds) and for forms (`details`). */
export interface ErrorExtras {
  details?: { path: string; message: string }[];
  retry_after?: number;
  reset_at?: string;
  limit?: number;
  used?: number;
  /** Which of the day's amounts is used up. */
  kind?: string;
  upgrade_to?: string | null;
}

/** The one error class: a code of the table, perhaps a better sentence, perhaps extras. Safe to show to a user. */
export class AppError extends Error {
  readonly code: ErrorCode;
  readonly extras: ErrorExtras;

  constructor(code: ErrorCode, extras: ErrorExtras = {}, message: string = ERRORS[code].message) {
    super(message);
    this.name = "AppError";
    this.code = code;
    this.extras = extras;
  }

  get status(): number {
    return ERRORS[this.code].status;
  }
}

/** What went wrong, by names and codes: a message of somebody else's may hold anything. */
export function describeError(error: unknown): string {
  const { name, type, code, statusCode } = (error ?? {}) as Record<string, unknown>;
  return [...new Set([type ?? name, code, statusCode])]
    .filter((part) => typeof part === "string" || typeof part === "number")
    .join(" ")
    .slice(0, 100);
}
