import { firstFrame, frames, type FrameHeader } from "./frames.ts";
import { afterId3, hasMark, type Packets, type Sound } from "./sound.ts";

const KBPS_V1 = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];
const KBPS_V2 = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];
/** By the header's two bits: MPEG 2.5, none, 2, 1. */
const RATES = [[11_025, 12_000, 8_000], [], [22_050, 24_000, 16_000], [44_100, 48_000, 32_000]];
const LAYER_3 = 1;
const MONO = 3;

/** Whether it is MPEG audio of layer III, by its frames. */
export function isMp3(data: Buffer): boolean {
  return firstFrame(data, afterId3(data), readHeader) >= 0;
}

/**
 * An MP3's frames. The one that holds no sound but the encoder's notes (Xing, Info, VBRI) is left out; of the notes only
 * what the encoder added at both ends is used.
 */
export function* mp3Packets(data: Buffer): Packets {
  let sound: Sound | undefined;
  for (const frame of frames(data, afterId3(data), readHeader)) {
    if (!frame) {
      yield undefined;
      continue;
    }
    const packet = data.subarray(frame.at, frame.at + frame.header.bytes);
    if (!sound) {
      const notes = notesAt(packet, frame.header);
      sound = soundOf(frame.header, notes < 0 ? 0 : addedSamples(packet, notes));
      if (notes >= 0) continue;
    }
    yield { sound, data: packet };
  }
}

/** Free format (no bit rate given) is refused: nobody's recorder makes it. */
function readHeader(data: Buffer, at: number): FrameHeader | null {
  if (at + 4 > data.length || data[at] !== 0xff || (data[at + 1]! & 0xe0) !== 0xe0) return null;
  const version = (data[at + 1]! >> 3) & 3;
  const layer = (data[at + 1]! >> 1) & 3;
  const third = data[at + 2]!;
  const rate = RATES[version]![(third >> 2) & 3];
  const kbps = (version === 3 ? KBPS_V1 : KBPS_V2)[third >> 4];
  if (layer !== LAYER_3 || !rate || !kbps) return null;
  const samples = version === 3 ? 1_152 : 576;
  const bytes = Math.floor((samples / 8) * ((kbps * 1000) / rate)) + ((third >> 1) & 1);
  const channels = data[at + 3]! >> 6 === MONO ? 1 : 2;
  return { bytes, samples, rate, channels, key: rate };
}

function soundOf({ rate, channels, samples }: FrameHeader, added: number): Sound {
  const seconds = samples / rate;
  return { codec: "mp3", channels, setup: [], skipSeconds: added / rate, secondsOf: () => seconds };
}

/** Where the encoder's notes begin in the first frame, or -1: behind the empty side information, or at a fixed place. */
function notesAt(packet: Buffer, { samples, channels }: FrameHeader): number {
  const stereo = channels === 2;
  const sideBytes = samples === 1_152 ? (stereo ? 32 : 17) : stereo ? 17 : 9;
  const at = 4 + sideBytes;
  if (hasMark(packet, at, "Xing") || hasMark(packet, at, "Info")) return at;
  return hasMark(packet, 36, "VBRI") ? 36 : -1;
}

/** Samples the encoder put in front and behind (at most 4095 each), from LAME's part of the notes. */
function addedSamples(packet: Buffer, notes: number): number {
  if (hasMark(packet, notes, "VBRI") || notes + 8 > packet.length) return 0;
  const flags = packet.readUInt32BE(notes + 4);
  const lame = notes + 8 + (flags & 1 ? 4 : 0) + (flags & 2 ? 4 : 0) + (flags & 4 ? 100 : 0) + (flags & 8 ? 4 : 0);
  if (lame + 24 > packet.length || !/^(LAME|Lavc|Lavf)/.test(packet.toString("latin1", lame, lame + 4))) return 0;
  const [first, middle, last] = [packet[lame + 21]!, packet[lame + 22]!, packet[lame + 23]!];
  return (first << 4) + (middle >> 4) + ((middle & 15) << 8) + last;
}
