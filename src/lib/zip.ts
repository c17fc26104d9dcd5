import { PassThrough, Readable } from "node:stream";
import { finished } from "node:stream/promises";
import { ZipFile } from "yazl";

/** A file to be packed; `path` is relative, its segments safe names. */
export interface ZipEntry {
  path: string;
  changedAt: Date;
  content: AsyncIterable<Buffer>;
}

/** Readable and writable by its owner, readable by all. */
const MODE = 0o100644;
/** Text packs to nearly the same size at half the work of the usual 6. */
const LEVEL = 4;
const BUFFER_BYTES = 64 * 1024;

/**
 * Packs files one after the other into a ZIP (with Zip64 where it is needed), no faster than it is read: a few hundred
 * kilobytes in memory, however much there is. Whatever fails while reading the files is thrown. Reading ends, and the
 * files' generators are closed, when the caller stops or `signal` aborts.
 */
export async function* zip(entries: AsyncIterable<ZipEntry>, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  const archive = new ZipFile();
  // As its sources say: the types know less.
  const output = archive.outputStream as PassThrough;
  const stop = new AbortController();
  const either = AbortSignal.any([signal, stop.signal]);
  const end = () => output.destroy(new Error("the archive was given up"));
  either.addEventListener("abort", end, { once: true });
  if (signal.aborted) end();
  // Whoever reads it hears of an error; nobody may be reading yet.
  output.on("error", () => undefined);
  archive.on("error", (error: Error) => output.destroy(error));
  const filled = fill(archive, entries, either).catch((error: Error) => void output.destroy(error));
  try {
    for await (const chunk of output) yield chunk as Buffer;
  } finally {
    stop.abort();
    await filled;
  }
}

async function fill(archive: ZipFile, entries: AsyncIterable<ZipEntry>, signal: AbortSignal): Promise<void> {
  for await (const { path, changedAt, content } of entries) {
    signal.throwIfAborted();
    const source = Readable.from(content, { objectMode: false, highWaterMark: BUFFER_BYTES, signal });
    const options = { mtime: changedAt, mode: MODE, compressionLevel: LEVEL };
    archive.addReadStreamLazy(path, options, (take) => take(null, source));
    await finished(source);
  }
  archive.end();
}
