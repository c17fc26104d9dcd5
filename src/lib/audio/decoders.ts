import { FLACDecoder } from "@wasm-audio-decoders/flac";
import { OggVorbisDecoder } from "@wasm-audio-decoders/ogg-vorbis";
import { MPEGDecoder } from "mpg123-decoder";
import { OpusDecoder } from "opus-decoder";
import { isLowComplexity } from "./aac.ts";
import { isSilentAac } from "./aacSilence.ts";
import { isWholeFrame } from "./flac.ts";
import { LOWEST_DB, type SpeechDetector } from "./loudness.ts";
import { readPcm } from "./pcm.ts";
import type { Sound } from "./sound.ts";
import { vorbisPages } from "./vorbisPages.ts";

/** Turns one sound's packets into samples and gives them to a detector. */
export interface Decoder {
  /** Throws on a packet that can't be decoded; the next one may be. */
  decode(packet: Buffer, detector: SpeechDetector): void | Promise<void>;
  free(): void;
}

/** Enough for speech, and the cheapest that Opus decodes to. */
const OPUS_RATE = 16_000;
/** More channels cost memory, and nobody speaks in them. */
const MAX_CHANNELS = 8;
/** Parts a FLAC frame may have been taken for before it counts as damaged. */
const MAX_FLAC_PARTS = 3;

/** A decoder for this sound, or null where there is none. */
export async function createDecoder(sound: Sound): Promise<Decoder | null> {
  const { codec, channels, pcm } = sound;
  if (channels > MAX_CHANNELS) return null;
  if (codec === "mp3") return mp3Decoder();
  if (codec === "opus") return channels <= 2 ? opusDecoder(channels) : null;
  if (codec === "vorbis") return vorbisDecoder(sound);
  if (codec === "flac") return flacDecoder();
  if (codec === "aac") return sound.setup[0] && isLowComplexity(sound.setup[0]) ? aacListener(sound) : null;
  if (!pcm) return null;
  return { decode: (packet, detector) => detector.addSamples(readPcm(packet, pcm, channels), pcm.rate), free() {} };
}

/** Tells zeros from all else: what isn't silent counts as loud. */
function aacListener(sound: Sound): Decoder {
  return {
    decode: (frame, detector) => detector.addLevel(isSilentAac(frame) ? LOWEST_DB : 0, sound.secondsOf(frame)),
    free() {},
  };
}

async function mp3Decoder(): Promise<Decoder> {
  const decoder = new MPEGDecoder();
  await decoder.ready;
  return {
    decode(packet, detector) {
      const { channelData, sampleRate } = decoder.decode(packet);
      detector.addSamples(channelData, sampleRate);
    },
    free: () => decoder.free(),
  };
}

async function opusDecoder(channels: number): Promise<Decoder> {
  const decoder = new OpusDecoder({ channels: Math.max(1, channels), sampleRate: OPUS_RATE });
  await decoder.ready;
  return {
    decode(packet, detector) {
      detector.addSamples(decoder.decodeFrame(packet).channelData, OPUS_RATE);
    },
    free: () => decoder.free(),
  };
}

/** Only whole frames: the decoder is lost for good after half a one, and what looks like a header may be inside a frame. */
async function flacDecoder(): Promise<Decoder> {
  const decoder = new FLACDecoder();
  await decoder.ready;
  let begun: Buffer[] = [];
  return {
    async decode(packet, detector) {
      const frame = [packet, Buffer.concat([...begun, packet])].find(isWholeFrame);
      begun = frame || begun.length === MAX_FLAC_PARTS ? [] : [...begun, packet];
      if (!frame) return;
      const { channelData, sampleRate } = await decoder.decodeFrames([frame]);
      detector.addSamples(channelData, sampleRate);
    },
    free: () => decoder.free(),
  };
}

async function vorbisDecoder(sound: Sound): Promise<Decoder> {
  const decoder = new OggVorbisDecoder();
  await decoder.ready;
  const pages = vorbisPages(sound.setup);
  await decoder.decode(pages.head());
  return {
    async decode(packet, detector) {
      const { channelData, sampleRate } = await decoder.decode(pages.page(packet));
      detector.addSamples(channelData, sampleRate);
    },
    free: () => decoder.free(),
  };
}
