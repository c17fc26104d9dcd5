import { boxes, childrenOf, findBox, type Box } from "./boxes.ts";
import type { Mp4Track } from "./mp4.ts";
import { STEPS_PER_TURN, type Packets } from "./sound.ts";

const HAS_BASE = 0x1;
const HAS_DESCRIPTION = 0x2;
const HAS_DEFAULT_DURATION = 0x8;
const HAS_DEFAULT_SIZE = 0x10;
const RUN_HAS_PLACE = 0x1;
const RUN_HAS_FIRST_FLAGS = 0x4;
const RUN_HAS_DURATIONS = 0x100;
const RUN_HAS_SIZES = 0x200;
const RUN_HAS_FLAGS = 0x400;
const RUN_HAS_OFFSETS = 0x800;

/**
 * The packets of a file that was written while it was recorded: each fragment (moof) has its own small table. Throws
 * RangeError if packets lie on each other.
 */
export function* fragmentPackets(data: Buffer, moov: Box, tracks: readonly Mp4Track[]): Packets {
  const budget = { bytes: data.length };
  const defaults = readDefaultSizes(data, moov);
  for (const moof of boxes(data, 0, data.length)) {
    yield undefined;
    if (moof.type !== "moof") continue;
    for (const traf of childrenOf(data, moof).filter((box) => box.type === "traf"))
      yield* trackFragment(data, moof, traf, tracks, defaults, budget);
  }
}

/** Packet sizes that hold for a whole track, from moov's `mvex`. */
function readDefaultSizes(data: Buffer, moov: Box): Map<number, number> {
  const extension = findBox(data, moov, "mvex");
  const boxesOfTracks = extension ? childrenOf(data, extension).filter((box) => box.type === "trex") : [];
  return new Map(
    boxesOfTracks
      .filter((box) => box.body + 24 <= box.end)
      .map((box) => [data.readUInt32BE(box.body + 4), data.readUInt32BE(box.body + 16)]),
  );
}

function* trackFragment(
  data: Buffer,
  moof: Box,
  traf: Box,
  tracks: readonly Mp4Track[],
  defaults: Map<number, number>,
  budget: { bytes: number },
): Packets {
  const header = findBox(data, traf, "tfhd");
  if (!header || header.body + 8 > header.end) return;
  const flags = data.readUIntBE(header.body + 1, 3);
  const track = tracks.find(({ id }) => id === data.readUInt32BE(header.body + 4));
  if (!track) return;
  const take = createReader(data, header.body + 8, header.end);
  const base = flags & HAS_BASE ? take() * 2 ** 32 + take() : moof.at;
  if (flags & HAS_DESCRIPTION) take();
  if (flags & HAS_DEFAULT_DURATION) take();
  const size = flags & HAS_DEFAULT_SIZE ? take() : (defaults.get(track.id) ?? 0);
  let at = base;
  for (const run of childrenOf(data, traf).filter((box) => box.type === "trun"))
    at = yield* runPackets(data, run, track, { base, at, size }, budget);
}

/** The packets of one run; returns where the next one begins if it doesn't say so itself. */
function* runPackets(
  data: Buffer,
  run: Box,
  { sound }: Mp4Track,
  from: { base: number; at: number; size: number },
  budget: { bytes: number },
): Generator<{ sound: typeof sound; data: Buffer } | undefined, number, void> {
  if (run.body + 8 > run.end) return from.at;
  const flags = data.readUIntBE(run.body + 1, 3);
  const take = createReader(data, run.body + 4, run.end);
  const count = take();
  // Signed: a place in front of the fragment is allowed.
  let at = flags & RUN_HAS_PLACE ? from.base + (take() | 0) : from.at;
  if (flags & RUN_HAS_FIRST_FLAGS) take();
  for (let sample = 1; sample <= count; sample++) {
    if (flags & RUN_HAS_DURATIONS) take();
    const size = flags & RUN_HAS_SIZES ? take() : from.size;
    if (flags & RUN_HAS_FLAGS) take();
    if (flags & RUN_HAS_OFFSETS) take();
    if (at < 0 || at + size > data.length) break;
    budget.bytes -= Math.max(size, 1);
    if (budget.bytes < 0) throw new RangeError("packets that lie on each other");
    if (size > 0) yield { sound, data: data.subarray(at, at + size) };
    if (sample % STEPS_PER_TURN === 0) yield undefined;
    at += size;
  }
  return at;
}

/** Reads one number of 32 bits after the other; zeros behind the end. */
function createReader(data: Buffer, from: number, end: number): () => number {
  let at = from;
  return () => {
    const value = at + 4 <= end ? data.readUInt32BE(at) : 0;
    at += 4;
    return value;
  };
}
