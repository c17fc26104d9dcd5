import { hasMark, type Sound } from "./sound.ts";

const RATE = 48_000;
/** Longest packet there may be: 120 ms. */
const MAX_SAMPLES = 5_760;
/** A decoder's start-up; more than this is a lie to look shorter. */
const MAX_SKIP_SAMPLES = MAX_SAMPLES;
/** Frame lengths at 48 kHz, by the upper five bits of a packet's first byte: SILK, hybrid, CELT. */
const SILK = [480, 960, 1_920, 2_880];
const HYBRID = [480, 960];
const CELT = [120, 240, 480, 960];

/** Opus from its OpusHead packet (Ogg, WebM); null for anything else. */
export function opusSound(head: Buffer): Sound | null {
  if (!hasMark(head, 0, "OpusHead") || head.length < 19) return null;
  return opusOf(head[9]!, head.readUInt16LE(10));
}

/** Opus with its count of channels and pre-skip (samples of 48 kHz). */
export function opusOf(channels: number, preSkip: number): Sound {
  return {
    codec: "opus",
    channels,
    setup: [],
    skipSeconds: Math.min(preSkip, MAX_SKIP_SAMPLES) / RATE,
    secondsOf: (packet) => samplesOf(packet) / RATE,
  };
}

function samplesOf(packet: Buffer): number {
  if (packet.length === 0) return 0;
  const mode = packet[0]! >> 3;
  const frame = mode < 12 ? SILK[mode & 3]! : mode < 16 ? HYBRID[mode & 1]! : CELT[mode & 3]!;
  const kind = packet[0]! & 3;
  const count = kind === 0 ? 1 : kind < 3 ? 2 : (packet[1] ?? 0) & 63;
  const samples = frame * count;
  return samples > MAX_SAMPLES ? 0 : samples;
}
