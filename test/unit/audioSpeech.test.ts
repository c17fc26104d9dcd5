import { afterAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { detectFormat } from "../../src/lib/audio/formats.ts";
import { createAudioInspector } from "../../src/lib/audio/inspector.ts";
import { createSpeechDetector } from "../../src/lib/audio/loudness.ts";
import { readPcm } from "../../src/lib/audio/pcm.ts";
import { hourOfSilence, recording, RECORDINGS } from "./recordings.ts";

/** Far more than any answer takes, so that a busy machine changes none. */
const inspector = createAudioInspector({ deadlineMs: 120_000 });
afterAll(() => inspector.close());

describe("who speaks is heard, quiet or not, and silence isn't", () => {
  for (const { name, bytes, format, text } of RECORDINGS)
    test(name, async () => expect(await inspector.hasSpeechEnergy(bytes, format)).toBe(text !== ""));
});

describe("an hour of silence is silence", () => {
  for (const format of ["mp3", "flac", "ogg", "wav"] as const)
    test(
      format,
      async () => expect(await inspector.hasSpeechEnergy(hourOfSilence(format), format)).toBe(false),
      60_000,
    );
});

test("a word isn't kept waiting by an hour", async () => {
  const answered: string[] = [];
  const hour = inspector.hasSpeechEnergy(hourOfSilence("mp3"), "mp3").then(() => answered.push("hour"));
  const word = inspector.hasSpeechEnergy(recording("speech.ogg").bytes, "ogg").then(() => answered.push("word"));
  await Promise.all([hour, word]);
  expect(answered).toEqual(["word", "hour"]);
});

test("a word after a long silence is heard", async () => {
  const word = recording("quiet.wav").bytes.subarray(44);
  const head = recording("quiet.wav").bytes.subarray(0, 44);
  const late = Buffer.concat([head, Buffer.alloc(32_000 * 300), word]);
  expect(await inspector.hasSpeechEnergy(late, "wav")).toBe(true);
});

test("what was asked stays the asker's", async () => {
  const { bytes } = recording("silence.wav");
  const copy = Buffer.from(bytes);
  expect(await inspector.hasSpeechEnergy(copy, "wav")).toBe(false);
  expect(Buffer.compare(copy, bytes)).toBe(0);
});

test("what can't be told counts as speech", async () => {
  const silence = (name: "silence.mp3" | "silence.flac") => Buffer.from(recording(name).bytes);
  const damaged = silence("silence.mp3");
  // Frames still begin where they did, but nothing between their headers makes sense.
  for (let at = 600; at < damaged.length; at++) if (at % 7 === 0 && damaged[at] !== 0xff) damaged[at]! ^= 0x5a;
  const wrongSums = silence("silence.flac");
  for (let at = wrongSums.indexOf(Buffer.from("fff8", "hex")); at >= 0; at = wrongSums.indexOf("fff8", at + 2, "hex"))
    wrongSums[at + 10]! ^= 1;
  for (const [name, bytes, format] of [
    ["another format", recording("silence.wav").bytes, "mp3"],
    ["nothing", new Uint8Array(), "wav"],
    ["damaged frames", wrongSums, "flac"],
    ["an unknown codec", withCodec("alac"), "m4a"],
  ] as const)
    expect([name, await inspector.hasSpeechEnergy(bytes, format)]).toEqual([name, true]);
  expect(detectFormat(damaged)).toBe("mp3");
  expect(await inspector.hasSpeechEnergy(damaged, "mp3")).toBeBoolean();
});

function withCodec(type: string): Buffer {
  const file = Buffer.from(recording("silence.m4a").bytes);
  file.write(type, file.indexOf("mp4a"));
  return file;
}

test("no answer in time counts as speech, and the next question is answered", async () => {
  const hasty = createAudioInspector({ deadlineMs: 1 });
  const hour = hourOfSilence("mp3");
  const answers = Array.from({ length: 8 }, () => hasty.hasSpeechEnergy(hour, "mp3"));
  expect(await Promise.all(answers)).toEqual(Array(8).fill(true));
  hasty.close();
  expect(await inspector.hasSpeechEnergy(recording("silence.mp3").bytes, "mp3")).toBe(false);
});

test("closing answers all that wait, and later questions at once", async () => {
  const closing = createAudioInspector();
  const hour = hourOfSilence("flac");
  const answers = Array.from({ length: 8 }, () => closing.hasSpeechEnergy(hour, "flac"));
  closing.close();
  closing.close();
  expect(await Promise.all(answers)).toEqual(Array(8).fill(true));
  expect(await closing.hasSpeechEnergy(recording("silence.wav").bytes, "wav")).toBe(true);
});

test("an idle inspector doesn't keep the process", async () => {
  const program = `
    import { createAudioInspector } from ${JSON.stringify(join(import.meta.dir, "../../src/lib/audio/inspector.ts"))};
    const bytes = require("node:fs").readFileSync(${JSON.stringify(join(import.meta.dir, "../fixtures/voice/noise.ogg"))});
    console.log(await createAudioInspector().hasSpeechEnergy(bytes, "ogg"));`;
  const child = Bun.spawn([process.execPath, "-e", program], { stdout: "pipe", stderr: "inherit" });
  expect(await child.exited).toBe(0);
  expect(await child.stdout.text()).toBe("false\n");
});

test("levels: a room is silent, a voice in it is not, nor is what is no number", () => {
  const rate = 16_000;
  const hum = (amplitude: number, seconds: number, offset = 0) =>
    Float32Array.from({ length: rate * seconds }, (_, at) => offset + amplitude * Math.sin(at / 10));
  const verdict = (...stretches: Float32Array[]) => {
    const detector = createSpeechDetector();
    for (const samples of stretches) detector.addSamples([samples], rate);
    return detector.verdict();
  };
  expect(verdict()).toBe(false);
  expect(verdict(hum(0, 2))).toBe(false);
  expect(verdict(hum(0.0005, 5))).toBe(false);
  // A microphone's constant part is no sound.
  expect(verdict(hum(0.0005, 5, 0.2))).toBe(false);
  expect(verdict(hum(0.0005, 5), hum(0.02, 0.3))).toBe(true);
  expect(verdict(hum(0.0005, 5), hum(0.02, 0.05))).toBe(false);
  // Very quiet, but well above its own room.
  expect(verdict(hum(0.00003, 5), hum(0.002, 0.5))).toBe(true);
  expect(verdict(hum(0.02, 0.1))).toBe(true);
  expect(verdict(Float32Array.of(...Array<number>(8_000).fill(Number.NaN)))).toBe(true);
  const detector = createSpeechDetector();
  detector.addSamples([hum(0, 1), hum(0.1, 1)], rate);
  expect([detector.isSure(), detector.seconds]).toEqual([true, expect.closeTo(1)]);
});

test("samples of all kinds are read", () => {
  const read = (encoding: "integer" | "float" | "alaw" | "mulaw", bytesPerSample: number, hex: string, channels = 1) =>
    readPcm(Buffer.from(hex, "hex"), { encoding, bytesPerSample, rate: 8_000 }, channels).map((each) => [...each]);
  expect(read("integer", 1, "0080ff")).toEqual([[-1, 0, 127 / 128]]);
  expect(read("integer", 2, "00800040", 2)).toEqual([[-1], [0.5]]);
  expect(read("integer", 3, "000080000040")).toEqual([[-1, 0.5]]);
  expect(read("integer", 4, "0000008000000040")).toEqual([[-1, 0.5]]);
  expect(read("float", 4, "0000003f")).toEqual([[0.5]]);
  expect(read("float", 8, "000000000000e03f")).toEqual([[0.5]]);
  expect(read("alaw", 1, "d52a")[0]![0]).toBeCloseTo(0, 2);
  expect(read("alaw", 1, "aa2a")[0]).toEqual([expect.closeTo(0.98, 1), expect.closeTo(-0.98, 1)]);
  expect(read("mulaw", 1, "ff7f8000")[0]).toEqual([0, -0, expect.closeTo(0.98, 1), expect.closeTo(-0.98, 1)]);
});
