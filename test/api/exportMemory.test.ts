import { expect, test } from "bun:test";
import { connect } from "node:net";
import { makeAssistant, makeUser } from "../factories.ts";
import { startTestReef } from "../harness.ts";
import { fill } from "./archives.ts";

const MESSAGES = 100_000;
/** What is exported is larger, packed or not. */
const BOUND_BYTES = 40_000_000;
const LOOK_BYTES = 2_000_000;

test("an export of 100,000 messages takes constant memory", async () => {
  const reef = await startTestReef();
  try {
    const user = await makeUser(reef);
    await fill(reef.sql, user, await makeAssistant(user), MESSAGES, 400);
    const { port, hostname } = new URL(reef.url);
    const before = memoryInUse();
    let peak = before;
    let bytes = 0;
    let last: Buffer = Buffer.alloc(0);
    const socket = connect(Number(port), hostname);
    socket.write(
      `GET /api/user/export HTTP/1.1\r\nHost: reef\r\nConnection: close\r\nAuthorization: Bearer ${user.token}\r\n\r\n`,
    );
    let lookedAt = 0;
    socket.on("data", (part: Buffer) => {
      bytes += part.length;
      // By what came, not by time: on a busy machine looking would take all the time there is.
      if (bytes - lookedAt > LOOK_BYTES) [peak, lookedAt] = [Math.max(peak, memoryInUse()), bytes];
      last = part.length >= 100 ? part : Buffer.concat([last, part]);
    });
    await new Promise((done) => socket.on("close", done));
    console.log(`export: ${MESSAGES} messages, ${mega(bytes)} MB of ZIP, memory grew by ${mega(peak - before)} MB`);
    expect(last.includes("PK\u0005\u0006")).toBe(true);
    expect(bytes).toBeGreaterThan(BOUND_BYTES);
    expect(peak - before).toBeLessThan(BOUND_BYTES);
  } finally {
    await reef.stop();
  }
}, 300_000);

/** What is reachable: what is only not collected yet belongs to nobody, here to other tests. */
function memoryInUse(): number {
  Bun.gc(true);
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

const mega = (bytes: number) => Math.round(bytes / 1_000_000);
