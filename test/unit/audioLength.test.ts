import { describe, expect, test } from "bun:test";
import { parseBuffer } from "music-metadata";
import { AUDIO_FORMATS, type AudioFormat, detectFormat } from "../../src/lib/audio/formats.ts";
import { measureAudio, measureSpeech, type SpeechFormat } from "../../src/lib/audio/measure.ts";
import { adtsSpeech, hourOfSilence, recording, RECORDINGS, withNumber } from "./recordings.ts";

/** Coders work in blocks, and begin and end with part of one: 64 ms in AAC of 16 kHz. */
const BLOCK_SECONDS = 0.07;

test("every recording is as long as a decoder makes it", async () => {
  for (const { name, bytes, format, seconds } of RECORDINGS) {
    const measured = (await measureAudio(bytes, format)) ?? -1;
    expect([name, Math.abs(measured - seconds) <= BLOCK_SECONDS, measured]).toEqual([name, true, measured]);
  }
});

test("music-metadata agrees, where it can read the length", async () => {
  for (const { name, bytes, format } of RECORDINGS.filter((each) => each.name !== "chrome.webm")) {
    const { duration = -1 } = (await parseBuffer(bytes, undefined, { duration: true })).format;
    // Fragments have no length in the header.
    if (name === "fragmented.m4a") continue;
    expect([name, await measureAudio(bytes, format)]).toEqual([name, expect.closeTo(duration, 0)]);
  }
});

describe("an hour of silence is an hour", () => {
  for (const format of ["mp3", "flac", "ogg", "wav"] as const) {
    test(format, async () => {
      const bytes = hourOfSilence(format);
      expect(detectFormat(bytes)).toBe(format);
      expect(Math.abs(((await measureAudio(bytes, format)) ?? 0) - 3_600)).toBeLessThanOrEqual(1);
    });
  }
});

test("a file that was cut is as long as its rest", async () => {
  for (const { bytes, format, name, seconds } of RECORDINGS.filter((each) => each.text !== "")) {
    for (const share of [0.1, 0.3, 0.5, 0.9, 0.99]) {
      const rest = bytes.subarray(0, Math.floor(bytes.length * share));
      const measured = await measureAudio(rest, format);
      // Headers, indexes and padding take their part of these small files.
      const isRest = measured === null ? share <= 0.3 : Math.abs(measured - seconds * share) < 0.3 + seconds * 0.2;
      expect([name, share, isRest, measured]).toEqual([name, share, true, measured]);
    }
  }
});

/** `speech.*` with headers that lie; the length must stay what it is. */
const LIES: [string, AudioFormat, (bytes: Uint8Array) => Uint8Array][] = [
  ["a data chunk of 4 GB", "wav", (bytes) => withNumber(bytes, "data", 0, 0xffffffff)],
  ["a data chunk of nothing, as in a stream", "wav", (bytes) => withNumber(bytes, "data", 0, 0)],
  ["a data chunk of ten bytes", "wav", (bytes) => withNumber(bytes, "data", 0, 0x0a000000)],
  [
    "four billion frames",
    "mp3",
    (bytes) => withNumber(withNumber(bytes, "Xing", 4, 0xffffffff), "Info", 4, 0xffffffff),
  ],
  ["one frame", "mp3", (bytes) => withNumber(withNumber(bytes, "Xing", 4, 1), "Info", 4, 1)],
  ["years, by the movie's header", "m4a", (bytes) => withNumber(bytes, "mvhd", 16, 0xffffffff)],
  ["years, by the track's header", "m4a", (bytes) => withNumber(bytes, "mdhd", 16, 0xffffffff)],
  ["no time at all, by the track's header", "m4a", (bytes) => withNumber(bytes, "mdhd", 16, 1)],
  ["frames of one sample", "m4a", (bytes) => withNumber(bytes, "stts", 12, 1)],
  ["frames of days", "m4a", (bytes) => withNumber(bytes, "stts", 12, 0xffffffff)],
  ["an edit list of one tick", "m4a", (bytes) => withNumber(bytes, "elst", 8, 1)],
  ["a length of 10^300", "webm", (bytes) => webmDuration(bytes, 1e300)],
  ["no length", "webm", (bytes) => webmDuration(bytes, 0)],
  ["pages at the end of time", "ogg", (bytes) => oggTimes(bytes, 0x7fffffff)],
  ["pages at the beginning of time", "ogg", (bytes) => oggTimes(bytes, 0)],
  ["10^12 samples", "flac", (bytes) => flacTotal(bytes, 0xffffffff)],
  ["one sample", "flac", (bytes) => flacTotal(bytes, 1)],
];

test("headers that lie change nothing", async () => {
  for (const [lie, format, tell] of LIES) {
    const { bytes, seconds } = recording(`speech.${format}`);
    const told = tell(bytes);
    expect([lie, Buffer.compare(told, bytes) !== 0]).toEqual([lie, true]);
    const measured = (await measureAudio(told, format)) ?? -1;
    expect([lie, Math.abs(measured - seconds) <= BLOCK_SECONDS, measured]).toEqual([lie, true, measured]);
  }
});

