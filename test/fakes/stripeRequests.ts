import type { IncomingMessage, ServerResponse } from "node:http";
import type { Account } from "./stripeAccount.ts";
import { API_VERSION } from "./stripeApiChanges.ts";
import { invalidRequest, StripeFault } from "./stripeErrors.ts";
import { parseForm } from "./stripeForm.ts";
import { beginRequest, type IdempotencyKeys } from "./stripeIdempotency.ts";
import { expandObject } from "./stripeLists.ts";
import { OPERATIONS, readParams, type Params } from "./stripeParams.ts";
import { matchRoute, ROUTES, type Call } from "./stripeRoutes.ts";
import { newStripeId } from "./stripeState.ts";

/**
 * What happens to a request instead of, or on top of, its answer. `status` is answered before anything is done, or with
 * `afterWork` after it; `hang` never answers; `cut` destroys the connection before or after the work; `until`
 * waits with the request under way (so that its idempotency key is in use).
 */
export type Fault =
  | { status: number; afterWork?: boolean; retryAfter?: number }
  | { hang: "afterWork" | "beforeWork" }
  | { cut: "afterWork" | "beforeWork" }
  | { until: Promise<unknown> };

/** A request as it came, and how it was answered (null: not at all). */
export interface RecordedRequest {
  id: string;
  method: string;
  path: string;
  params: Params;
  idempotencyKey: string | null;
  live: boolean;
  apiVersion: string | null;
  status: number | null;
  /** The answer was one that had been given before, by the idempotency key. */
  replayed: boolean;
}

/** What the API needs of the server around it. */
export interface Api {
  accountOf(key: string): { account: Account; keys: IdempotencyKeys } | null;
  requests: RecordedRequest[];
  nextFault(request: RecordedRequest): Fault | null;
  /** Seconds. */
  now(): number;
  advanceTestClock: Call["advanceTestClock"];
  /** Before each request: what is due by now, when the clock runs by itself. */
  catchUp(): void;
  /** Connections that hang; closed with the server. */
  hanging: Set<ServerResponse>;
}

interface Answer {
  status: number;
  body: string;
  headers?: Record<string, string>;
}
const REQUESTS_KEPT = 5_000;

/** Answers one request to `/v1/…`. */
export async function answerApi(api: Api, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const url = new URL(request.url ?? "/", "http://stripe.invalid");
  const body = await readBody(request);
  const recorded = record(api, request, url, body);
  let answer: Answer;
  try {
    const owner = authenticate(api, request);
    recorded.live = owner.account.live;
    checkVersion(recorded.apiVersion);
    answer = await withFaults(api, recorded, response, (until) => perform(api, owner, recorded, { body, until }));
  } catch (error) {
    if (error instanceof ConnectionLost) return;
    answer = answerOf(error);
  }
  recorded.status = answer.status;
  // The world of this Stripe has one time: its own.
  response.setHeader("date", new Date(api.now() * 1000).toUTCString());
  send(response, answer, recorded);
}

class ConnectionLost extends Error {}

async function readBody(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString("utf8");
}

function record(api: Api, request: IncomingMessage, url: URL, body: string): RecordedRequest {
  const recorded: RecordedRequest = {
    id: `req_${newStripeId("x").slice(3, 17)}`,
    method: request.method ?? "GET",
    path: url.pathname,
    params: parseForm(request.method === "POST" ? body : url.search.slice(1)),
    idempotencyKey: header(request, "idempotency-key"),
    live: false,
    apiVersion: header(request, "stripe-version"),
    status: null,
    replayed: false,
  };
  api.requests.push(recorded);
  if (api.requests.length > REQUESTS_KEPT) api.requests.shift();
  return recorded;
}

function header(request: IncomingMessage, name: string): string | null {
  const value = request.headers[name];
  return typeof value === "string" ? value : null;
}

function authenticate(api: Api, request: IncomingMessage) {
  const given = header(request, "authorization") ?? "";
  const [scheme = "", credentials = ""] = given.split(" ", 2);
  const basic = scheme.toLowerCase() === "basic";
  const key = basic ? Buffer.from(credentials, "base64").toString().split(":")[0]! : credentials;
  if (!key)
    throw new StripeFault(401, {
      type: "invalid_request_error",
      message:
        "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
    });
  const owner = api.accountOf(key);
  if (owner) return owner;
  const shown = `${key.slice(0, 8)}${"*".repeat(Math.max(0, key.length - 12))}${key.slice(-4)}`;
  throw new StripeFault(401, { type: "invalid_request_error", message: `Invalid API Key provided: ${shown}` });
}

