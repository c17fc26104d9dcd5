import { STEPS_PER_TURN } from "./sound.ts";

/** What the first bytes of a frame tell of it. */
export interface FrameHeader {
  /** Of the whole frame, its header included. */
  bytes: number;
  samples: number;
  rate: number;
  channels: number;
  /** The same for all frames of one stream. */
  key: number;
}

/** The frame that begins at `at`, or null where none does. */
export type ReadHeader = (data: Buffer, at: number) => FrameHeader | null;

export interface Frame {
  at: number;
  header: FrameHeader;
}

/** Frames that must follow each other before the first is believed. Four random bytes look like one now and then. */
const CHAIN = 3;
/** What may stand in front of the first frame. */
const MAX_LEAD_BYTES = 64 * 1024;

/** Where the first of several frames in a row begins, or -1. One alone is believed if nothing else is there. */
export function firstFrame(data: Buffer, from: number, read: ReadHeader): number {
  const limit = Math.min(data.length, from + MAX_LEAD_BYTES);
  for (let at = data.indexOf(0xff, from); at >= 0 && at < limit; at = data.indexOf(0xff, at + 1))
    if (isChain(data, at, read)) return at;
  return -1;
}

function isChain(data: Buffer, start: number, read: ReadHeader): boolean {
  const first = read(data, start);
  let next = first;
  let at = start;
  for (let length = 0; next && first && next.key === first.key; length++) {
    if (length === CHAIN) return true;
    at += next.bytes;
    // A file that was cut: what is missing can't speak against it.
    if (at + 4 > data.length) return length > 0 || at === data.length;
    next = read(data, at);
  }
  return false;
}

/**
 * Whole frames, one after the other; what stands between them is passed over, as decoders do. `undefined` now and then,
 * as in `Packets`.
 */
export function* frames(data: Buffer, from: number, read: ReadHeader): Generator<Frame | undefined, void, void> {
  const first = firstFrame(data, from, read);
  const key = first < 0 ? 0 : read(data, first)!.key;
  // Once the kind is known, single frames count too, also those in front: a file can be made of little else.
  let at = first < 0 ? first : from;
  for (let steps = 1; at >= 0 && at < data.length; steps++) {
    if (steps % STEPS_PER_TURN === 0) yield undefined;
    const header = read(data, at);
    if (!header || header.key !== key) at = data.indexOf(0xff, at + 1);
    else if (at + header.bytes > data.length) return;
    else {
      yield { at, header };
      at += header.bytes;
    }
  }
}
