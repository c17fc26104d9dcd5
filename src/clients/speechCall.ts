/** Longer than this the SDK would not wait, but try again at once. */
const LONGEST_PAUSE_MS = 60_000;

/** Why a call was given up: the provider was silent for as long as we wait. */
class ProviderSilent extends Error {}

/** One call of the speech provider: how long it is waited for, and who may end it. */
export interface SpeechCall {
  /** Aborts with the caller's reason, with that of `abort`, or when the provider was silent too long. */
  signal: AbortSignal;
  /** For the SDK: asks once, and forbids a pause before the next attempt that would outlast the wait. */
  fetch: typeof fetch;
  /**
   * Waits for the provider: at most `limitMs`, and no longer than what is left of the call's budget, which only runs
   * while somebody waits. Then the call is aborted. Rejects as soon as the signal aborts, whatever `work` does.
   */
  wait<T>(limitMs: number, work: () => Promise<T>): Promise<T>;
  /** Whether it was our own patience that ended it. */
  wasSilent(): boolean;
  /** What the provider's last refusal asked us to wait; null when it did not say. */
  pauseMs(): number | null;
  abort(): void;
  /** Lets go of the caller's signal; to be called when the call is over. */
  end(): void;
}

/** Begins a call that `caller` may abort and that is waited for at most `budgetMs` in all. */
export function startSpeechCall(caller: AbortSignal, budgetMs: number): SpeechCall {
  const controller = new AbortController();
  const { signal } = controller;
  const follow = () => controller.abort(caller.reason);
  if (caller.aborted) follow();
  else caller.addEventListener("abort", follow, { once: true });
  let leftMs = budgetMs;
  let waitEndsAt = performance.now() + budgetMs;
  let pauseMs: number | null = null;

  const askOnce = async (...request: Parameters<typeof fetch>) => {
    const response = await fetch(...request);
    if (response.ok) return response;
    pauseMs = readPauseMs(response.headers);
    const fits = pauseMs === null || pauseMs < Math.min(LONGEST_PAUSE_MS, waitEndsAt - performance.now());
    return fits ? response : withoutRetry(response);
  };
  return {
    signal,
    // The SDK looks for the class beside the function; without it, it tries out a fetch of its own for each.
    fetch: Object.assign(askOnce, { preconnect: fetch.preconnect, Response }),
    async wait(limitMs, work) {
      const startedAt = performance.now();
      const forMs = Math.max(0, Math.min(limitMs, leftMs));
      waitEndsAt = startedAt + forMs;
      const timer = setTimeout(() => controller.abort(new ProviderSilent()), forMs);
      try {
        return await unlessAborted(signal, work);
      } finally {
        clearTimeout(timer);
        leftMs -= performance.now() - startedAt;
      }
    },
    wasSilent: () => signal.reason instanceof ProviderSilent,
    pauseMs: () => pauseMs,
    abort: () => controller.abort(),
    end: () => caller.removeEventListener("abort", follow),
  };
}

// Not Promise.race with one promise for all waits: that would keep every chunk until the call is over.
async function unlessAborted<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
  signal.throwIfAborted();
  const { promise, resolve, reject } = Promise.withResolvers<T>();
  const give = () => reject(signal.reason as Error);
  signal.addEventListener("abort", give, { once: true });
  work().then(resolve, reject);
  return promise.finally(() => signal.removeEventListener("abort", give));
}

/** What `Retry-After` says (seconds or a date), or OpenAI's own finer header; null when there is nothing sensible. */
function readPauseMs(headers: Headers): number | null {
  const fine = Number.parseFloat(headers.get("retry-after-ms") ?? "");
  if (fine >= 0) return fine;
  const plain = headers.get("retry-after");
  if (plain === null) return null;
  const seconds = Number.parseFloat(plain);
  const ms = Number.isNaN(seconds) ? Date.parse(plain) - Date.now() : seconds * 1000;
  return ms >= 0 ? ms : null;
}

function withoutRetry(response: Response): Response {
  const headers = new Headers(response.headers);
  headers.set("x-should-retry", "false");
  return new Response(response.body, { status: response.status, headers });
}
