import { flacPackets, isFlac } from "./flac.ts";
import { isMp3, mp3Packets } from "./mp3.ts";
import { isMp4, mp4Packets } from "./mp4.ts";
import { isOgg, oggPackets } from "./ogg.ts";
import { viewOf, type Packets } from "./sound.ts";
import { isWav, wavPackets } from "./wav.ts";
import { isWebm, webmPackets } from "./webm.ts";

export const AUDIO_FORMATS = ["wav", "mp3", "m4a", "webm", "ogg", "flac"] as const;
export type AudioFormat = (typeof AUDIO_FORMATS)[number];

export const MEDIA_TYPES: Record<AudioFormat, string> = {
  wav: "audio/wav",
  mp3: "audio/mpeg",
  m4a: "audio/mp4",
  webm: "audio/webm",
  ogg: "audio/ogg",
  flac: "audio/flac",
};

interface Reader {
  is(data: Buffer): boolean;
  packets(data: Buffer): Packets;
}

/** In this order: MP3 has no mark at its beginning, so what has one comes first. */
const READERS: Record<AudioFormat, Reader> = {
  wav: { is: isWav, packets: wavPackets },
  m4a: { is: isMp4, packets: mp4Packets },
  webm: { is: isWebm, packets: webmPackets },
  ogg: { is: isOgg, packets: oggPackets },
  flac: { is: isFlac, packets: flacPackets },
  mp3: { is: isMp3, packets: mp3Packets },
};

/** Turns of searching until a file counts as one without sound. */
const MAX_TURNS = 256;

/**
 * What a recording is, from its bytes alone; null for anything that has no sound we can read: other files, text, a video
 * without a sound track, a header with nothing behind it. A video with sound counts as what its container is.
 */
export function detectFormat(bytes: Uint8Array): AudioFormat | null {
  const data = viewOf(bytes);
  const format = (Object.keys(READERS) as AudioFormat[]).find((candidate) => READERS[candidate].is(data));
  return format && hasSound(READERS[format].packets(data)) ? format : null;
}

function hasSound(packets: Packets): boolean {
  let turns = 0;
  try {
    for (const packet of packets) {
      if (packet) return true;
      turns += 1;
      if (turns === MAX_TURNS) return false;
    }
  } catch {
    return false;
  }
  return false;
}

/** The coded packets of a recording; none if it is of another format. */
export function packetsOf(bytes: Uint8Array, format: AudioFormat): Packets {
  const data = viewOf(bytes);
  const reader = READERS[format];
  return reader.is(data) ? reader.packets(data) : empty();
}

function* empty(): Packets {}
