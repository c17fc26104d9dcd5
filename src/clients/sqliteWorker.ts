import { constants, Database } from "bun:sqlite";

/** Copy the database at `from` to the new file `to`. */
export interface CopyQuestion {
  from: string;
  to: string;
}
/** `fault`: SQLite's code, "" when it is done. */
export interface CopyAnswer {
  fault: string;
}

declare const self: Worker;

// A thread: VACUUM INTO holds its thread until it is done, and whoever holds a lock has to say so every second.
self.onmessage = ({ data }: MessageEvent<CopyQuestion>) => {
  const answer: CopyAnswer = { fault: copy(data) };
  self.postMessage(answer);
};

/** One read transaction, so it is whole, with what is still in the WAL; the writer goes on meanwhile. */
function copy({ from, to }: CopyQuestion): string {
  let database: Database | undefined;
  try {
    // The folder is another user's, who may put a link in a file's place.
    database = new Database(from, constants.SQLITE_OPEN_READONLY | constants.SQLITE_OPEN_NOFOLLOW);
    database.run("pragma busy_timeout = 5000");
    database.run("vacuum into ?", [to]);
    return "";
  } catch (error) {
    return (error as { code?: string }).code ?? String(error);
  } finally {
    database?.close();
  }
}