function checkVersion(version: string | null): void {
  if (version !== null && !/^\d{4}-\d{2}-\d{2}(\.[a-z]+)?$/.test(version))
    throw invalidRequest(`Invalid Stripe API version: ${version}`);
}

async function withFaults(
  api: Api,
  recorded: RecordedRequest,
  response: ServerResponse,
  work: (until?: Promise<unknown>) => Promise<Answer>,
): Promise<Answer> {
  const fault = api.nextFault(recorded);
  if (!fault) return work();
  if ("until" in fault) return work(fault.until);
  if ("status" in fault) {
    if (fault.afterWork) await work();
    return faultAnswer(fault.status, fault.retryAfter);
  }
  const when = "cut" in fault ? fault.cut : fault.hang;
  if (when === "afterWork") await work();
  if ("cut" in fault) cutConnection(response);
  else api.hanging.add(response);
  throw new ConnectionLost();
}

/** In the middle of an answer: `fetch` quietly repeats a request on a connection that broke before the answer began. */
function cutConnection(response: ServerResponse): void {
  response.writeHead(200, { "content-type": "application/json", "content-length": "1000" });
  response.write('{"', () => response.socket?.destroy());
}

function faultAnswer(status: number, retryAfter?: number): Answer {
  const error =
    status === 429
      ? {
          type: "invalid_request_error",
          code: "rate_limit",
          message:
            "Request rate limit exceeded. You can learn more about rate limits here https://docs.stripe.com/rate-limits.",
        }
      : { type: "api_error", message: "An unknown error occurred" };
  const headers = retryAfter === undefined ? {} : { "retry-after": String(retryAfter) };
  return { status, body: JSON.stringify({ error }), headers };
}

type Owner = NonNullable<ReturnType<Api["accountOf"]>>;

/** Idempotency keys count for POST only, as with Stripe. */
async function perform(
  api: Api,
  owner: Owner,
  recorded: RecordedRequest,
  { body, until }: { body: string; until: Promise<unknown> | undefined },
): Promise<Answer> {
  api.catchUp();
  const key = recorded.method === "POST" ? recorded.idempotencyKey : null;
  if (key === null) {
    await until;
    return execute(api, owner.account, recorded);
  }
  const { method, path } = recorded;
  const again = beginRequest(owner.keys, { key, method, path, body, now: owner.account.now() });
  if (again) {
    recorded.replayed = true;
    return { ...again, headers: { "idempotent-replayed": "true" } };
  }
  await until;
  try {
    const answer = execute(api, owner.account, recorded);
    owner.keys[key]!.answer = { status: answer.status, body: answer.body };
    return answer;
  } catch (error) {
    if (!(error instanceof StripeFault) || !error.kept) delete owner.keys[key];
    const answer = answerOf(error);
    if (owner.keys[key]) owner.keys[key].answer = { status: answer.status, body: answer.body };
    return answer;
  }
}

function execute(api: Api, account: Account, recorded: RecordedRequest): Answer {
  const { method, path } = recorded;
  const route = matchRoute(method, path);
  if (!route) {
    const message = `Unrecognized request URL (${method}: ${path}). Please see https://stripe.com/docs or we can help at https://support.stripe.com/.`;
    throw Object.assign(new StripeFault(404, { type: "invalid_request_error", message }), { kept: false });
  }
  const params = readParams(OPERATIONS[route.operation]!, recorded.params);
  account.request = { id: recorded.id, idempotency_key: recorded.idempotencyKey };
  try {
    const { advanceTestClock } = api;
    const result = ROUTES[route.operation]!({ account, params, id: route.id, path, advanceTestClock });
    return { status: 200, body: JSON.stringify(expandObject(account, result, params.expand)) };
  } finally {
    account.request = null;
  }
}

function answerOf(error: unknown): Answer {
  if (!(error instanceof StripeFault)) throw error;
  return { status: error.status, body: JSON.stringify({ error: error.body }) };
}

function send(response: ServerResponse, answer: Answer, recorded: RecordedRequest): void {
  response.writeHead(answer.status, {
    "content-type": "application/json",
    "request-id": recorded.id,
    "stripe-version": recorded.apiVersion ?? API_VERSION,
    ...(recorded.idempotencyKey !== null && { "idempotency-key": recorded.idempotencyKey }),
    ...answer.headers,
  });
  response.end(answer.body);
}
