import { readFileSync } from "node:fs";
import { join } from "node:path";

/**
 * A tone of any length in the six formats that OpenAI speaks: one that beeps once a second, playable from the first
 * piece on. mp3, aac and opus repeat the frames of one stored second (test/fixtures/voice/tone.*, made by tone.sh: a frame
 * of the mp3 refers to no other, -reservoir 0); flac, wav and pcm are calculated.
 */
export interface Tone {
  /** So many seconds more, with the container's head in front of the first. Rounded to whole frames in all, not each. */
  seconds(more: number): Uint8Array;
  /** What the container says at its end; empty for most. */
  end(): Uint8Array;
}
export type ToneFormat = "mp3" | "opus" | "aac" | "flac" | "wav" | "pcm";

const HERTZ = 24_000;
/** Samples in a piece of bare sound, and in a block of flac: a second is a whole number of either. */
const PIECE = 240;
const FLAC_BLOCK = 600;
const OGG_HERTZ = 48_000;
const NOTHING = Buffer.alloc(0);

export function startTone(format: ToneFormat): Tone {
  switch (format) {
    case "mp3":
      return framed(NOTHING, 576 / HERTZ, cycle(mp3Frames(storedSecond("mp3"))));
    case "aac":
      return framed(NOTHING, 1024 / HERTZ, cycle(aacFrames(storedSecond("aac"))));
    case "flac":
      return framed(flacHead(), FLAC_BLOCK / HERTZ, flacFrame);
    case "wav":
      return framed(wavHead(), PIECE / HERTZ, piece);
    case "pcm":
      return framed(NOTHING, PIECE / HERTZ, piece);
    case "opus":
      return oggOpus(oggPackets(storedSecond("opus")));
  }
}

/** Frames of one length each, one after the other. */
function framed(head: Buffer, frameSeconds: number, frame: (n: number) => Uint8Array): Tone {
  let secondsAsked = 0;
  let frames = 0;
  return {
    seconds(more) {
      const parts: Uint8Array[] = secondsAsked === 0 ? [head] : [];
      secondsAsked += more;
      for (const end = Math.round(secondsAsked / frameSeconds); frames < end; frames++) parts.push(frame(frames));
      return Buffer.concat(parts);
    },
    end: () => NOTHING,
  };
}

const storedSecond = (format: string) => readFileSync(join(import.meta.dir, `../fixtures/voice/tone.${format}`));
const cycle =
  <T>(items: T[]) =>
  (n: number) =>
    items[n % items.length]!;

// MPEG-2 layer III at 24 kHz: 576 samples a frame; bit rate and padding give its length.
function mp3Frames(file: Buffer): Buffer[] {
  const kilobits = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];
  return split(file, (at) => {
    const padding = (file[at + 2]! >> 1) & 1;
    return Math.floor((72_000 * kilobits[file[at + 2]! >> 4]!) / HERTZ) + padding;
  });
}

// ADTS: 13 bits of the header are the frame's length.
function aacFrames(file: Buffer): Buffer[] {
  return split(file, (at) => (file.readUInt32BE(at + 3) >>> 13) & 0x1fff);
}

function split(file: Buffer, lengthAt: (at: number) => number): Buffer[] {
  const frames: Buffer[] = [];
  for (let at = 0; at < file.length; at += frames.at(-1)!.length) {
    const length = lengthAt(at);
    if (!(length > 0) || at + length > file.length) throw new Error(`no frame at ${at}`);
    frames.push(file.subarray(at, at + length));
  }
  return frames;
}

/** A second's samples from one on, 16 bits each, low byte first. */
function samplesFrom(n: number, count: number): Buffer {
  const at = (n % HERTZ) * 2;
  return samples().subarray(at, at + count * 2);
}

const piece = (n: number) => samplesFrom(n * PIECE, PIECE);

let second: Buffer | undefined;
function samples(): Buffer {
  if (second) return second;
  second = Buffer.alloc(HERTZ * 2);
  for (let n = 0; n < HERTZ; n++) {
    const t = n / HERTZ;
    second.writeInt16LE(Math.round(11_000 * Math.sin(2 * Math.PI * 330 * t) * Math.sin(Math.PI * t)), n * 2);
  }
  return second;
}

/** As OpenAI sends it: the sizes are not known when it begins. */
function wavHead(): Buffer {
  const head = Buffer.alloc(44);
  head.write("RIFF", 0, "latin1");
  head.writeUInt32LE(0xffffffff, 4);
  head.write("WAVEfmt ", 8, "latin1");
  head.writeUInt32LE(16, 16);
  head.writeUInt16LE(1, 20);
  head.writeUInt16LE(1, 22);
  head.writeUInt32LE(HERTZ, 24);
  head.writeUInt32LE(HERTZ * 2, 28);
  head.writeUInt16LE(2, 32);
  head.writeUInt16LE(16, 34);
  head.write("data", 36, "latin1");
  head.writeUInt32LE(0xffffffff, 40);
  return head;
}

