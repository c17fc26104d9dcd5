/** Recordings damaged at random: nothing may throw, and no length may be more than such a file can hold. */
import { afterAll, describe, expect, test } from "bun:test";
import { AUDIO_FORMATS, detectFormat } from "../../src/lib/audio/formats.ts";
import { createAudioInspector } from "../../src/lib/audio/inspector.ts";
import { measureAudio, measureSpeech, type SpeechFormat } from "../../src/lib/audio/measure.ts";
import { adtsSpeech, recording, RECORDINGS } from "./recordings.ts";

const SEED = 20_261_126;
const ROUNDS = 300;
/** Every so many rounds are heard, too. */
const HEARD = 12;
/** The densest there is: Apple Lossless, a packet of one byte for 16,384 samples of 4 kHz. */
const MAX_SECONDS_PER_BYTE = 4.1;

const inspector = createAudioInspector({ deadlineMs: 120_000 });
afterAll(() => inspector.close());

/** Numbers from 0 to below 1, the same ones for the same seed. */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Cut, flipped, doubled, or with a piece gone; mostly near the beginning, where headers are. */
function damage(bytes: Uint8Array, random: () => number): Buffer {
  const below = (limit: number) => Math.floor(random() * limit);
  const place = () => (random() < 0.5 ? below(Math.min(600, bytes.length)) : below(bytes.length));
  const kind = below(5);
  if (kind === 0) return Buffer.from(bytes.subarray(0, below(bytes.length)));
  const [from, length] = [place(), 1 + below(64)];
  if (kind === 1) return Buffer.concat([bytes.subarray(0, from), bytes.subarray(from + length)]);
  if (kind === 2) return Buffer.concat([bytes.subarray(0, from + length), bytes.subarray(from)]);
  const copy = Buffer.from(bytes);
  if (kind === 3) copy.fill(random() < 0.5 ? 0 : 0xff, from, Math.min(from + length, copy.length));
  for (let flips = 1 + below(12); flips > 0; flips--) copy[place()] = below(256);
  return copy;
}

function isSane(seconds: number | null, bytes: number): boolean {
  return seconds === null || (seconds > 0 && seconds <= bytes * MAX_SECONDS_PER_BYTE);
}

describe("damaged recordings", () => {
  RECORDINGS.forEach(({ name, bytes, format }, index) => {
    test(name, async () => {
      const random = randomFrom(SEED + index);
      for (let round = 0; round < ROUNDS; round++) {
        const damaged = damage(bytes, random);
        const found = detectFormat(damaged);
        expect([null, ...AUDIO_FORMATS]).toContain(found);
        const seconds = await measureAudio(damaged, found ?? format);
        expect([round, seconds, isSane(seconds, damaged.length)]).toEqual([round, seconds, true]);
        if (round % HEARD !== 0) continue;
        expect(await inspector.hasSpeechEnergy(damaged, found ?? format)).toBeBoolean();
      }
    });
  });
});

test("damaged speech of a provider", async () => {
  const random = randomFrom(SEED);
  const speech: [SpeechFormat, Uint8Array][] = [
    ["aac", adtsSpeech()],
    ["opus", recording("speech.ogg").bytes],
    ["pcm", recording("speech.wav").bytes],
  ];
  for (const [format, bytes] of speech)
    for (let round = 0; round < ROUNDS; round++) {
      const damaged = damage(bytes, random);
      const seconds = await measureSpeech(damaged, format);
      expect([format, round, seconds, isSane(seconds, damaged.length)]).toEqual([format, round, seconds, true]);
    }
});
