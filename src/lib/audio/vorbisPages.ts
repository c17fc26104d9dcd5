const FIRST = 2;
const MAX_PACKET_BYTES = 255 * 254;
/** "vorbis" of type 3: no vendor, no comments, the closing bit. Real ones hold pictures. */
const EMPTY_COMMENTS = Buffer.from("\u0003vorbis\0\0\0\0\0\0\0\0\u0001", "latin1");

/**
 * Puts Vorbis packets into Ogg pages again, each into one of its own: the decoder takes nothing else, and so it decodes as
 * much at a time as one packet holds, whatever the file's own pages are. Throws RangeError on a packet too long for a page.
 */
export function vorbisPages(setup: readonly Buffer[]): { head(): Buffer; page(packet: Buffer): Buffer } {
  let sequence = 0;
  const page = (...packets: Buffer[]) => {
    const table = packets.flatMap(({ length }) => {
      if (length > MAX_PACKET_BYTES) throw new RangeError("a packet longer than a page");
      return [...Array<number>(Math.floor(length / 255)).fill(255), length % 255];
    });
    const head = Buffer.alloc(27);
    head.write("OggS", "latin1");
    head[5] = sequence === 0 ? FIRST : 0;
    head.writeUInt32LE(sequence, 18);
    head[26] = table.length;
    sequence += 1;
    return Buffer.concat([head, Buffer.from(table), ...packets]);
  };
  return {
    page,
    head: () => Buffer.concat([page(setup[0]!), page(EMPTY_COMMENTS), page(setup[2]!)]),
  };
}
