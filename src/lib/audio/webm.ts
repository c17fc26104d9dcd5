import { opusSound } from "./opus.ts";
import { STEPS_PER_TURN, type Packets, type Sound } from "./sound.ts";
import { unlaceHeaders, vorbisSound } from "./vorbis.ts";

const EBML = 0x1a45dfa3;
const CLUSTER = 0x1f43b675;
const TRACK = 0xae;
const TRACK_NUMBER = 0xd7;
const TRACK_TYPE = 0x83;
const CODEC_ID = 0x86;
const CODEC_PRIVATE = 0x63a2;
const CONTENT_ENCODINGS = 0x6d80;
const SIMPLE_BLOCK = 0xa3;
const BLOCK = 0xa1;
/** Elements whose inside is read as if it stood beside them, so that sizes which a live recording leaves open don't matter. */
const OPENED = new Set([EBML, 0x18538067, 0x1654ae6b, TRACK, CLUSTER, 0xa0]);
const SOUND = 2;
const CLUSTER_MARK = Buffer.from("1f43b675", "hex");

/** Whether it is a WebM or Matroska file; other kinds of EBML exist. */
export function isWebm(data: Buffer): boolean {
  if (data.length < 4 || data.readUInt32BE(0) !== EBML) return false;
  const head = data.toString("latin1", 4, 64);
  return head.includes("webm") || head.includes("matroska");
}

interface Track {
  number: number;
  type: number;
  codec: string;
  setup: Buffer;
  /** Compressed or encrypted frames, which WebM has not. */
  isEncoded: boolean;
  sound?: Sound | null;
}

/** The packets of a WebM's sound tracks (Opus and Vorbis). Recordings as they come from a browser have no length anywhere. */
export function* webmPackets(data: Buffer): Packets {
  const tracks: Track[] = [];
  let at = 0;
  for (let steps = 1; at < data.length; steps++) {
    if (steps % STEPS_PER_TURN === 0) yield undefined;
    const element = readElement(data, at);
    if (!element || (!OPENED.has(element.id) && element.body + element.size > data.length)) {
      // As players do: what can't be read, or reaches beyond the file, is passed over up to the next cluster.
      at = data.indexOf(CLUSTER_MARK, at + 1);
      if (at < 0) return;
      continue;
    }
    const { id, body, size } = element;
    const end = body + size;
    if (id === TRACK) tracks.push({ number: 0, type: 0, codec: "", setup: Buffer.alloc(0), isEncoded: false });
    else if (id === CLUSTER && !tracks.some((track) => track.type === SOUND)) return;
    else if (id === SIMPLE_BLOCK || id === BLOCK) yield* blockPackets(tracks, data.subarray(body, end));
    else if (tracks.length > 0) describe(tracks.at(-1)!, id, data.subarray(body, end));
    at = OPENED.has(id) ? body : end;
  }
}

function describe(track: Track, id: number, body: Buffer): void {
  const number = () => (body.length > 0 && body.length <= 6 ? body.readUIntBE(0, body.length) : 0);
  if (id === TRACK_NUMBER) track.number = number();
  else if (id === TRACK_TYPE) track.type = number();
  else if (id === CODEC_ID) track.codec = body.toString("latin1").replace(/\0+$/, "");
  else if (id === CODEC_PRIVATE) track.setup = body;
  else if (id === CONTENT_ENCODINGS) track.isEncoded = true;
}

function soundOf(track: Track): Sound | null {
  if (track.isEncoded || track.type !== SOUND) return null;
  if (track.codec === "A_OPUS") return opusSound(track.setup);
  const headers = track.codec === "A_VORBIS" ? unlaceHeaders(track.setup) : null;
  return headers && vorbisSound(headers);
}

/** A block: its track, two bytes of time, flags, and one frame or several laced together. */
function* blockPackets(tracks: readonly Track[], block: Buffer): Packets {
  const number = readNumber(block, 0);
  if (!number || block.length < number.bytes + 3) return;
  const track = tracks.find((candidate) => candidate.number === number.value);
  if (track && track.sound === undefined) track.sound = soundOf(track);
  const sound = track?.sound;
  if (!sound) return;
  const flags = block[number.bytes + 2]!;
  const body = block.subarray(number.bytes + 3);
  for (const data of unlace(body, (flags >> 1) & 3)) yield { sound, data };
}

const NO_LACING = 0;
const XIPH = 1;
const FIXED = 2;

/** Frames of a laced block; none if the sizes don't fit. */
function unlace(body: Buffer, lacing: number): Buffer[] {
  if (lacing === NO_LACING) return [body];
  const count = (body[0] ?? 0) + 1;
  let at = 1;
  const sizes: number[] = [];
  while (sizes.length < count - 1 && lacing !== FIXED) {
    let size = 0;
    if (lacing === XIPH) {
      while (body[at] === 255) size += body[at++]!;
      size += body[at++] ?? 0;
    } else {
      const number = readNumber(body, at);
      if (!number) return [];
      at += number.bytes;
      // The first size stands as it is, the others as differences, shifted to be positive.
      size = sizes.length === 0 ? number.value : sizes.at(-1)! + number.value - (2 ** (7 * number.bytes - 1) - 1);
    }
    sizes.push(size);
  }
  if (lacing === FIXED) sizes.push(...Array<number>(count - 1).fill(Math.floor((body.length - 1) / count)));
  const frames: Buffer[] = [];
  for (const size of sizes) {
    if (size < 0 || at + size > body.length) return [];
    frames.push(body.subarray(at, at + size));
    at += size;
  }
  return [...frames, body.subarray(at)];
}

interface Element {
  id: number;
  body: number;
  size: number;
}

function readElement(data: Buffer, at: number): Element | null {
  const idBytes = Math.clz32(data[at]! << 24) + 1;
  if (idBytes > 4 || at + idBytes >= data.length) return null;
  const size = readNumber(data, at + idBytes);
  return size && { id: data.readUIntBE(at, idBytes), body: at + idBytes + size.bytes, size: size.value };
}

/** A number of variable length; all ones ("unknown") reads as a huge one, which is as good. */
function readNumber(data: Buffer, at: number): { value: number; bytes: number } | null {
  const first = data[at];
  if (first === undefined || first === 0) return null;
  const bytes = Math.clz32(first << 24) + 1;
  if (at + bytes > data.length) return null;
  let value = first & (0xff >> bytes);
  for (let offset = 1; offset < bytes; offset++) value = value * 256 + data[at + offset]!;
  return { value, bytes };
}
