import { frames, type FrameHeader } from "./frames.ts";
import { isRate, type Packets, type Sound } from "./sound.ts";

/** Hz, by the index that AAC writes. */
const AAC_RATES = [
  96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350,
];
/** Object types whose frames are of 1024 (or 960) samples: Main, LC, SSR, LTP, scalable, and their error-resilient kin. */
const LONG_FRAMES = [1, 2, 3, 4, 6, 17, 19, 20];
/** Low delay, as iPhones record in calls: 512 (or 480). */
const SHORT_FRAMES = [23, 39];
const LOW_COMPLEXITY = 2;
const SBR = 5;
const PARAMETRIC_STEREO = 29;
const ESCAPE = 31;

/** The frames of AAC without a container (ADTS), OpenAI's "aac". */
export function* adtsPackets(data: Buffer): Packets {
  let sound: Sound | undefined;
  for (const frame of frames(data, 0, readAdts)) {
    if (!frame) yield undefined;
    else {
      const { rate, channels, bytes } = frame.header;
      sound ??= {
        codec: "aac",
        channels,
        setup: [],
        skipSeconds: 0,
        // Up to four blocks of 1024 samples; the count is in the header.
        secondsOf: (packet) => (((packet[6]! & 3) + 1) * 1024) / rate,
      };
      yield { sound, data: data.subarray(frame.at, frame.at + bytes) };
    }
  }
}

function readAdts(data: Buffer, at: number): FrameHeader | null {
  if (at + 7 > data.length || data[at] !== 0xff || (data[at + 1]! & 0xf6) !== 0xf0) return null;
  const index = (data[at + 2]! >> 2) & 15;
  const rate = AAC_RATES[index];
  const channels = ((data[at + 2]! & 1) << 2) | (data[at + 3]! >> 6);
  const bytes = ((data[at + 3]! & 3) << 11) | (data[at + 4]! << 3) | (data[at + 5]! >> 5);
  if (!rate || bytes < 8) return null;
  return { bytes, samples: ((data[at + 6]! & 3) + 1) * 1024, rate, channels, key: index };
}

/** AAC as an MP4 holds it, from its AudioSpecificConfig; null for an object type of unknown frame length. */
export function aacSound(config: Buffer): Sound | null {
  const { type, rate, channels, isShorter } = readConfig(config);
  const isLong = LONG_FRAMES.includes(type);
  if (!isRate(rate) || (!isLong && !SHORT_FRAMES.includes(type))) return null;
  const seconds = (isLong ? (isShorter ? 960 : 1024) : isShorter ? 480 : 512) / rate;
  return { codec: "aac", channels, setup: [config], skipSeconds: 0, secondsOf: () => seconds };
}

/** Whether frames are those of AAC LC, the kind that all but calls and archives use. */
export function isLowComplexity(config: Buffer): boolean {
  return readConfig(config).type === LOW_COMPLEXITY;
}

function readConfig(config: Buffer): { type: number; rate: number; channels: number; isShorter: boolean } {
  const bits = createBits(config);
  let type = readType(bits);
  const rate = readRate(bits);
  const channels = bits(4);
  // These wrap another type, whose frames they extend.
  if (type === SBR || type === PARAMETRIC_STEREO) {
    readRate(bits);
    type = readType(bits);
  }
  return { type, rate, channels, isShorter: bits(1) === 1 };
}

/** Reads the next so many bits as a number, the highest first; zeros behind the end. */
export type Bits = (count: number) => number;

function readType(bits: Bits): number {
  const type = bits(5);
  return type === ESCAPE ? 32 + bits(6) : type;
}

function readRate(bits: Bits): number {
  const index = bits(4);
  return index === 15 ? bits(24) : (AAC_RATES[index] ?? 0);
}

/** A reader from the beginning. */
export function createBits(data: Buffer): Bits {
  let at = 0;
  return (count) => {
    let value = 0;
    for (let read = 0; read < count; read++, at++) value = value * 2 + (((data[at >> 3] ?? 0) >> (7 - (at & 7))) & 1);
    return value;
  };
}
