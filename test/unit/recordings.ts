/** The recordings of `test/fixtures/voice/`, and what can be made of them. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { packetsOf, type AudioFormat } from "../../src/lib/audio/formats.ts";
import manifest from "../fixtures/voice/manifest.json";

export interface Recording {
  name: string;
  format: AudioFormat;
  /** As a decoder gives it (ffmpeg). */
  seconds: number;
  /** What is said; "" in silence and noise. */
  text: string;
  bytes: Uint8Array;
}

/** All of them. */
export const RECORDINGS: readonly Recording[] = Object.entries(manifest).map(([name, { format, seconds, text }]) => ({
  name,
  format: format as AudioFormat,
  seconds,
  text,
  bytes: new Uint8Array(readFileSync(join(import.meta.dir, "../fixtures/voice", name))),
}));

/** One of them. */
export function recording(name: keyof typeof manifest): Recording {
  return RECORDINGS.find((candidate) => candidate.name === name)!;
}

/** A copy in which four bytes behind each occurrence of a mark (and `skip` more) are this number. */
export function withNumber(bytes: Uint8Array, mark: string, skip: number, value: number): Buffer {
  const copy = Buffer.from(bytes);
  for (let at = copy.indexOf(mark, 0, "latin1"); at >= 0; at = copy.indexOf(mark, at + 1, "latin1"))
    copy.writeUInt32BE(value, at + mark.length + skip);
  return copy;
}

/** The coded packets of a recording. */
export function packets(bytes: Uint8Array, format: AudioFormat): Buffer[] {
  return [...packetsOf(bytes, format)].flatMap((packet) => (packet ? [packet.data] : []));
}

/** `speech.m4a` as OpenAI's "aac" has it: the same frames, each with an ADTS header (LC, 16 kHz, mono). */
export function adtsSpeech(): Buffer {
  const { bytes } = recording("speech.m4a");
  return Buffer.concat(
    packets(bytes, "m4a").flatMap((frame) => {
      const length = frame.length + 7;
      const middle = [0xf1, (1 << 6) | (8 << 2), (1 << 6) | (length >> 11), (length >> 3) & 0xff];
      return [Buffer.from([0xff, ...middle, ((length & 7) << 5) | 0x1f, 0xfc]), frame];
    }),
  );
}

/** An hour in which nobody speaks, made of the silent recordings. */
export function hourOfSilence(format: "mp3" | "flac" | "ogg" | "wav"): Uint8Array {
  if (format === "wav") return silentWav(3_600);
  const { bytes } = recording(`silence.${format}`);
  const parts = packets(bytes, format);
  if (format === "ogg") {
    const [once, twice] = [1, 2].map((count) => playedSeconds(repeatPages(bytes, count), format));
    return repeatPages(bytes, Math.round(3_600 / (twice! - once!)));
  }
  const start = format === "flac" ? Buffer.from(bytes).indexOf(parts[0]!) : 0;
  const steady = parts.slice(1, -1);
  const secondsEach = format === "flac" ? FLAC_SECONDS : MP3_SECONDS;
  const count = Math.round(3_600 / secondsEach / steady.length);
  return Buffer.concat([bytes.subarray(0, start), ...Array<Buffer[]>(count).fill(steady).flat()]);
}

/** 1152 samples of 16 kHz, and of MPEG 2's frames half as many. */
const FLAC_SECONDS = 1_152 / 16_000;
const MP3_SECONDS = 576 / 16_000;

/** What the packets play, nothing cut off at the ends. */
function playedSeconds(bytes: Uint8Array, format: AudioFormat): number {
  return [...packetsOf(bytes, format)].reduce((sum, packet) => sum + (packet?.sound.secondsOf(packet.data) ?? 0), 0);
}

/** 8 kHz, 8 bits. */
function silentWav(seconds: number): Buffer {
  const samples = Buffer.alloc(seconds * 8_000, 0x80);
  const head = Buffer.alloc(44);
  head.write("RIFF", 0);
  head.write("WAVEfmt ", 8);
  head.writeUInt32LE(16, 16);
  head.writeUInt16LE(1, 20);
  head.writeUInt16LE(1, 22);
  head.writeUInt32LE(8_000, 24);
  head.writeUInt32LE(8_000, 28);
  head.writeUInt16LE(1, 32);
  head.writeUInt16LE(8, 34);
  head.write("data", 36);
  head.writeUInt32LE(samples.length, 40);
  return Buffer.concat([head, samples]);
}

/** Both header pages once, the others again and again. */
function repeatPages(bytes: Uint8Array, count: number): Buffer {
  const file = Buffer.from(bytes);
  const third = file.indexOf("OggS", file.indexOf("OggS", 4) + 4);
  return Buffer.concat([file.subarray(0, third), ...Array<Buffer>(count).fill(file.subarray(third))]);
}
