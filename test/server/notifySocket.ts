import { dlopen, FFIType } from "bun:ffi";

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const MSG_DONTWAIT = 0x40;

export interface NotifySocket {
  /** All lines received so far, e.g. "READY=1". */
  read(): string[];
  close(): void;
}

/** A real Unix datagram socket at a path, or at an abstract name ("@…"), as systemd has for its services. */
export function openNotifySocket(path: string): NotifySocket {
  const { symbols } = dlopen("libc.so.6", {
    socket: { args: [FFIType.i32, FFIType.i32, FFIType.i32], returns: FFIType.i32 },
    bind: { args: [FFIType.i32, FFIType.ptr, FFIType.u32], returns: FFIType.i32 },
    recv: { args: [FFIType.i32, FFIType.ptr, FFIType.u64, FFIType.i32], returns: FFIType.i64 },
    close: { args: [FFIType.i32], returns: FFIType.i32 },
  });
  const socket = symbols.socket(AF_UNIX, SOCK_DGRAM, 0);
  const name = Buffer.from(path.startsWith("@") ? `\0${path.slice(1)}` : path);
  const address = Buffer.concat([Buffer.from([AF_UNIX, 0]), name]);
  if (symbols.bind(socket, address, address.length) !== 0) throw new Error(`could not bind ${path}`);
  const lines: string[] = [];
  const buffer = new Uint8Array(4096);
  return {
    read() {
      for (;;) {
        const length = Number(symbols.recv(socket, buffer, buffer.length, MSG_DONTWAIT));
        if (length < 0) return lines;
        lines.push(...Buffer.from(buffer.subarray(0, length)).toString("utf8").split("\n"));
      }
    },
    close: () => void symbols.close(socket),
  };
}
