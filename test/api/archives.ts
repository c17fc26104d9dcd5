import { randomBytes } from "node:crypto";
import { fromBuffer, type Entry, type ZipFile } from "yauzl";
import type { Sql } from "../../src/db/connect.ts";

/** The files of an archive by their path. */
export type Unpacked = Map<string, { content: Buffer; mode: number; changedAt: Date }>;

/** Unpacks an archive with a strict reader: names, sizes and checksums must be right. */
export async function unpack(bytes: Buffer): Promise<Unpacked> {
  const files: Unpacked = new Map();
  const archive = await new Promise<ZipFile>((done, fail) =>
    fromBuffer(bytes, { lazyEntries: true, strictFileNames: true }, (error, zip) => (error ? fail(error) : done(zip))),
  );
  await new Promise<void>((done, fail) => {
    archive.on("error", fail);
    archive.on("end", () => done());
    archive.on("entry", (entry: Entry) => {
      if (files.has(entry.fileName)) fail(new Error(`twice in the archive: ${entry.fileName}`));
      readEntry(archive, entry)
        .then((content) => {
          const mode = entry.externalFileAttributes >>> 16;
          files.set(entry.fileName, { content, mode, changedAt: entry.getLastModDate() });
          archive.readEntry();
        })
        .catch(fail);
    });
    archive.readEntry();
  });
  return files;
}

function readEntry(archive: ZipFile, entry: Entry): Promise<Buffer> {
  return new Promise((done, fail) =>
    archive.openReadStream(entry, (error, stream) => {
      if (error) return fail(error);
      const parts: Buffer[] = [];
      stream.on("data", (part: Buffer) => parts.push(part));
      stream.on("error", fail);
      stream.on("end", () => {
        const content = Buffer.concat(parts);
        if (Bun.hash.crc32(content) === entry.crc32) done(content);
        else fail(new Error(`checksum of ${entry.fileName}`));
      });
    }),
  );
}

/**
 * Gives an assistant a conversation of so many messages of so many characters, written straight into the tables. Text
 * that packs badly, so that a reader who stands still soon holds the writer up.
 */
export async function fill(
  sql: Sql,
  user: { id: string },
  assistant: { id: string },
  count: number,
  characters: number,
): Promise<void> {
  const noise = randomBytes(1_000_000);
  const bytes = Math.ceil(characters * 0.74);
  await sql.begin(async (tx) => {
    // Without the checks of foreign keys: they are most of the time.
    await tx`set local session_replication_role = replica`;
    const [at] = await tx<{ gatewayId: string; lastSeq: number }[]>`
      update assistants set last_seq = last_seq + ${count}, message_count = message_count + ${count}
      where id = ${assistant.id} returning gateway_id, last_seq - ${count} as last_seq`;
    await tx`
      create temporary table made on commit drop as
      select gen_random_uuid() as turn_id, n from generate_series(1, ${count / 2}) n`;
    await tx`
      insert into turns (id, assistant_id, user_id, gateway_id, seq, status, finished_at)
      select turn_id, ${assistant.id}, ${user.id}, ${at!.gatewayId}, ${at!.lastSeq} + 2 * n - 1, 'done', now() from made`;
    await tx`
      insert into messages (id, assistant_id, user_id, turn_id, seq, role, content, finish)
      select gen_random_uuid(), ${assistant.id}, ${user.id}, turn_id, ${at!.lastSeq} + 2 * n - 1 + k,
        case k when 0 then 'user' else 'assistant' end,
        encode(substring(${noise}::bytea from (1 + ((n::bigint * 2 + k) * 7919) % ${noise.length - bytes})::int
          for ${bytes}::int), 'base64'),
        case k when 1 then 'complete' end
      from made, generate_series(0, 1) k`;
  });
  await sql`analyze messages, turns`;
}
