import type { Config } from "../config.ts";
import { RETENTION } from "../lib/retention.ts";
import { sleep } from "../lib/retry.ts";
import { ProgramError, runProgram } from "./programs.ts";

/** What the last line says of a repository that somebody else works at (restic 0.14 to 0.18). */
const LOCKED = /already locked|`unlock` command/;
const LOCK_PAUSE_MS = 5_000;
const LOCKED_MS = 1_800_000;

type ResticConfig = Pick<Config, "RESTIC_REPOSITORY" | "RESTIC_PASSWORD" | "BACKUP_DIR">;

/** The second place of the backups, as restic keeps it: encrypted, and each piece once. */
export interface Restic {
  /** Sends whole folders, named by when they were made and whose files they hold; makes the repository when there is none. */
  send(input: { paths: string[]; at: Date; gatewayId: string | undefined; signal: AbortSignal }): Promise<void>;
  /** Forgets what the retention does not keep, and frees its room. */
  forget(signal: AbortSignal): Promise<void>;
}

/** Null where no second place is configured. Throws when its password is missing. */
export function createRestic(config: ResticConfig): Restic | null {
  const { RESTIC_REPOSITORY: repository, RESTIC_PASSWORD: password } = config;
  if (!repository) return null;
  if (!password) throw new Error("RESTIC_REPOSITORY is set and RESTIC_PASSWORD is missing");
  const env = {
    RESTIC_REPOSITORY: repository,
    RESTIC_PASSWORD: password,
    RESTIC_CACHE_DIR: `${config.BACKUP_DIR}/.restic-cache`,
    TZ: "UTC",
  };
  const restic = (args: string[], signal: AbortSignal, untilMs = Date.now() + LOCKED_MS): Promise<unknown> =>
    runProgram({ program: "restic", args: ["--quiet", ...args], env, signal }).catch(async (error: unknown) => {
      // Forgetting wants the repository for itself, and other hosts begin at the same hour.
      if (error instanceof ProgramError && LOCKED.test(error.message) && Date.now() < untilMs) {
        await sleep(LOCK_PAUSE_MS, signal);
        signal.throwIfAborted();
        return restic(args, signal, untilMs);
      }
      // The address may hold the name and password of whoever may write there.
      if (!(error instanceof ProgramError)) throw error;
      throw new Error(error.message.replaceAll(repository, "the repository"));
    });
  return {
    async send({ paths, at, gatewayId, signal }) {
      // Removes locks of runs that were killed; those of living ones stay. First of all: one that was killed while it forgot
      // lets nobody in, but for this.
      await restic(["unlock"], signal).catch(async (unknown: unknown) => {
        // There is none, or it is out of reach, or the password is wrong: only the first is put right by making one.
        await restic(["init"], signal).catch(() => {
          throw unknown;
        });
      });
      const time = at.toISOString().slice(0, 19).replace("T", " ");
      // Several hosts may share a repository: restore.sh takes the newest that has its own gateway's files.
      const tags = gatewayId === undefined ? "reef" : `reef,gateway-${gatewayId}`;
      await restic(["backup", "--tag", tags, "--time", time, ...paths], signal);
    },
    async forget(signal) {
      const keep = Object.entries(RETENTION).flatMap(([unit, count]) => [`--keep-${unit}`, String(count)]);
      // Each backup is a path of its own: without the grouping each would be the newest of its kind.
      await restic(["forget", "--tag", "reef", "--group-by", "host,tags", ...keep, "--prune"], signal);
    },
  };
}