/** STREAMINFO: 24 kHz, mono, 16 bits, blocks of one size, length unknown. */
function flacHead(): Buffer {
  const head = Buffer.alloc(42);
  head.write("fLaC", 0, "latin1");
  head.writeUInt32BE(0x80_00_00_22, 4);
  head.writeUInt16BE(FLAC_BLOCK, 8);
  head.writeUInt16BE(FLAC_BLOCK, 10);
  head.writeBigUInt64BE((BigInt(HERTZ) << 44n) | (15n << 36n), 18);
  return head;
}

/** One block, its samples as they are ("verbatim"). */
function flacFrame(n: number): Buffer {
  const number = Buffer.from(String.fromCodePoint(n), "utf8");
  const head = Buffer.concat([
    Buffer.from([0xff, 0xf8, 0x77, 0x08]),
    number,
    Buffer.from([(FLAC_BLOCK - 1) >> 8, (FLAC_BLOCK - 1) & 255]),
  ]);
  const block = Buffer.from(samplesFrom(n * FLAC_BLOCK, FLAC_BLOCK));
  const frame = Buffer.concat([head, Buffer.from([crc(8, 0x07, head), 0x02]), block.swap16()]);
  const sum = crc(16, 0x8005, frame);
  return Buffer.concat([frame, Buffer.from([sum >> 8, sum & 255])]);
}

/** The packets of an Ogg file, its two heads first; each of them fits in one page. */
function oggPackets(file: Buffer): Buffer[] {
  const packets: Buffer[] = [];
  for (let at = 0; at < file.length;) {
    const lacing = file.subarray(at + 27, at + 27 + file[at + 26]!);
    at += 27 + lacing.length;
    let length = 0;
    for (const part of lacing) {
      length += part;
      if (part === 255) continue;
      packets.push(file.subarray(at, at + length));
      at += length;
      length = 0;
    }
  }
  return packets;
}

/** Pages of up to half a second; each says where its end lies, so that a player knows the length. */
function oggOpus([opusHead, opusTags, ...packets]: Buffer[]): Tone {
  const packetSamples = OGG_HERTZ / 50;
  const preSkip = opusHead!.readUInt16LE(10);
  let sequence = 0;
  let secondsAsked = 0;
  let sent = 0;
  const page = (flags: number, content: Buffer[]) =>
    oggPage({ flags, granule: sent * packetSamples, sequence: sequence++, packets: content });
  const rest = (until: number) => {
    const pages: Buffer[] = [];
    while (sent < until) {
      const content = Array.from(
        { length: Math.min(25, until - sent) },
        (_, n) => packets[(sent + n) % packets.length]!,
      );
      sent += content.length;
      pages.push(page(0, content));
    }
    return pages;
  };
  return {
    seconds(more) {
      const heads = secondsAsked === 0 ? [page(2, [opusHead!]), page(0, [opusTags!])] : [];
      secondsAsked += more;
      return Buffer.concat([...heads, ...rest(Math.ceil((secondsAsked * OGG_HERTZ + preSkip) / packetSamples))]);
    },
    end: () => page(4, []),
  };
}

function oggPage(input: { flags: number; granule: number; sequence: number; packets: Buffer[] }): Buffer {
  const lacing = input.packets.flatMap((packet) => [
    ...Array<number>(Math.floor(packet.length / 255)).fill(255),
    packet.length % 255,
  ]);
  const head = Buffer.alloc(27);
  head.write("OggS", 0, "latin1");
  head[5] = input.flags;
  head.writeBigUInt64LE(BigInt(input.granule), 6);
  head.writeUInt32LE(0x52_65_65_66, 14);
  head.writeUInt32LE(input.sequence, 18);
  head[26] = lacing.length;
  const page = Buffer.concat([head, Buffer.from(lacing), ...input.packets]);
  page.writeUInt32LE(crc(32, 0x04c11db7, page), 22);
  return page;
}

const tables = new Map<number, Uint32Array>();

/** A checksum of 8, 16 or 32 bits, high bit first, starting at 0. */
function crc(bits: number, polynomial: number, bytes: Uint8Array): number {
  const table = tables.get(polynomial) ?? crcTable(bits, polynomial);
  const mask = 2 ** bits - 1;
  let sum = 0;
  for (const byte of bytes) sum = (((sum << 8) & mask) ^ table[((sum >>> (bits - 8)) ^ byte) & 255]!) >>> 0;
  return sum;
}

function crcTable(bits: number, polynomial: number): Uint32Array {
  const top = 2 ** (bits - 1);
  const mask = 2 ** bits - 1;
  const table = Uint32Array.from({ length: 256 }, (_, byte) => {
    let value = (byte << (bits - 8)) >>> 0;
    for (let bit = 0; bit < 8; bit++) value = ((value & top ? (value << 1) ^ polynomial : value << 1) & mask) >>> 0;
    return value;
  });
  tables.set(polynomial, table);
  return table;
}
