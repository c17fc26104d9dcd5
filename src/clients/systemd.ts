import { dlopen, FFIType } from "bun:ffi";
import type { Log } from "../lib/log.ts";

/** What a service tells the systemd that started it. Every call does nothing where none did. */
export interface Systemd {
  /** It serves; from now on the watchdog is fed for as long as the event loop turns. */
  ready(status: string): void;
  /** One sentence that `systemctl status` shows. */
  status(sentence: string): void;
  /** It is stopping, by itself or because it was told to. The watchdog is fed until the process ends. */
  stopping(): void;
}

/** A process's environment: systemd says in it where to tell (NOTIFY_SOCKET) and how often (WATCHDOG_USEC, WATCHDOG_PID). */
type Environment = Record<string, string | undefined>;

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;

/**
 * The protocol of sd_notify(3), by the C library's own calls: neither Bun nor Node opens a Unix datagram socket, and a
 * child process (systemd-notify) would be another sender than the main process, which systemd does not believe.
 */
export function connectSystemd(env: Environment, log: Log): Systemd {
  const socket = env["NOTIFY_SOCKET"];
  const send = socket ? openSender(socket, log) : null;
  if (!send) return { ready() {}, status() {}, stopping() {} };
  let feeding: ReturnType<typeof setInterval> | undefined;
  return {
    ready(status) {
      // The one message that must not be lost; the others rather than wait for a systemd that is busy.
      send(`READY=1\nSTATUS=${status}`, MSG_NOSIGNAL);
      const everyMs = watchdogInterval(env);
      // A timer of the event loop: one that is stuck sends none, and systemd starts the process again.
      if (everyMs !== null) feeding ??= setInterval(() => send("WATCHDOG=1"), everyMs);
    },
    status: (sentence) => send(`STATUS=${sentence}`),
    stopping: () => send("STOPPING=1\nSTATUS=stopping"),
  };
}

/** Half of what systemd allows, in milliseconds; null when it watches nobody, or another process. */
function watchdogInterval(env: Environment): number | null {
  const allowed = Number(env["WATCHDOG_USEC"]);
  const watched = env["WATCHDOG_PID"];
  if (!(allowed > 0) || (watched !== undefined && Number(watched) !== process.pid)) return null;
  return Math.max(1, Math.floor(allowed / 2000));
}

function openSender(path: string, log: Log): ((message: string, flags?: number) => void) | null {
  if (!/^[/@]./.test(path)) {
    log.warn("NOTIFY_SOCKET is no Unix socket: systemd is told nothing");
    return null;
  }
  const { symbols } = dlopen("libc.so.6", {
    socket: { args: [FFIType.i32, FFIType.i32, FFIType.i32], returns: FFIType.i32 },
    sendto: {
      args: [FFIType.i32, FFIType.ptr, FFIType.u64, FFIType.i32, FFIType.ptr, FFIType.u32],
      returns: FFIType.i64,
    },
  });
  const socket = symbols.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const address = renderAddress(path);
  return (message, flags = MSG_DONTWAIT | MSG_NOSIGNAL) => {
    const bytes = Buffer.from(message);
    const sent = symbols.sendto(socket, bytes, bytes.length, flags, address, address.length);
    if (Number(sent) !== bytes.length) log.warn({ about: message.split("=", 1)[0] }, "systemd could not be told");
  };
}

/** A sockaddr_un: the family, then the path; an abstract name (`@…`) begins with a zero byte and has none at its end. */
function renderAddress(path: string): Uint8Array {
  const isAbstract = path.startsWith("@");
  const name = Buffer.from(isAbstract ? `\0${path.slice(1)}` : `${path}\0`);
  const address = new Uint8Array(2 + name.length);
  new DataView(address.buffer).setUint16(0, AF_UNIX, true);
  address.set(name, 2);
  return address;
}