function webmDuration(bytes: Uint8Array, value: number): Buffer {
  const copy = Buffer.from(bytes);
  copy.writeDoubleBE(value, copy.indexOf(Buffer.from("448988", "hex")) + 3);
  return copy;
}

/** The upper half of each page's time is this number. */
function oggTimes(bytes: Uint8Array, high: number): Buffer {
  const copy = Buffer.from(bytes);
  for (let at = copy.indexOf("OggS"); at >= 0; at = copy.indexOf("OggS", at + 1)) {
    copy.writeUInt32LE(high, at + 10);
    copy.writeUInt32LE(0, at + 6);
  }
  return copy;
}

function flacTotal(bytes: Uint8Array, low: number): Buffer {
  const copy = Buffer.from(bytes);
  copy[21] = copy[21]! | 15;
  copy.writeUInt32BE(low, 22);
  return copy;
}

test("claims that can't be are unreadable, or of the little that is there", async () => {
  const m4a = recording("speech.m4a").bytes;
  const table = Buffer.from(m4a).indexOf("stsz");
  const bomb = Buffer.from(m4a);
  // Four billion packets of one byte each, all in the first chunk.
  bomb.writeUInt32BE(1, table + 8);
  bomb.writeUInt32BE(0xffffffff, table + 12);
  withRun(bomb, 0xffffffff);
  expect(await measureAudio(bomb, "m4a")).toBeNull();
  for (const rate of [0, 1, 0xffffffff]) {
    const wav = Buffer.from(recording("speech.wav").bytes);
    wav.writeUInt32LE(rate, 24);
    expect(await measureAudio(wav, "wav")).toBeNull();
  }
  const tag = Buffer.from("ID3\u0004\0\0\u007f\u007f\u007f\u007f", "latin1");
  expect(await measureAudio(Buffer.concat([tag, recording("cbr.mp3").bytes]), "mp3")).toBeNull();
  const flac = Buffer.from(recording("speech.flac").bytes);
  flac.writeUIntBE(0xffffff, 5, 3);
  expect(await measureAudio(flac, "flac")).toBeNull();
  // One sample a second, and blocks of 18 hours each.
  const slow = Buffer.from(recording("speech.flac").bytes);
  slow.writeUIntBE(0x000010 | (slow[20]! & 15), 18, 3);
  expect(await measureAudio(slow, "flac")).toBeNull();
});

function withRun(bytes: Buffer, count: number): void {
  bytes.writeUInt32BE(count, bytes.indexOf("stsc") + 16);
}

test("an edit list can't play a second a thousand times, but may leave something out", async () => {
  const { bytes, seconds } = recording("speech.m4a");
  expect(await measureAudio(withEdits(bytes, 1_000), "m4a")).toBeNull();
  expect(await measureAudio(withEdits(bytes, 0), "m4a")).toBeCloseTo(seconds, 0);
});

/** The file with as many more edits, each the whole of it. */
function withEdits(bytes: Uint8Array, more: number): Buffer {
  const file = Buffer.from(bytes);
  const list = file.indexOf("elst");
  const edit = file.subarray(list + 12, list + 24);
  for (const type of ["moov", "trak", "edts", "elst"]) {
    const at = file.indexOf(type) - 4;
    file.writeUInt32BE(file.readUInt32BE(at) + 12 * more, at);
  }
  file.writeUInt32BE(1 + more, list + 8);
  const place = file.indexOf("stco") + 12;
  file.writeUInt32BE(file.readUInt32BE(place) + 12 * more, place);
  return Buffer.concat([file.subarray(0, list + 24), ...Array<Buffer>(more).fill(edit), file.subarray(list + 24)]);
}

test("speech as a provider sends it, whole and cut", async () => {
  const wav = recording("speech.wav").bytes;
  const streamed = withNumber(withNumber(wav, "RIFF", 0, 0xffffffff), "data", 0, 0xffffffff);
  const speech: [SpeechFormat, Uint8Array, number][] = [
    ["mp3", recording("speech.mp3").bytes, recording("speech.mp3").seconds],
    ["mp3", recording("cbr.mp3").bytes, recording("cbr.mp3").seconds],
    ["opus", recording("speech.ogg").bytes, recording("speech.ogg").seconds],
    ["aac", adtsSpeech(), recording("speech.m4a").seconds],
    ["flac", recording("speech.flac").bytes, recording("speech.flac").seconds],
    ["wav", streamed, recording("speech.wav").seconds],
    ["pcm", wav.subarray(44), (wav.length - 44) / 48_000],
  ];
  for (const [format, bytes, seconds] of speech) {
    expect([format, await measureSpeech(bytes, format)]).toEqual([format, expect.closeTo(seconds, 0)]);
    const half = await measureSpeech(bytes.subarray(0, bytes.length / 2), format);
    expect([format, half]).toEqual([format, expect.closeTo(seconds / 2, 0)]);
    expect(await measureSpeech(new Uint8Array(), format)).toBeNull();
  }
  expect(await measureSpeech(wav.subarray(44, 47), "pcm")).toBe(1 / 24_000);
});

test("no format is measured as another", async () => {
  for (const { bytes, format } of RECORDINGS)
    for (const other of AUDIO_FORMATS.filter((candidate) => candidate !== format))
      expect(await measureAudio(bytes, other)).toBeNull();
});
