import { createDecoder, type Decoder } from "./decoders.ts";
import { packetsOf, type AudioFormat } from "./formats.ts";
import { createSpeechDetector, type SpeechDetector } from "./loudness.ts";
import type { Packet, Sound } from "./sound.ts";

/** No longer than this at a time, so that recordings are heard side by side. */
const TURN_MS = 10;
/** Packets that can't be decoded until it is given up. */
const MAX_BAD_PACKETS = 50;
/** "Silent" holds only if nearly all was heard: this share, but for the beginning that decoders need. */
const HEARD_SHARE = 0.9;
const LEAD_SECONDS = 0.15;

/** Someone who hears one sound of a file. */
interface Listener {
  decoder: Decoder | null;
  detector: SpeechDetector;
  /** What the packets say they play. */
  seconds: number;
}

/**
 * Whether somebody may be speaking in a recording. It is decoded from its beginning until that is sure, so that only silence
 * costs its whole length. True as well if it can't be told: a codec without a decoder, damage, no answer in `budgetMs`.
 */
export async function hasSpeech(bytes: Uint8Array, format: AudioFormat, budgetMs: number): Promise<boolean> {
  const listeners = new Map<Sound, Listener>();
  const until = performance.now() + budgetMs;
  let since = performance.now();
  let bad = 0;
  try {
    for (const packet of packetsOf(bytes, format)) {
      if (packet) {
        const listener = listeners.get(packet.sound) ?? (await openListener(listeners, packet.sound));
        bad += await hear(listener, packet);
        if (!listener.decoder || listener.detector.isSure() || bad > MAX_BAD_PACKETS) return true;
      }
      const now = performance.now();
      if (now > until) return true;
      if (now - since < TURN_MS) continue;
      await new Promise((resolve) => setImmediate(resolve));
      since = performance.now();
    }
    return listeners.size === 0 || [...listeners.values()].some(mayBeSpeech);
  } catch {
    return true;
  } finally {
    for (const { decoder } of listeners.values()) free(decoder);
  }
}

async function openListener(listeners: Map<Sound, Listener>, sound: Sound): Promise<Listener> {
  const listener = { decoder: await createDecoder(sound), detector: createSpeechDetector(), seconds: 0 };
  listeners.set(sound, listener);
  return listener;
}

/** Returns how many packets could not be decoded. */
async function hear(listener: Listener, { sound, data }: Packet): Promise<number> {
  listener.seconds += sound.secondsOf(data);
  try {
    await listener.decoder?.decode(data, listener.detector);
    return 0;
  } catch {
    return 1;
  }
}

/** A decoder that broke may break once more here; its memory goes with the last reference to it. */
function free(decoder: Decoder | null): void {
  try {
    decoder?.free();
  } catch {
    return;
  }
}

function mayBeSpeech({ detector, seconds }: Listener): boolean {
  return detector.verdict() || detector.seconds < seconds * HEARD_SHARE - LEAD_SECONDS;
}
