import { aacSound } from "./aac.ts";
import { boxes, childrenOf, findBox, type Box } from "./boxes.ts";
import { fragmentPackets } from "./mp4Fragments.ts";
import { tablePackets } from "./mp4Tables.ts";
import { opusOf } from "./opus.ts";
import { hasMark, isRate, STEPS_PER_TURN, type Packets, type Sound } from "./sound.ts";

const AUDIO_ENTRY_BYTES = 28;
/** QuickTime's second version of the entry is longer. */
const QUICKTIME_V1_BYTES = 16;
const MPEG4_AUDIO = 0x40;
const MPEG2_AAC = [0x66, 0x67, 0x68];
const MAX_ALAC_SAMPLES = 16_384;
const MAX_TRACKS = 32;

/** One sound track of an MP4. */
export interface Mp4Track {
  id: number;
  sound: Sound;
  /** Its box of tables (stbl). */
  tables: Box;
  /** How often the edit list plays more than nothing, and how much (in the movie's units) that is together. */
  edits: { count: number; units: number };
}

/** Whether it is an MP4, M4A or QuickTime file. */
export function isMp4(data: Buffer): boolean {
  return hasMark(data, 4, "ftyp");
}

/**
 * The packets of an MP4's sound tracks (AAC, Apple Lossless, Opus), from the table of an ordinary file or the fragments of
 * a streamed one, as Safari records. Only packets that are in the file: the header of a file that was cut knows more.
 */
export function* mp4Packets(data: Buffer): Packets {
  let moov: Box | undefined;
  let steps = 0;
  for (const box of boxes(data, 0, data.length)) {
    steps += 1;
    if (steps % STEPS_PER_TURN === 0) yield undefined;
    if (box.type === "moov") moov ??= box;
  }
  const tracks = moov ? readTracks(data, moov) : [];
  if (!moov || tracks.length === 0) return;
  const unitsPerSecond = readTimescale(data, moov);
  for (const track of tracks) yield* withinEdits(track, unitsPerSecond, tablePackets(data, track));
  yield* fragmentPackets(data, moov, tracks);
}

/** An edit list can play one second a thousand times: a file that does is not one that somebody spoke. */
function* withinEdits({ edits }: Mp4Track, unitsPerSecond: number, packets: Packets): Packets {
  let seconds = 0;
  for (const packet of packets) {
    // Asked once more here: AAC, ALAC and Opus don't mind.
    if (packet) seconds += packet.sound.secondsOf(packet.data);
    yield packet;
  }
  if (edits.count > 1 && edits.units / unitsPerSecond > seconds + 1) throw new RangeError("an edit list repeats");
}

function readTimescale(data: Buffer, moov: Box): number {
  const header = findBox(data, moov, "mvhd");
  const at = header ? header.body + (data[header.body] === 1 ? 20 : 12) : data.length;
  return (at + 4 <= data.length && data.readUInt32BE(at)) || 1;
}

function readTracks(data: Buffer, moov: Box): Mp4Track[] {
  const traks = childrenOf(data, moov).filter((box) => box.type === "trak");
  if (traks.length > MAX_TRACKS) throw new RangeError("too many tracks in one file");
  return traks.flatMap((trak) => readTrack(data, trak) ?? []);
}

function readTrack(data: Buffer, trak: Box): Mp4Track | null {
  const header = findBox(data, trak, "tkhd");
  const handler = findBox(data, trak, "mdia", "hdlr");
  const tables = findBox(data, trak, "mdia", "minf", "stbl");
  const entries = tables && findBox(data, tables, "stsd");
  if (!header || !handler || !tables || !entries || !hasMark(data, handler.body + 8, "soun")) return null;
  const idAt = header.body + (data[header.body] === 1 ? 20 : 12);
  const entry = boxes(data, entries.body + 8, entries.end).next().value;
  const sound = entry ? readEntry(data, entry) : null;
  if (!sound || idAt + 4 > data.length) return null;
  return { id: data.readUInt32BE(idAt), sound, tables, edits: readEdits(data, findBox(data, trak, "edts", "elst")) };
}

function readEdits(data: Buffer, list: Box | undefined): Mp4Track["edits"] {
  let count = 0;
  let units = 0;
  const wide = list && data[list.body] === 1;
  const step = wide ? 20 : 12;
  for (let at = list ? list.body + 8 : 0; list && at + step <= list.end; at += step) {
    const high = wide ? data.readUInt32BE(at) * 2 ** 32 : 0;
    const isEmpty = data.readInt32BE(at + (wide ? 8 : 4)) === -1;
    if (isEmpty) continue;
    count += 1;
    units += high + data.readUInt32BE(at + (wide ? 4 : 0));
  }
  return { count, units };
}

/** The codec of a track, from its sample description; null for one we don't know. */
function readEntry(data: Buffer, entry: Box): Sound | null {
  if (entry.body + AUDIO_ENTRY_BYTES > entry.end) return null;
  const isQuicktime = data.readUInt16BE(entry.body + 8) === 1;
  const channels = data.readUInt16BE(entry.body + 16);
  const inside = { ...entry, body: entry.body + AUDIO_ENTRY_BYTES + (isQuicktime ? QUICKTIME_V1_BYTES : 0) };
  const bodyOf = (type: string) => {
    const box = findBox(data, inside, type) ?? findBox(data, inside, "wave", type);
    return box && data.subarray(box.body, box.end);
  };
  const [esds, alac, dOps] = [bodyOf("esds"), bodyOf("alac"), bodyOf("dOps")];
  if (entry.type === "mp4a" && esds) return readEsds(esds);
  if (entry.type === "alac" && alac) return alacSound(alac, channels);
  return entry.type === "Opus" && dOps && dOps.length >= 11 ? opusOf(dOps[1]!, dOps.readUInt16BE(2)) : null;
}

/** Descriptors inside each other: stream (3), decoder (4), the decoder's own (5). */
function readEsds(esds: Buffer): Sound | null {
  let at = 4;
  const open = (tag: number): number => {
    if (esds[at] !== tag) return -1;
    at += 1;
    let size = 0;
    for (let more = true; more && at < esds.length; at++) {
      more = esds[at]! >= 0x80;
      size = size * 128 + (esds[at]! & 0x7f);
    }
    return size;
  };
  if (open(3) < 0) return null;
  const flags = esds[at + 2] ?? 0;
  at += 3 + (flags & 0x80 ? 2 : 0) + (flags & 0x40 ? 1 + (esds[at + 3] ?? 0) : 0) + (flags & 0x20 ? 2 : 0);
  if (open(4) < 0) return null;
  const kind = esds[at] ?? 0;
  at += 13;
  const size = open(5);
  if (size < 2 || (kind !== MPEG4_AUDIO && !MPEG2_AAC.includes(kind))) return null;
  return aacSound(esds.subarray(at, at + size));
}

function alacSound(config: Buffer, channels: number): Sound | null {
  if (config.length < 28) return null;
  const samples = config.readUInt32BE(4);
  const rate = config.readUInt32BE(24);
  if (!isRate(rate) || samples === 0 || samples > MAX_ALAC_SAMPLES) return null;
  return { codec: "alac", channels, setup: [], skipSeconds: 0, secondsOf: () => samples / rate };
}
