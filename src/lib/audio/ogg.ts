import { flacSound } from "./flac.ts";
import { opusSound } from "./opus.ts";
import { hasMark, STEPS_PER_TURN, type Packets, type Sound } from "./sound.ts";
import { vorbisSound } from "./vorbis.ts";

const PAGE_BYTES = 27;
const CONTINUED = 1;
const FIRST = 2;
/** Streams one after the other (a chain) or side by side. Nobody records more. */
const MAX_STREAMS = 64;

/** Whether it is an Ogg file. */
export function isOgg(data: Buffer): boolean {
  return hasMark(data, 0, "OggS");
}

interface Stream {
  /** Packets before the first that plays. */
  headers: Buffer[];
  headerCount: number;
  sound: Sound | null;
  /** Pieces of a packet that goes on on the next page. */
  begun: Buffer[] | null;
}

/** The packets of all an Ogg file's streams of Opus, Vorbis and FLAC. */
export function* oggPackets(data: Buffer): Packets {
  const streams = new Map<number, Stream>();
  let opened = 0;
  let at = 0;
  for (let steps = 1; ; steps++) {
    if (steps % STEPS_PER_TURN === 0) yield undefined;
    if (!hasMark(data, at, "OggS")) at = data.indexOf("OggS", at, "latin1");
    if (at < 0 || at + PAGE_BYTES > data.length) return;
    const flags = data[at + 5]!;
    const serial = data.readUInt32LE(at + 14);
    const tableEnd = at + PAGE_BYTES + data[at + 26]!;
    if (flags & FIRST) {
      opened += 1;
      if (opened > MAX_STREAMS) throw new RangeError("too many streams in one file");
      streams.set(serial, { headers: [], headerCount: 0, sound: null, begun: null });
    }
    const table = data.subarray(at + PAGE_BYTES, tableEnd);
    const stream = streams.get(serial);
    if (stream) yield* pagePackets(stream, data, table, tableEnd, (flags & CONTINUED) !== 0);
    at = tableEnd + table.reduce((sum, size) => sum + size, 0);
  }
}

/** A page's packets: pieces of 255 bytes belong together up to the first shorter one. */
function* pagePackets(stream: Stream, data: Buffer, table: Buffer, from: number, isContinued: boolean): Packets {
  let start = from;
  let end = from;
  // The rest of a packet whose beginning was lost can't be read.
  let skip = isContinued && !stream.begun;
  if (!isContinued) stream.begun = null;
  for (const size of table) {
    end += size;
    if (end > data.length) return;
    if (size === 255) continue;
    const piece = data.subarray(start, end);
    const packet = stream.begun ? Buffer.concat([...stream.begun, piece]) : piece;
    stream.begun = null;
    start = end;
    if (skip) skip = false;
    else yield* take(stream, packet);
  }
  if (end > start && !skip) (stream.begun ??= []).push(data.subarray(start, end));
}

function* take(stream: Stream, packet: Buffer): Packets {
  if (stream.sound) yield { sound: stream.sound, data: packet };
  else if (stream.headers.length === 0) {
    stream.headerCount = headerCountOf(packet);
    if (stream.headerCount > 0) stream.headers.push(packet);
  } else {
    stream.headers.push(packet);
    if (stream.headers.length === stream.headerCount) stream.sound = soundOf(stream.headers);
  }
}

/** How many packets come before the sound, by the first one; 0 for a stream that is no sound we know. */
function headerCountOf(first: Buffer): number {
  if (hasMark(first, 0, "OpusHead")) return 2;
  if (hasMark(first, 0, "\u0001vorbis")) return 3;
  // FLAC tells it itself; 0 stands for "unknown", which no encoder of today writes.
  return hasMark(first, 0, "\u007fFLAC") && first.length >= 51 ? 1 + first.readUInt16BE(7) : 0;
}

function soundOf(headers: readonly Buffer[]): Sound | null {
  const first = headers[0]!;
  if (hasMark(first, 0, "OpusHead")) return opusSound(first);
  return hasMark(first, 0, "\u0001vorbis") ? vorbisSound(headers) : flacSound(first.subarray(17));
}
