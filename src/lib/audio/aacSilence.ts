import { createBits, type Bits } from "./aac.ts";

const SINGLE = 0;
const PAIR = 1;
const DATA = 4;
const FILL = 6;
const END = 7;
const EIGHT_SHORT = 2;
const MAX_ELEMENTS = 16;

/**
 * Whether a frame of AAC LC holds no sound at all: zeros, as from a muted microphone. Anything else is false, faint noise
 * and what can't be read too: how loud that is only a decoder can tell, and there is none that we may use.
 */
export function isSilentAac(frame: Buffer): boolean {
  const bits = createBits(frame);
  let channels = 0;
  for (let elements = 0; elements < MAX_ELEMENTS; elements++) {
    const kind = bits(3);
    if (kind === END) return channels > 0;
    if (kind === FILL) skipFill(bits);
    else if (kind === SINGLE || kind === PAIR) {
      if (!(kind === PAIR ? isSilentPair(bits) : isSilentSingle(bits))) return false;
      channels += 1;
    } else if (kind !== DATA || !skipData(bits)) return false;
  }
  return false;
}

function isSilentSingle(bits: Bits): boolean {
  bits(4);
  return isSilentChannel(bits, null);
}

function isSilentPair(bits: Bits): boolean {
  bits(4);
  const shared = bits(1) === 1 ? readWindows(bits) : null;
  const mask = shared ? bits(2) : 0;
  if (shared && mask === 1) bits(shared.groups * shared.bands);
  return isSilentChannel(bits, shared) && isSilentChannel(bits, shared);
}

interface Windows {
  isShort: boolean;
  bands: number;
  groups: number;
}

/** Null where a predictor is used, which LC has not. */
function readWindows(bits: Bits): Windows | null {
  bits(1);
  const isShort = bits(2) === EIGHT_SHORT;
  bits(1);
  if (isShort) {
    const bands = bits(4);
    // A zero begins a group; the first window needs none.
    const joined = bits(7).toString(2).replaceAll("0", "").length;
    return { isShort, bands, groups: 8 - joined };
  }
  const bands = bits(6);
  return bits(1) === 0 ? { isShort, bands, groups: 1 } : null;
}

/** Silent: every section of every group has the codebook without values, and no tool adds anything. */
function isSilentChannel(bits: Bits, shared: Windows | null): boolean {
  bits(8);
  const windows = shared ?? readWindows(bits);
  if (!windows) return false;
  const lengthBits = windows.isShort ? 3 : 5;
  const full = 2 ** lengthBits - 1;
  for (let group = 0; group < windows.groups; group++)
    for (let band = 0; band < windows.bands;) {
      if (bits(4) !== 0) return false;
      let length = full;
      for (let part = full; part === full; length += part) part = bits(lengthBits);
      length -= full;
      if (length === 0) return false;
      band += length;
    }
  return bits(3) === 0;
}

function skipFill(bits: Bits): void {
  const count = bits(4);
  bits((count === 15 ? 14 + bits(8) : count) * 8);
}

/** Data that must lie on whole bytes needs the place in the frame, which nobody's voice recorder uses: false. */
function skipData(bits: Bits): boolean {
  bits(4);
  if (bits(1) === 1) return false;
  const count = bits(8);
  bits((count === 255 ? 255 + bits(8) : count) * 8);
  return true;
}
