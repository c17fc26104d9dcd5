import type { AudioFormat } from "./formats.ts";
import type { SpeechAnswer, SpeechQuestion } from "./speechWorker.ts";

/** Longest wait for an answer. An hour of silence takes three seconds alone. */
const DEADLINE_MS = 10_000;
/** Of what is left of it when the worker begins: the rest is for the way back. */
const BUDGET_SHARE = 0.8;
/** Recordings that are heard side by side, so that a word needn't wait for an hour; each is a copy in memory. */
const MAX_RUNNING = 4;
const COPY_BYTES = 1024 * 1024;

/** Listens to recordings in a thread of its own. */
export interface AudioInspector {
  /**
   * Whether somebody may be speaking: false for silence and for the faint noise of a room. Always answers within the
   * deadline, and true whenever it can't be told; whoever transcribes decides then. The bytes are copied, and must not
   * change before the answer.
   */
  hasSpeechEnergy(bytes: Uint8Array, format: AudioFormat): Promise<boolean>;
  /** Ends the thread; who still waits is answered true. */
  close(): void;
}

interface Job {
  id: number;
  bytes: Uint8Array;
  format: AudioFormat;
  askedAt: number;
  answer(hasSpeech: boolean): void;
}

/** A copy for the thread, made in turns: fresh memory for 25 MB at once takes longer than others should wait. */
async function copyOf(bytes: Uint8Array): Promise<Uint8Array<ArrayBuffer>> {
  const copy = new Uint8Array(bytes.length);
  for (let at = 0; at < bytes.length; at += COPY_BYTES) {
    if (at > 0) await new Promise((resolve) => setImmediate(resolve));
    copy.set(bytes.subarray(at, at + COPY_BYTES), at);
  }
  return copy;
}

/** The thread is started by the first question, and again after it was stuck; an idle one doesn't keep the process. */
export function createAudioInspector({ deadlineMs = DEADLINE_MS } = {}): AudioInspector {
  const waiting: Job[] = [];
  const running = new Map<number, Job>();
  let worker: Worker | undefined;
  let lastId = 0;
  let isClosed = false;

  const stop = () => {
    worker?.terminate();
    worker = undefined;
    const stuck = [...running.values()];
    running.clear();
    for (const job of stuck) job.answer(true);
  };
  const start = () => {
    const started = new Worker(new URL("./speechWorker.ts", import.meta.url), { smol: true });
    started.onmessage = ({ data }: MessageEvent<SpeechAnswer>) => running.get(data.id)?.answer(data.hasSpeech);
    started.onerror = (event) => {
      event.preventDefault();
      if (worker === started) stop();
    };
    started.unref();
    return started;
  };
  const next = () => {
    while (!isClosed && waiting.length > 0 && running.size < MAX_RUNNING) {
      const job = waiting.shift()!;
      running.set(job.id, job);
      send(job).catch(() => job.answer(true));
    }
  };
  const send = async (job: Job) => {
    const bytes = await copyOf(job.bytes);
    // Given up meanwhile, or closed.
    if (!running.has(job.id)) return;
    worker ??= start();
    const budgetMs = (job.askedAt + deadlineMs - performance.now()) * BUDGET_SHARE;
    const question: SpeechQuestion = { id: job.id, bytes, format: job.format, budgetMs };
    worker.postMessage(question, [bytes.buffer]);
  };
  const giveUp = (job: Job) => {
    // Running for so long means stuck inside a decoder: nothing else ends that.
    if (running.has(job.id)) stop();
    else job.answer(true);
  };

  return {
    hasSpeechEnergy(bytes, format) {
      if (isClosed) return Promise.resolve(true);
      const { promise, resolve } = Promise.withResolvers<boolean>();
      const timer = setTimeout(() => giveUp(job), deadlineMs);
      const job: Job = {
        id: ++lastId,
        bytes,
        format,
        askedAt: performance.now(),
        answer(hasSpeech) {
          clearTimeout(timer);
          running.delete(job.id);
          const place = waiting.indexOf(job);
          if (place >= 0) waiting.splice(place, 1);
          resolve(hasSpeech);
          next();
        },
      };
      waiting.push(job);
      next();
      return promise;
    },
    close() {
      isClosed = true;
      stop();
      for (const job of waiting.splice(0)) job.answer(true);
    },
  };
}
