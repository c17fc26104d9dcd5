/** A box of an MP4: four letters and what is in it, from `body` to `end`. */
export interface Box {
  type: string;
  at: number;
  body: number;
  end: number;
}

/** Boxes in one box of the index; real files have a dozen. */
const MAX_BOXES = 256;

/** The boxes that lie between two places, one after the other; one that was cut ends where it was cut. */
export function* boxes(data: Buffer, from: number, to: number): Generator<Box, void, void> {
  let at = from;
  while (at + 8 <= to) {
    let size = data.readUInt32BE(at);
    let header = 8;
    if (size === 1 && at + 16 <= to) {
      size = data.readUInt32BE(at + 8) * 2 ** 32 + data.readUInt32BE(at + 12);
      header = 16;
    } else if (size === 0) size = to - at;
    if (size < header) return;
    yield { type: data.toString("latin1", at + 4, at + 8), at, body: at + header, end: Math.min(at + size, to) };
    at += size;
  }
}

/** The boxes inside one. Throws RangeError on hundreds of them. */
export function childrenOf(data: Buffer, box: Box): Box[] {
  const found: Box[] = [];
  for (const child of boxes(data, box.body, box.end)) {
    if (found.length === MAX_BOXES) throw new RangeError("too many boxes in a box");
    found.push(child);
  }
  return found;
}

/** The first box on a path of types, or undefined. */
export function findBox(data: Buffer, box: Box, ...path: string[]): Box | undefined {
  let found: Box | undefined = box;
  for (const type of path) found = found && childrenOf(data, found).find((child) => child.type === type);
  return found;
}
