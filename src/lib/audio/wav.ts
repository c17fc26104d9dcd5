import { hasMark, isRate, STEPS_PER_TURN, type Packets, type PcmLayout, type Sound } from "./sound.ts";

const PCM = 1;
const FLOAT = 3;
const ALAW = 6;
const MULAW = 7;
const IMA_ADPCM = 0x11;
const EXTENSIBLE = 0xfffe;
const ENCODINGS = new Map<number, PcmLayout["encoding"]>([
  [PCM, "integer"],
  [FLOAT, "float"],
  [ALAW, "alaw"],
  [MULAW, "mulaw"],
]);
/** A second of 16 kHz mono; a multiple of every usual frame size is made of it. */
const PACKET_BYTES = 32_000;
const MAX_CHANNELS = 32;

/** Whether it is a WAVE file, long ones (RF64) among them. */
export function isWav(data: Buffer): boolean {
  return (hasMark(data, 0, "RIFF") || hasMark(data, 0, "RF64")) && hasMark(data, 8, "WAVE");
}

/**
 * A WAVE file's samples, in pieces of about a second. What the header claims of its length is not believed: it is wrong in
 * streams (0, 0xFFFFFFFF) and in files that were cut, and all that is there is played.
 */
export function* wavPackets(data: Buffer): Packets {
  let sound: FramedSound | null = null;
  let at = 12;
  for (let steps = 1; at + 8 <= data.length; steps++) {
    if (steps % STEPS_PER_TURN === 0) yield undefined;
    const size = data.readUInt32LE(at + 4);
    const body = at + 8;
    if (hasMark(data, at, "fmt ")) sound = readFormat(data.subarray(body, body + size));
    if (hasMark(data, at, "data")) {
      if (!sound) return;
      const end = endOfSamples(data, body, size);
      yield* slices(sound, data.subarray(body, end));
      at = end;
    } else at = body + size + (size % 2);
  }
}

/** 24 kHz, 16 bits, mono, without any header: OpenAI's "pcm". */
export function* rawPcmPackets(data: Buffer): Packets {
  yield* slices(framedSound("integer", 1, 2, 24_000), data);
}

interface FramedSound extends Sound {
  /** Samples of all channels at one moment; of ADPCM a block. */
  readonly frameBytes: number;
}

/** Where the samples end that begin at `body`: before the next chunk, if there really is one, or with the file. */
function endOfSamples(data: Buffer, body: number, size: number): number {
  const claimed = body + size + (size % 2);
  const isChunk =
    claimed + 8 <= data.length && /^[A-Za-z0-9 _-]{4}$/.test(data.toString("latin1", claimed, claimed + 4));
  const fits = isChunk && claimed + 8 + data.readUInt32LE(claimed + 4) <= data.length;
  return size > 0 && fits ? claimed : data.length;
}

function* slices(sound: FramedSound, samples: Buffer): Packets {
  const { frameBytes } = sound;
  const step = Math.max(frameBytes, PACKET_BYTES - (PACKET_BYTES % frameBytes));
  for (let at = 0; at < samples.length; at += step) {
    const rest = Math.min(step, samples.length - at);
    yield { sound, data: samples.subarray(at, at + rest - (rest % frameBytes)) };
  }
}

function readFormat(chunk: Buffer): FramedSound | null {
  if (chunk.length < 16) return null;
  let tag = chunk.readUInt16LE(0);
  const channels = chunk.readUInt16LE(2);
  const rate = chunk.readUInt32LE(4);
  const blockBytes = chunk.readUInt16LE(12);
  const bits = chunk.readUInt16LE(14);
  if (tag === EXTENSIBLE && chunk.length >= 26) tag = chunk.readUInt16LE(24);
  if (channels < 1 || channels > MAX_CHANNELS || !isRate(rate)) return null;
  if (tag === IMA_ADPCM) return adpcmSound(channels, rate, blockBytes);
  const encoding = ENCODINGS.get(tag);
  const bytes = Math.ceil(bits / 8);
  const known = { integer: [1, 2, 3, 4], float: [4, 8], alaw: [1], mulaw: [1] };
  return encoding && known[encoding].includes(bytes) ? framedSound(encoding, channels, bytes, rate) : null;
}

function framedSound(
  encoding: PcmLayout["encoding"],
  channels: number,
  bytesPerSample: number,
  rate: number,
): FramedSound {
  const frameBytes = channels * bytesPerSample;
  return {
    codec: "pcm",
    channels,
    setup: [],
    pcm: { encoding, bytesPerSample, rate },
    skipSeconds: 0,
    frameBytes,
    secondsOf: (packet) => packet.length / frameBytes / rate,
  };
}

/** Four bits a sample; each block begins with one whole sample of each channel. */
function adpcmSound(channels: number, rate: number, blockBytes: number): FramedSound | null {
  if (blockBytes < 8 * channels) return null;
  const samples = ((blockBytes - 4 * channels) * 2) / channels + 1;
  return {
    codec: "pcm",
    channels,
    setup: [],
    skipSeconds: 0,
    frameBytes: blockBytes,
    secondsOf: (packet) => (packet.length / blockBytes) * (samples / rate),
  };
}
