import { hasMark, isRate, type Sound } from "./sound.ts";

const MODE_BITS = 41;
const MAX_MODES = 64;
const MAX_SETUP_BYTES = 256 * 1024;

/**
 * Vorbis from its identification, comment and setup packets; null if they can't be read. A packet's length is that of its
 * block and the one before, as in a decoder: what the pages claim of the time is not used.
 */
export function vorbisSound(headers: readonly Buffer[]): Sound | null {
  const [identification, , setup] = headers;
  if (!identification || identification.length < 30 || !setup || setup.length > MAX_SETUP_BYTES) return null;
  if (!hasMark(identification, 0, "\u0001vorbis") || !hasMark(setup, 0, "\u0005vorbis")) return null;
  const rate = identification.readUInt32LE(12);
  const sizes = [1 << (identification[28]! & 15), 1 << (identification[28]! >> 4)];
  const modes = readModes(setup);
  if (!isRate(rate) || !modes || sizes.some((size) => size < 64 || size > 8_192)) return null;
  const modeMask = (1 << Math.ceil(Math.log2(modes.length))) - 1;
  let before = 0;
  const secondsOf = (packet: Buffer) => {
    const first = packet[0];
    // An odd first byte is a header's.
    if (first === undefined || first & 1) return 0;
    const isLong = modes[(first >> 1) & modeMask];
    if (isLong === undefined) return 0;
    const size = sizes[isLong ? 1 : 0]!;
    const samples = before === 0 ? 0 : (before + size) / 4;
    before = size;
    return samples / rate;
  };
  return { codec: "vorbis", channels: identification[11]!, setup: headers, skipSeconds: 0, secondsOf };
}

/**
 * Which modes use long blocks. They are the last thing in the setup packet, whose other parts have no lengths: so they are
 * read from its end backwards, until the number of modes read is the number that stands in front of them.
 */
function readModes(setup: Buffer): boolean[] | null {
  let end = setup.length * 8 - 1;
  while (end > 0 && bitsAt(setup, end, 1) === 0) end -= 1;
  const modes: boolean[] = [];
  let found: boolean[] | null = null;
  for (let at = end - MODE_BITS; at > 6 && modes.length < MAX_MODES; at -= MODE_BITS) {
    // One bit of block size, then two fields that are always zero, then the mapping.
    if (bitsAt(setup, at + 1, 16) !== 0 || bitsAt(setup, at + 17, 16) !== 0 || bitsAt(setup, at + 33, 8) > 63) break;
    modes.unshift(bitsAt(setup, at, 1) === 1);
    if (bitsAt(setup, at - 6, 6) + 1 === modes.length) found = [...modes];
  }
  return found;
}

/** Vorbis counts bits from the lowest up. */
function bitsAt(data: Buffer, at: number, count: number): number {
  let value = 0;
  for (let bit = 0; bit < count; bit++) value += ((data[(at + bit) >> 3]! >> ((at + bit) & 7)) & 1) * 2 ** bit;
  return value;
}

/** The three headers as WebM keeps them: a count, two lengths, then the packets. Null if they don't fit. */
export function unlaceHeaders(bytes: Buffer): Buffer[] | null {
  if (bytes[0] !== 2) return null;
  let at = 1;
  const sizes = [0, 0].map(() => {
    let size = 0;
    while (bytes[at] === 255) size += bytes[at++]!;
    return size + (bytes[at++] ?? 0);
  });
  const second = at + sizes[0]!;
  const third = second + sizes[1]!;
  return third < bytes.length
    ? [bytes.subarray(at, second), bytes.subarray(second, third), bytes.subarray(third)]
    : null;
}
