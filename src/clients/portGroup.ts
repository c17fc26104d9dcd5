import { dlopen, ptr } from "bun:ffi";
import type { Log } from "../lib/log.ts";

// Linux's numbers, of x86-64 and arm64 alike.
const SOL_SOCKET = 1;
const SO_ACCEPTCONN = 30;
const SO_ATTACH_REUSEPORT_CBPF = 51;
const RETURN_CONSTANT = 0x06;
/** Our listener is opened early: its number is a low one. */
const MAX_DESCRIPTOR = 1024;

/**
 * Tells the kernel which of the processes on one port (SO_REUSEPORT) takes a new connection: while there is one more
 * than `processes`, the newest; else any. So nothing new comes to one that is being replaced, and its close resets nobody.
 */
export function preferNewest(processes: number, log: Log): void {
  try {
    const libc = dlopen("libc.so.6", {
      getsockopt: { args: ["i32", "i32", "i32", "ptr", "ptr"], returns: "i32" },
      setsockopt: { args: ["i32", "i32", "i32", "ptr", "u32"], returns: "i32" },
    });
    const program = renderProgram(processes);
    let attached = 0;
    for (let fd = 0; fd < MAX_DESCRIPTOR; fd++) {
      const listens = new Int32Array(1);
      const size = new Uint32Array([4]);
      if (libc.symbols.getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, ptr(listens), ptr(size)) !== 0) continue;
      // A listener that shares its port with nobody refuses the program.
      if (listens[0] !== 1) continue;
      const { setsockopt } = libc.symbols;
      if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, ptr(program.head), program.head.length) === 0)
        attached++;
    }
    libc.close();
    if (attached === 0) throw new Error("the kernel refused the program");
  } catch (err) {
    log.warn({ err }, "new connections also go to a process that is being replaced; a restart may reset some");
  }
}

/**
 * "Return N", in classic BPF: the group's members are numbered from 0 in the order they began to listen, and a number that
 * nobody has leaves the choice to the kernel. When one closes, the last gets its number (socket(7)).
 */
function renderProgram(newest: number): { head: Uint8Array; body: Uint8Array } {
  const body = new Uint8Array(8);
  const instruction = new DataView(body.buffer);
  instruction.setUint16(0, RETURN_CONSTANT, true);
  instruction.setUint32(4, newest, true);
  const head = new Uint8Array(16);
  const program = new DataView(head.buffer);
  program.setUint16(0, 1, true);
  program.setBigUint64(8, BigInt(ptr(body)), true);
  // `head` holds a bare pointer: whoever holds it must hold `body`, too.
  return { head, body };
}
