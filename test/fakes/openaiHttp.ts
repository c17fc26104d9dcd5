/**
 * One thing that goes wrong. `status` is an HTTP error and counts only before anything was streamed (`retryAfter` in
 * seconds); `cut` destroys the connection; `hang` stays silent until the client leaves.
 */
export type Fault =
  | { delayMs: number }
  | { status: number; retryAfter?: number; message?: string; code?: string }
  | { cut: true }
  | { hang: true };

export class HttpFault extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly retryAfter?: number,
    readonly code?: string,
  ) {
    super(message);
  }
}
export class ConnectionCut extends Error {}

const faultNames: Record<number, { type: string; code: string | null }> = {
  400: { type: "invalid_request_error", code: null },
  401: { type: "invalid_request_error", code: "invalid_api_key" },
  404: { type: "invalid_request_error", code: "model_not_found" },
  429: { type: "rate_limit_error", code: "rate_limit_exceeded" },
};

export function faultBody(fault: HttpFault) {
  const { type, code } = faultNames[fault.status] ?? { type: "server_error", code: null };
  return { error: { message: fault.message, type, param: null, code: fault.code ?? code } };
}

export function faultResponse(fault: HttpFault): Response {
  const headers: Record<string, string> = {};
  if (fault.retryAfter !== undefined) headers["retry-after"] = String(fault.retryAfter);
  return Response.json(faultBody(fault), { status: fault.status, headers });
}

/** Lets the fault happen: returns when a wait is over, throws what the server must answer. */
export async function suffer(fault: Fault, signal: AbortSignal): Promise<void> {
  if ("delayMs" in fault) await delay(fault.delayMs, signal);
  else if ("hang" in fault) await untilAborted(signal);
  else if ("cut" in fault) throw new ConnectionCut("the connection was cut");
  else
    throw new HttpFault(fault.status, fault.message ?? `Scripted fault ${fault.status}.`, fault.retryAfter, fault.code);
}

/** Waits `delayMs`, or less when the client leaves. */
function delay(delayMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, delayMs);
    signal.addEventListener("abort", done);
  });
}

function untilAborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

/** A first item that was already taken, in front of the rest. */
export async function* withFirst<T>(first: IteratorResult<T>, rest: AsyncIterator<T>): AsyncGenerator<T> {
  for (let next = first; !next.done; next = await rest.next()) yield next.value;
}

/** No answer at all: the connection is reset, as if the server had died. */
export function cutResponse(): Response {
  return new Response(new ReadableStream({ pull: (controller) => controller.error() }));
}

/** Sends the chunks as they come; `onDone` when the last is sent, the script cuts, or the client leaves. */
export function streamResponse(
  chunks: AsyncGenerator<Uint8Array>,
  headers: Record<string, string>,
  onDone: () => void,
): Response {
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      try {
        const next = await chunks.next();
        if (!next.done) return controller.enqueue(next.value);
        controller.close();
      } catch (error) {
        // An errored body resets the socket without the last chunk, as a cut connection does; Bun prints any reason.
        controller.error(error instanceof ConnectionCut ? undefined : error);
      }
      onDone();
    },
    cancel: onDone,
  });
  return new Response(body, { headers });
}
