import type { PcmLayout } from "./sound.ts";

/** Samples of each channel, -1 to 1, from interleaved ones (little-endian, as in WAVE files). */
export function readPcm(data: Buffer, { encoding, bytesPerSample }: PcmLayout, channels: number): Float32Array[] {
  const frameBytes = bytesPerSample * channels;
  const count = Math.floor(data.length / frameBytes);
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const read = READERS[`${encoding}${bytesPerSample}`];
  if (!read) throw new RangeError("samples of an unknown kind");
  return Array.from({ length: channels }, (_, channel) => {
    const samples = new Float32Array(count);
    for (let index = 0; index < count; index++)
      samples[index] = read(view, index * frameBytes + channel * bytesPerSample);
    return samples;
  });
}

const READERS: Record<string, (view: DataView, at: number) => number> = {
  // Bytes are the one size without a sign.
  integer1: (view, at) => (view.getUint8(at) - 128) / 128,
  integer2: (view, at) => view.getInt16(at, true) / 2 ** 15,
  integer3: (view, at) => (view.getInt16(at + 1, true) * 256 + view.getUint8(at)) / 2 ** 23,
  integer4: (view, at) => view.getInt32(at, true) / 2 ** 31,
  float4: (view, at) => view.getFloat32(at, true),
  float8: (view, at) => view.getFloat64(at, true),
  alaw1: (view, at) => expandAlaw(view.getUint8(at)),
  mulaw1: (view, at) => expandMulaw(view.getUint8(at)),
};

/** G.711, as European telephones send it. */
function expandAlaw(byte: number): number {
  const code = byte ^ 0x55;
  const segment = (code >> 4) & 7;
  const step = ((code & 15) << 4) + 8;
  const size = segment === 0 ? step : (step + 0x100) << (segment - 1);
  return (code & 0x80 ? size : -size) / 2 ** 15;
}

/** G.711, as American telephones send it. */
function expandMulaw(byte: number): number {
  const code = ~byte & 0xff;
  const size = ((((code & 15) << 3) + 0x84) << ((code >> 4) & 7)) - 0x84;
  return (code & 0x80 ? -size : size) / 2 ** 15;
}
