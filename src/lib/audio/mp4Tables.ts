import { findBox, type Box } from "./boxes.ts";
import type { Mp4Track } from "./mp4.ts";
import { STEPS_PER_TURN, type Packets } from "./sound.ts";

/** A table of an MP4's index: how many entries it says it has, and those that are in the file. */
interface Table {
  count: number;
  entries: Buffer;
}

/**
 * The packets of an ordinary track. The tables tell where chunks lie (stco, co64), how many packets are in each (stsc) and
 * how long each packet is (stsz). Throws RangeError if packets lie on each other or have no room.
 */
export function* tablePackets(data: Buffer, { sound, tables }: Mp4Track): Packets {
  const sizes = readSizes(data, findBox(data, tables, "stsz"));
  const places = readPlaces(data, tables);
  const runs = readTable(data, findBox(data, tables, "stsc"), 12);
  if (!sizes || !places || !runs) return;
  let run = 0;
  let sample = 0;
  let bytes = 0;
  for (let chunk = 0, steps = 1; chunk < places.count && sample < sizes.count; chunk++) {
    // Runs are counted from one, and each goes on to the next one's first chunk.
    while ((run + 1) * 12 < runs.entries.length && runs.entries.readUInt32BE((run + 1) * 12) <= chunk + 1) run += 1;
    let at = places.of(chunk);
    const last = sample + (run * 12 < runs.entries.length ? runs.entries.readUInt32BE(run * 12 + 4) : 0);
    const end = Math.min(last, sizes.count);
    for (; sample < end; sample++, steps++) {
      const size = sizes.of(sample);
      if (at + size > data.length) break;
      bytes += Math.max(size, 1);
      if (bytes > data.length) throw new RangeError("packets that lie on each other");
      if (size > 0) yield { sound, data: data.subarray(at, at + size) };
      if (steps % STEPS_PER_TURN === 0) yield undefined;
      at += size;
    }
    // The others of a chunk that was cut.
    sample = end;
    if (steps++ % STEPS_PER_TURN === 0) yield undefined;
  }
}

interface Column {
  count: number;
  of(index: number): number;
}

function readTable(data: Buffer, box: Box | undefined, entryBytes: number): Table | null {
  if (!box || box.body + 8 > box.end) return null;
  const room = Math.floor((box.end - box.body - 8) / entryBytes);
  const count = Math.min(data.readUInt32BE(box.body + 4), room);
  return { count, entries: data.subarray(box.body + 8, box.body + 8 + count * entryBytes) };
}

/** Packet sizes: all the same, or a table of them. */
function readSizes(data: Buffer, box: Box | undefined): Column | null {
  if (!box || box.body + 12 > box.end) return null;
  const common = data.readUInt32BE(box.body + 4);
  const claimed = data.readUInt32BE(box.body + 8);
  if (common * claimed > data.length) throw new RangeError("more packets than the file has room for");
  if (common > 0) return { count: claimed, of: () => common };
  const table = readTable(data, { ...box, body: box.body + 4 }, 4);
  return table && { count: table.count, of: (index) => table.entries.readUInt32BE(index * 4) };
}

function readPlaces(data: Buffer, tables: Box): Column | null {
  const short = readTable(data, findBox(data, tables, "stco"), 4);
  if (short) return { count: short.count, of: (index) => short.entries.readUInt32BE(index * 4) };
  const long = readTable(data, findBox(data, tables, "co64"), 8);
  const at = (entries: Buffer, place: number) =>
    entries.readUInt32BE(place) * 2 ** 32 + entries.readUInt32BE(place + 4);
  return long && { count: long.count, of: (index) => at(long.entries, index * 8) };
}
