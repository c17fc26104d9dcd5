/** Files that recorders make now and then, built here from the recordings' own packets. */
import { afterAll, expect, test } from "bun:test";
import { detectFormat, packetsOf, type AudioFormat } from "../../src/lib/audio/formats.ts";
import { createAudioInspector } from "../../src/lib/audio/inspector.ts";
import { measureAudio } from "../../src/lib/audio/measure.ts";
import { packets, recording } from "./recordings.ts";

const inspector = createAudioInspector({ deadlineMs: 120_000 });
afterAll(() => inspector.close());

/** An EBML element, its size in four bytes; or left open, as live recorders do, with its inside behind it. */
function element(idHex: string, body?: Uint8Array): Buffer {
  const id = Buffer.from(idHex, "hex");
  if (!body) return Buffer.concat([id, Buffer.of(0xff)]);
  const size = Buffer.alloc(4);
  size.writeUInt32BE(0x10000000 + body.length);
  return Buffer.concat([id, size, body]);
}

/** A live WebM of one track; of each block the flags and what follows them. */
function webm(codec: string, setup: Uint8Array, blocks: { flags: number; body: Uint8Array }[]): Buffer {
  const track = [
    element("d7", Buffer.of(1)),
    element("83", Buffer.of(2)),
    element("86", Buffer.from(codec)),
    element("63a2", setup),
  ];
  return Buffer.concat([
    element("1a45dfa3", element("4282", Buffer.from("webm"))),
    element("18538067"),
    element("1654ae6b", element("ae", Buffer.concat(track))),
    element("1f43b675"),
    ...blocks.map(({ flags, body }) => element("a3", Buffer.concat([Buffer.of(0x81, 0, 0, flags), body]))),
  ]);
}

async function expectSpeech(bytes: Buffer, format: AudioFormat, seconds: number): Promise<void> {
  expect(detectFormat(bytes)).toBe(format);
  expect(await measureAudio(bytes, format)).toBeCloseTo(seconds, 1);
  expect(await inspector.hasSpeechEnergy(bytes, format)).toBe(true);
}

const opus = recording("speech.ogg");
const opusHead = Buffer.from(opus.bytes).subarray(28, 47);

test("Opus in a live WebM, alone in blocks and laced in each way", async () => {
  const frames = packets(opus.bytes, "ogg");
  await expectSpeech(
    webm(
      "A_OPUS",
      opusHead,
      frames.map((body) => ({ flags: 0x80, body })),
    ),
    "webm",
    opus.seconds,
  );
  const pairs = frames.flatMap((frame, index) =>
    index % 2 === 0 && frames[index + 1] ? [[frame, frames[index + 1]!]] : [],
  );
  const xiph = pairs.map(([first, second]) => ({
    flags: 0x82,
    body: Buffer.concat([Buffer.of(1), sizeOf(first!), first!, second!]),
  }));
  await expectSpeech(webm("A_OPUS", opusHead, xiph), "webm", pairs.length * 0.04);
  const ebml = pairs.map(([first, second]) => ({
    flags: 0x86,
    body: Buffer.concat([Buffer.of(1, 0x40 | (first!.length >> 8), first!.length & 0xff), first!, second!]),
  }));
  await expectSpeech(webm("A_OPUS", opusHead, ebml), "webm", pairs.length * 0.04);
  const fixed = frames.map((frame) => ({ flags: 0x84, body: Buffer.concat([Buffer.of(1), frame, frame]) }));
  expect(await measureAudio(webm("A_OPUS", opusHead, fixed), "webm")).toBeCloseTo(opus.seconds * 2, 1);
});

/** As Xiph writes sizes: bytes of 255 and the rest. */
function sizeOf({ length }: Buffer): Buffer {
  return Buffer.of(...Array<number>(Math.floor(length / 255)).fill(255), length % 255);
}

test("Vorbis in WebM, its three headers in one field", async () => {
  const { bytes, seconds } = recording("vorbis.ogg");
  const first = [...packetsOf(bytes, "ogg")].find(Boolean)!;
  const [identification, comments, setup] = first.sound.setup as [Buffer, Buffer, Buffer];
  const field = Buffer.concat([
    Buffer.of(2),
    sizeOf(identification),
    sizeOf(comments),
    identification,
    comments,
    setup,
  ]);
  const blocks = packets(bytes, "ogg").map((body) => ({ flags: 0x80, body }));
  await expectSpeech(webm("A_VORBIS", field, blocks), "webm", seconds);
});

test("Ogg files one after the other, as a player plays them", async () => {
  const [first, second] = [recording("speech.ogg"), recording("vorbis.ogg")];
  const file = Buffer.concat([first.bytes, second.bytes]);
  // Both were made with the same number for their stream.
  await expectSpeech(file, "ogg", first.seconds + second.seconds);
});

test("frames between which something else stands", async () => {
  const { bytes } = recording("cbr.mp3");
  const frames = packets(bytes, "mp3");
  const file = Buffer.concat([
    frames[0]!,
    frames[1]!,
    frames[2]!,
    ...frames.flatMap((frame) => [Buffer.from("noise"), frame]),
  ]);
  await expectSpeech(file, "mp3", (frames.length + 3) * (576 / 16_000));
});

test("WAVE files of other kinds", async () => {
  const { bytes, seconds } = recording("speech.wav");
  const samples = Buffer.from(bytes).subarray(44);
  const [bytesEach, floats] = [
    Buffer.from(samples.filter((_, at) => at % 2 === 1).map((high) => high ^ 0x80)),
    Buffer.from(Float32Array.from(new Int16Array(new Uint8Array(samples).buffer), (sample) => sample / 32_768).buffer),
  ];
  for (const [tag, bits, body] of [
    [1, 8, bytesEach],
    [3, 32, floats],
    [0xfffe, 16, samples],
  ] as const) {
    const file = wav(tag, bits, body);
    await expectSpeech(file, "wav", seconds);
    // Behind the samples, as editors put it, and of no length.
    await expectSpeech(Buffer.concat([file, Buffer.from("LIST\u0004\0\0\0INFO", "latin1")]), "wav", seconds);
  }
});

/** 16 kHz mono, with the long form of the header. */
function wav(tag: number, bits: number, samples: Buffer): Buffer {
  const head = Buffer.alloc(68);
  head.write("RIFF\0\0\0\0WAVEfmt \u0028", "latin1");
  head.writeUInt16LE(tag, 20);
  head.writeUInt16LE(1, 22);
  head.writeUInt32LE(16_000, 24);
  head.writeUInt32LE((16_000 * bits) / 8, 28);
  head.writeUInt16LE(bits / 8, 32);
  head.writeUInt16LE(bits, 34);
  head.writeUInt16LE(22, 36);
  head.writeUInt16LE(1, 44);
  head.write("data", 60);
  head.writeUInt32LE(samples.length, 64);
  return Buffer.concat([head, samples]);
}
