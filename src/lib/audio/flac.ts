import { afterId3, hasMark, isRate, STEPS_PER_TURN, type Packets, type Sound } from "./sound.ts";

/** Hz, by the header's code; undefined where it is given otherwise. */
const RATES = [0, 88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000];
const STREAMINFO_BYTES = 34;

/** Whether it is a FLAC file, tags in front of it or not. */
export function isFlac(data: Buffer): boolean {
  return hasMark(data, afterId3(data), "fLaC");
}

/**
 * A FLAC file's frames. Nothing tells how long a frame is, so each ends where the next begins: at a header whose checksum
 * is right and whose sample size is the first one's.
 */
export function* flacPackets(data: Buffer): Packets {
  let at = afterId3(data) + 4;
  const sound = flacSound(data.subarray(at + 4, at + 4 + STREAMINFO_BYTES));
  for (let last = false; !last;) {
    if (at + 4 > data.length) return;
    last = data[at]! >= 0x80;
    at += 4 + data.readUIntBE(at + 1, 3);
  }
  if (!sound) return;
  let start = -1;
  let bits = -1;
  for (let steps = 1; ; steps++) {
    if (steps % STEPS_PER_TURN === 0) yield undefined;
    const next = data.indexOf(0xff, at);
    if (next < 0) break;
    at = next + 1;
    const header = readFrameHeader(data, next);
    if (!header || (bits >= 0 && header.bits !== bits)) continue;
    if (start >= 0) yield { sound, data: data.subarray(start, next) };
    start = next;
    bits = header.bits;
    at = next + header.bytes;
  }
  if (start >= 0) yield { sound, data: data.subarray(start) };
}

/** FLAC from its STREAMINFO; null if that can't be read. What it claims of the total is not used. */
export function flacSound(info: Buffer): Sound | null {
  if (info.length < STREAMINFO_BYTES) return null;
  const rate = info.readUIntBE(10, 3) >> 4;
  if (!isRate(rate)) return null;
  const secondsOf = (packet: Buffer) => {
    const header = readFrameHeader(packet, 0);
    const own = header?.rate || rate;
    return header && isRate(own) ? header.samples / own : 0;
  };
  return { codec: "flac", channels: ((info[12]! >> 1) & 7) + 1, setup: [], skipSeconds: 0, secondsOf };
}

interface FrameHeader {
  samples: number;
  /** 0: as STREAMINFO says. */
  rate: number;
  bits: number;
  bytes: number;
}

function readFrameHeader(data: Buffer, at: number): FrameHeader | null {
  if (at + 6 > data.length || data[at] !== 0xff || (data[at + 1]! & 0xfe) !== 0xf8) return null;
  const sizeCode = data[at + 2]! >> 4;
  const rateCode = data[at + 2]! & 15;
  const bits = (data[at + 3]! >> 1) & 7;
  const numberBytes = codedBytes(data[at + 4]!);
  if (sizeCode === 0 || rateCode === 15 || bits === 3 || data[at + 3]! & 1 || data[at + 3]! >> 4 > 10) return null;
  let end = at + 4 + numberBytes;
  const sizeBytes = sizeCode === 6 ? 1 : sizeCode === 7 ? 2 : 0;
  const rateBytes = rateCode === 12 ? 1 : rateCode > 12 ? 2 : 0;
  if (numberBytes === 0 || end + sizeBytes + rateBytes + 1 > data.length) return null;
  const samples = sizeBytes > 0 ? data.readUIntBE(end, sizeBytes) + 1 : samplesBy(sizeCode);
  end += sizeBytes;
  const given = rateBytes > 0 ? data.readUIntBE(end, rateBytes) : RATES[rateCode]!;
  end += rateBytes;
  if (checksum(data, at, end) !== data[end]) return null;
  const rate = rateCode === 12 ? given * 1_000 : rateCode === 14 ? given * 10 : given;
  return { samples, rate, bits, bytes: end + 1 - at };
}

function samplesBy(code: number): number {
  if (code === 1) return 192;
  return code < 6 ? 576 << (code - 2) : 256 << (code - 8);
}

/** Bytes of the frame's number, coded as UTF-8 would; 0 if it isn't. */
function codedBytes(first: number): number {
  if (first < 0x80) return 1;
  const ones = Math.clz32(~first << 24);
  return ones >= 2 && ones <= 7 ? ones : 0;
}

/** Whether these bytes are one whole frame: with its own checksum behind it, CRC-16 of x^16 + x^15 + x^2 + 1 is zero. */
export function isWholeFrame(bytes: Buffer): boolean {
  let crc = 0;
  for (let at = 0; at < bytes.length; at++) crc = ((crc << 8) & 0xffff) ^ CRC_16[(crc >> 8) ^ bytes[at]!]!;
  return crc === 0;
}

const CRC_16 = Uint16Array.from({ length: 256 }, (_, byte) => {
  let crc = byte << 8;
  for (let bit = 0; bit < 8; bit++) crc = crc & 0x8000 ? ((crc << 1) ^ 0x8005) & 0xffff : crc << 1;
  return crc;
});

/** CRC-8 of x^8 + x^2 + x + 1. */
function checksum(data: Buffer, from: number, to: number): number {
  let crc = 0;
  for (let at = from; at < to; at++) {
    crc ^= data[at]!;
    for (let bit = 0; bit < 8; bit++) crc = crc & 0x80 ? ((crc << 1) ^ 7) & 0xff : crc << 1;
  }
  return crc;
}
