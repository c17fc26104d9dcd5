export type Codec = "pcm" | "mp3" | "aac" | "alac" | "opus" | "vorbis" | "flac";

/** One stream of sound in a file. */
export interface Sound {
  readonly codec: Codec;
  readonly channels: number;
  /** What a decoder must be told before the first packet: Vorbis' three headers, AAC's configuration. */
  readonly setup: readonly Buffer[];
  /** How samples lie in a packet; only of "pcm". */
  readonly pcm?: PcmLayout;
  /** Cut from the beginning and the end by every decoder, because the encoder added it. */
  readonly skipSeconds: number;
  /** What one packet plays, by the packet itself; 0 for one that can't be read. Asked once for each, in order. */
  secondsOf(packet: Buffer): number;
}

export interface PcmLayout {
  readonly encoding: "integer" | "float" | "alaw" | "mulaw";
  readonly bytesPerSample: number;
  readonly rate: number;
}

export interface Packet {
  readonly sound: Sound;
  readonly data: Buffer;
}

/**
 * A file's coded packets in order, whole ones only. Gives `undefined` now and then while it searches, so that whoever
 * reads can let others have their turn. Ends where the file can't be read further; throws RangeError on absurd ones.
 */
export type Packets = Generator<Packet | undefined, void, void>;

/** Steps between two chances for others: a fraction of a millisecond. */
export const STEPS_PER_TURN = 1_024;
/** Slower than a telephone, or faster than any studio: a lie. */
const MIN_RATE = 4_000;
const MAX_RATE = 768_000;
const MAX_ID3_TAGS = 8;

/** Whether sound is sampled at such a rate (Hz) anywhere. */
export function isRate(rate: number): boolean {
  return rate >= MIN_RATE && rate <= MAX_RATE;
}

/** The same memory, with Buffer's readers. */
export function viewOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Whether these ASCII characters stand at `at`. */
export function hasMark(data: Buffer, at: number, mark: string): boolean {
  if (at < 0 || at + mark.length > data.length) return false;
  for (let index = 0; index < mark.length; index++) if (data[at + index] !== mark.charCodeAt(index)) return false;
  return true;
}

/** Where the sound begins after ID3v2 tags, which players skip in front of any format. */
export function afterId3(data: Buffer): number {
  let at = 0;
  for (let tags = 0; tags < MAX_ID3_TAGS && hasMark(data, at, "ID3") && at + 10 <= data.length; tags++) {
    const size = [6, 7, 8, 9].reduce((sum, offset) => sum * 128 + (data[at + offset]! & 0x7f), 0);
    const footerBytes = data[at + 5]! & 0x10 ? 10 : 0;
    at += 10 + size + footerBytes;
  }
  return at;
}
