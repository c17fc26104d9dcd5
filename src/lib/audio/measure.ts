import { adtsPackets } from "./aac.ts";
import { packetsOf, type AudioFormat } from "./formats.ts";
import { oggPackets } from "./ogg.ts";
import { viewOf, type Packets, type Sound } from "./sound.ts";
import { rawPcmPackets } from "./wav.ts";

/** What OpenAI's text-to-speech can send. */
export type SpeechFormat = "mp3" | "opus" | "aac" | "flac" | "wav" | "pcm";

/** No longer than this at a time, so that others are answered meanwhile. */
const TURN_MS = 4;

/**
 * How long a recording plays, in seconds; null if it can't be read. Every packet is counted, and what headers claim is not
 * believed, since this decides what is reserved. Never throws; a file of 25 MB takes some tens of milliseconds in turns.
 */
export function measureAudio(bytes: Uint8Array, format: AudioFormat): Promise<number | null> {
  return measure(packetsOf(bytes, format));
}

/** How long speech plays that was made by a provider, in seconds, also when its stream was cut; null if it can't be read. */
export function measureSpeech(bytes: Uint8Array, format: SpeechFormat): Promise<number | null> {
  const data = viewOf(bytes);
  if (format === "opus") return measure(oggPackets(data));
  if (format === "aac") return measure(adtsPackets(data));
  if (format === "pcm") return measure(rawPcmPackets(data));
  return measure(packetsOf(bytes, format));
}

async function measure(packets: Packets): Promise<number | null> {
  const lengths = new Map<Sound, number>();
  let since = performance.now();
  try {
    for (const packet of packets) {
      if (packet) lengths.set(packet.sound, (lengths.get(packet.sound) ?? 0) + packet.sound.secondsOf(packet.data));
      else if (performance.now() - since > TURN_MS) {
        await new Promise((resolve) => setImmediate(resolve));
        since = performance.now();
      }
    }
  } catch {
    // Absurd sizes. Whatever else a hostile file may provoke, it is unreadable, and no fault of ours.
    return null;
  }
  // Streams side by side, or one after the other: the sum is never too little.
  const seconds = [...lengths].reduce(
    (sum, [sound, length]) => sum + (length > sound.skipSeconds ? length - sound.skipSeconds : length),
    0,
  );
  return seconds > 0 ? seconds : null;
}
