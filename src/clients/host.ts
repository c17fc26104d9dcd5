import { execFile } from "node:child_process";
import { chmod, chown, lstat, mkdir, readdir, readFile, rm, statfs, utimes, writeFile } from "node:fs/promises";
import { userInfo } from "node:os";
import { join } from "node:path";

/** What a program said; `code` 0 is well. */
export interface Ran {
  code: number;
  out: string;
  err: string;
}

/** A file or folder as it stands. `owner` is a name, or a number that no user has. */
export interface Standing {
  owner: string;
  /** The permission bits, e.g. 0o600. */
  mode: number;
  modifiedAt: Date;
}

export interface Room {
  bytes: number;
  freeBytes: number;
  inodes: number;
  freeInodes: number;
}

/** A user of the machine. */
export interface MachineUser {
  name: string;
  uid: number;
  gid: number;
  shell: string;
}

export interface HostOptions {
  /** Where its files begin: "/" but in tests. */
  root?: string;
  /** Where its programs are looked for. */
  path?: string;
  /** Stands in for the file system's word in tests. */
  statfs?: (path: string) => Promise<Room | null>;
}

const PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const RUN_MS = 10_000;

/**
 * The machine that this process runs on: its files, programs and users. Reading answers null for what is not there or may
 * not be seen; changing rejects with what the system says.
 */
export type Host = ReturnType<typeof createHost>;

export function createHost(options: HostOptions = {}) {
  const root = options.root ?? "/";
  const at = (path: string) => join(root, path);
  const read = (path: string) => orNull(readFile(at(path), "utf8"));
  const users = async () => parseUsers((await read("/etc/passwd")) ?? "");
  return {
    /** Who we are, as the machine calls us. */
    user: userInfo().username,
    isRoot: process.getuid?.() === 0,
    read,
    users,
    /** Whether systemd runs this machine (sd_booted). */
    hasSystemd: async () => (await orNull(lstat(at("/run/systemd/system")))) !== null,
    async stand(path: string): Promise<Standing | null> {
      const found = await orNull(lstat(at(path)));
      if (!found) return null;
      const owner = (await users()).find(({ uid }) => uid === found.uid)?.name ?? String(found.uid);
      return { owner, mode: found.mode & 0o7777, modifiedAt: found.mtime };
    },
    /** Names in a folder; null when it is not there or may not be read. */
    list: (path: string): Promise<string[] | null> => orNull(readdir(at(path))),
    room: (path: string): Promise<Room | null> =>
      options.statfs ? options.statfs(path) : orNull(statfs(at(path)).then(toRoom)),
    /** Runs a program; null when there is none of that name. One that takes longer is killed, code 124. */
    run: (command: [string, ...string[]], limits: { ms?: number } = {}): Promise<Ran | null> =>
      runProgram([command[0].startsWith("/") ? at(command[0]) : command[0], ...command.slice(1)], {
        path: options.path ?? PATH,
        ms: limits.ms ?? RUN_MS,
      }),
    setMode: (path: string, mode: number) => chmod(at(path), mode),
    async setOwner(path: string, name: string): Promise<void> {
      const user = (await users()).find((one) => one.name === name);
      if (!user) throw new Error(`there is no user ${name}`);
      await chown(at(path), user.uid, user.gid);
    },
    async makeFolder(path: string, mode: number): Promise<void> {
      await mkdir(at(path), { recursive: true, mode });
    },
    /** Leaves an empty file as a sign; false when it is there already. */
    async leaveSign(path: string): Promise<boolean> {
      try {
        await writeFile(at(path), "", { flag: "wx", mode: 0o600 });
        return true;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
        throw error;
      }
    },
    renewSign: (path: string) => utimes(at(path), new Date(), new Date()),
    removeSign: (path: string) => rm(at(path), { force: true }),
  };
}

/** What this release pins, by package: the versions that it was proved with. */
export async function readPins(): Promise<Record<string, string>> {
  const text = await readFile(join(import.meta.dir, "../../package.json"), "utf8");
  return (JSON.parse(text) as { dependencies: Record<string, string> }).dependencies;
}

function runProgram([name, ...args]: [string, ...string[]], { path, ms }: { path: string; ms: number }) {
  return new Promise<Ran | null>((resolve) => {
    const env = { PATH: path, LC_ALL: "C.UTF-8", SYSTEMD_PAGER: "", SYSTEMD_COLORS: "0" };
    const limits = { env, timeout: ms, killSignal: "SIGKILL" as const, maxBuffer: 8 * 1024 * 1024 };
    execFile(name, args, limits, (error, out, err) => {
      const code = (error as { code?: unknown } | null)?.code;
      if (code === "ENOENT" || code === "EACCES") return resolve(null);
      if (error?.killed) return resolve({ code: 124, out, err: `took longer than ${ms} ms` });
      resolve({ code: error === null ? 0 : typeof code === "number" ? code : 1, out, err });
    });
  });
}

function toRoom(found: { bsize: number; blocks: number; bavail: number; files: number; ffree: number }): Room {
  const { bsize, blocks, bavail, files, ffree } = found;
  return { bytes: blocks * bsize, freeBytes: bavail * bsize, inodes: files, freeInodes: ffree };
}

function parseUsers(text: string): MachineUser[] {
  return text.split("\n").flatMap((line) => {
    const [name = "", , uid = "", gid = "", , , shell = ""] = line.split(":");
    return name === "" ? [] : [{ name, uid: Number(uid), gid: Number(gid), shell: shell.trim() }];
  });
}

function orNull<T>(asked: Promise<T>): Promise<T | null> {
  return asked.catch(() => null);
}
