import { expect, test } from "bun:test";
import { AUDIO_FORMATS, detectFormat, MEDIA_TYPES, packetsOf } from "../../src/lib/audio/formats.ts";
import { recording, RECORDINGS } from "./recordings.ts";

test("every recording is what it is, by its bytes", () => {
  expect(RECORDINGS.length).toBeGreaterThan(20);
  for (const { name, format, bytes } of RECORDINGS) expect([name, detectFormat(bytes)]).toEqual([name, format]);
  expect(new Set(RECORDINGS.map(({ format }) => format))).toEqual(new Set(AUDIO_FORMATS));
  expect(Object.keys(MEDIA_TYPES)).toEqual([...AUDIO_FORMATS]);
});

test("what is no recording is none", () => {
  const noise = Buffer.alloc(100_000, 0).map((_, index) => (index * 7_919 + (index >> 3) * 104_729) & 0xff);
  for (const [name, bytes] of Object.entries({
    empty: Buffer.alloc(0),
    "one byte": Buffer.of(0xff),
    "a zip": Buffer.concat([Buffer.from("PK\u0003\u0004\u0014\0\0\0\b\0", "latin1"), noise]),
    text: Buffer.from("What is the weather tomorrow? ".repeat(500)),
    json: Buffer.from(JSON.stringify({ audio: "AAAA".repeat(1_000) })),
    zeros: Buffer.alloc(100_000),
    "all ones": Buffer.alloc(100_000, 0xff),
    noise,
    png: Buffer.concat([Buffer.from("89504e470d0a1a0a", "hex"), noise]),
    gif: Buffer.concat([Buffer.from("GIF89a"), noise]),
    pdf: Buffer.from(`%PDF-1.7\n${"stream ".repeat(1_000)}`),
    avi: Buffer.concat([Buffer.from("RIFF\0\0\0\0AVI LIST"), noise]),
  }))
    expect([name, detectFormat(bytes)]).toEqual([name, null]);
});

test("a header without sound behind it is no recording", () => {
  const header = {
    wav: 44,
    m4a: 32,
    webm: 200,
    ogg: 28,
    flac: 42,
    mp3: 20,
  };
  for (const format of AUDIO_FORMATS) {
    const { bytes } = recording(`speech.${format}`);
    expect([format, detectFormat(bytes.subarray(0, header[format]))]).toEqual([format, null]);
  }
});

test("a video without a sound track is no recording", () => {
  // The same files with their one track called a video's.
  const m4a = Buffer.from(recording("speech.m4a").bytes);
  m4a.write("vide", m4a.indexOf("soun"));
  expect(detectFormat(m4a)).toBeNull();
  const webm = Buffer.from(recording("speech.webm").bytes);
  webm[webm.indexOf(Buffer.from("8381", "hex")) + 2] = 1;
  expect(detectFormat(webm)).toBeNull();
  const ogg = Buffer.from(recording("speech.ogg").bytes);
  ogg.write("\u0080theora", ogg.indexOf("OpusHead"), "latin1");
  expect(detectFormat(ogg)).toBeNull();
});

test("tags in front are passed over, and a codec that nobody decodes is refused", () => {
  const tag = Buffer.concat([Buffer.from("ID3\u0004\0\0\0\0\u0002\0", "latin1"), Buffer.alloc(256)]);
  for (const name of ["cbr.mp3", "speech.flac"] as const)
    expect(detectFormat(Buffer.concat([tag, tag, recording(name).bytes]))).toBe(recording(name).format);
  const m4a = Buffer.from(recording("speech.m4a").bytes);
  m4a.write("ac-3", m4a.indexOf("mp4a"));
  expect(detectFormat(m4a)).toBeNull();
  const webm = Buffer.from(recording("speech.webm").bytes);
  webm.write("A_AC3\0", webm.indexOf("A_OPUS"));
  expect(detectFormat(webm)).toBeNull();
  const wav = Buffer.from(recording("speech.wav").bytes);
  wav.writeUInt16LE(0x0161, 20);
  expect(detectFormat(wav)).toBeNull();
});

test("bytes of one format read as another hold nothing", () => {
  for (const { bytes, format } of RECORDINGS)
    for (const other of AUDIO_FORMATS.filter((candidate) => candidate !== format))
      expect([...packetsOf(bytes, other)].filter(Boolean)).toEqual([]);
});
