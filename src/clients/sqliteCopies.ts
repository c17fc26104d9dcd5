import { access, chmod, rm } from "node:fs/promises";
import { sleep } from "../lib/retry.ts";
import type { CopyAnswer, CopyQuestion } from "./sqliteWorker.ts";

const TRIES = 20;
const PAUSE_MS = 250;

/** Copies SQLite databases that others write to at the same time. */
export interface SqliteCopies {
  /** "damaged": SQLite can't read it. Rejects when it can't be copied; a busy one is tried for some time. Paths without links. */
  copy(from: string, to: string): Promise<"copied" | "gone" | "damaged">;
  close(): void;
}

export function createSqliteCopies(): SqliteCopies {
  const worker = new Worker(new URL("./sqliteWorker.ts", import.meta.url), { smol: true });
  const ask = (question: CopyQuestion) =>
    new Promise<string>((resolve, reject) => {
      worker.onmessage = ({ data }: MessageEvent<CopyAnswer>) => resolve(data.fault);
      worker.onerror = (event) => reject(new Error(event.message));
      worker.postMessage(question);
    });
  return {
    async copy(from, to) {
      for (let tries = 1; ; tries += 1) {
        const fault = await ask({ from, to });
        if (fault === "") {
          await chmod(to, 0o600);
          return "copied";
        }
        await rm(to, { force: true });
        if (!(await exists(from))) return "gone";
        if (/^SQLITE_(CORRUPT|NOTADB)/.test(fault)) return "damaged";
        if (fault.startsWith("SQLITE_FULL")) throw Object.assign(new Error("the disk is full"), { code: "ENOSPC" });
        const passes = fault.startsWith("SQLITE_BUSY") || fault.startsWith("SQLITE_LOCKED");
        if (!passes || tries === TRIES) throw new Error(`a database of the gateway could not be copied (${fault})`);
        await sleep(PAUSE_MS);
      }
    },
    close: () => worker.terminate(),
  };
}

function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
