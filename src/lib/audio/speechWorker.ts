/** Hears recordings beside the process's own work: see `inspector.ts`, which starts it. */
import type { AudioFormat } from "./formats.ts";
import { hasSpeech } from "./speech.ts";

export interface SpeechQuestion {
  id: number;
  bytes: Uint8Array;
  format: AudioFormat;
  budgetMs: number;
}

export interface SpeechAnswer {
  id: number;
  hasSpeech: boolean;
}

declare const self: Worker;

// The decoders tell the console of what they can't read, and one has a loop that a lasting error never leaves. Here it ends.
console.error = (message: unknown) => {
  throw new Error(String(message));
};

self.onmessage = async ({ data }: MessageEvent<SpeechQuestion>) => {
  const answer = await hasSpeech(data.bytes, data.format, data.budgetMs);
  self.postMessage({ id: data.id, hasSpeech: answer } satisfies SpeechAnswer);
};
