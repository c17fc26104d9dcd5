import { connect } from "node:net";
import type { Json } from "../factories.ts";
import { until } from "../harness.ts";

/** A client whose reading can be stopped: a WebSocket by hand on a TCP socket. */
export async function openRawChat(url: string, token: string, agentId: string) {
  const { hostname, port } = new URL(url);
  const socket = connect(Number(port), hostname);
  const frames: Json[] = [];
  let rest: Buffer = Buffer.alloc(0);
  let upgraded = false;
  socket.on("data", (data: Buffer) => {
    rest = Buffer.concat([rest, data]);
    const head = upgraded ? 0 : rest.indexOf("\r\n\r\n") + 4;
    upgraded = true;
    rest = takeFrames(rest.subarray(head), frames);
  });
  socket.write(
    `GET /ws/chat?agent_id=${agentId}&token=${token}&after_seq=0 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n` +
      "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
  );
  await until("it is connected", () => frames[0]?.type === "connected");
  return {
    frames,
    pause: () => socket.pause(),
    resume: () => socket.resume(),
    destroy: () => socket.destroy(),
    send: (frame: unknown) => void socket.write(renderFrame(JSON.stringify(frame))),
    messages: () => frames.filter((frame) => frame.type === "message"),
  };
}

/** Takes the JSON of the whole text frames of a server (RFC 6455, unmasked); returns what is left. */
function takeFrames(bytes: Buffer, frames: Json[]): Buffer {
  let at = 0;
  while (at + 2 <= bytes.length) {
    const short = bytes[at + 1]! & 0x7f;
    const head = short === 126 ? 4 : short === 127 ? 10 : 2;
    if (at + head > bytes.length) break;
    const length =
      short === 126 ? bytes.readUInt16BE(at + 2) : short === 127 ? Number(bytes.readBigUInt64BE(at + 2)) : short;
    if (at + head + length > bytes.length) break;
    if ((bytes[at]! & 0x0f) === 1) frames.push(JSON.parse(bytes.toString("utf8", at + head, at + head + length)));
    at += head + length;
  }
  return bytes.subarray(at);
}

/** A whole text frame of a client; its mask is zero. */
function renderFrame(text: string): Buffer {
  const payload = Buffer.from(text);
  const wide = payload.length > 0xffff;
  const length = Buffer.alloc(wide ? 8 : payload.length > 125 ? 2 : 0);
  if (wide) length.writeBigUInt64BE(BigInt(payload.length));
  else if (length.length === 2) length.writeUInt16BE(payload.length);
  const short = [payload.length, 126, 127][Math.ceil(length.length / 4)]!;
  return Buffer.concat([Buffer.from([0x81, 0x80 | short]), length, Buffer.alloc(4), payload]);
}
