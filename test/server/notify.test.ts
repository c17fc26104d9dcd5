import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join, resolve } from "node:path";
import { newId } from "../../src/lib/ids.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";
import { openNotifySocket } from "./notifySocket.ts";

const root = resolve(import.meta.dir, "../..");
const PATH = process.env["PATH"] ?? "";
let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

const run = (args: string[], env: Record<string, string>) =>
  Bun.spawn([process.execPath, "--no-env-file", ...args], {
    env: { PATH, ...env },
    stdin: "pipe",
    stdout: "ignore",
    stderr: "inherit",
  });
const feeds = (lines: string[]) => lines.filter((line) => line === "WATCHDOG=1").length;

describe("the API as a service tells systemd", () => {
  const sockets: [string, () => string][] = [
    ["at a path", () => join(reef.dir, "notify.sock")],
    ["at an abstract name", () => `@reef-test-${newId()}`],
  ];
  for (const [where, name] of sockets) {
    test(`${where}: that it serves when it does, feeds the watchdog, and says that it stops`, async () => {
      const path = name();
      const socket = openNotifySocket(path);
      const main = join(root, "src/main.ts");
      const child = run([main], { ...reef.env, NOTIFY_SOCKET: path, WATCHDOG_USEC: "100000" });
      try {
        const ready = await until("it is ready", () => socket.read().includes("READY=1"), 30_000);
        expect(ready).toBe(true);
        const port = /^STATUS=serving on port (\d+)$/m.exec(socket.read().join("\n"))?.[1];
        expect((await fetch(`http://127.0.0.1:${port}/health`)).status).toBe(200);
        expect(socket.read()[0]).toStartWith("STATUS=starting");
        await until("the watchdog is fed again and again", () => feeds(socket.read()) >= 5);
        child.kill("SIGTERM");
        expect(await child.exited).toBe(0);
        const lines = socket.read();
        expect(lines).toContain("STOPPING=1");
        // While it drains it lives: systemd goes on watching.
        expect(lines.indexOf("STOPPING=1")).toBeGreaterThan(lines.indexOf("READY=1"));
        expect(lines.filter((line) => line === "READY=1")).toHaveLength(1);
      } finally {
        child.kill("SIGKILL");
        socket.close();
      }
    });
  }
});

/** A service that is ready, does what `then` says, and ends. */
const service = (then: string) => `
  import { connectSystemd } from ${JSON.stringify(join(root, "src/clients/systemd.ts"))};
  const warned = [];
  const systemd = connectSystemd(process.env, { warn: (...words) => warned.push(words) });
  systemd.ready("serving");
  ${then}
  process.exit(warned.length === 0 ? 0 : 3);`;
const fed = `await new Promise((resolve) => setTimeout(resolve, 300));`;

const serve = async (then: string, env: Record<string, string>) => {
  const path = `@reef-test-${newId()}`;
  const socket = openNotifySocket(path);
  const child = run(["-e", service(then)], { NOTIFY_SOCKET: path, ...env });
  // The kernel keeps a few datagrams only.
  const reading = setInterval(() => socket.read(), 5);
  const code = await child.exited;
  clearInterval(reading);
  const lines = socket.read();
  socket.close();
  return { code, lines };
};

test("a process whose event loop is stuck does not feed the watchdog until it turns again", async () => {
  const stuck = `
    ${fed}
    systemd.status("stuck");
    const end = performance.now() + 1000;
    while (performance.now() < end);
    systemd.status("turning");
    ${fed}`;
  const { code, lines } = await serve(stuck, { WATCHDOG_USEC: "20000" });
  const [from, to] = [lines.indexOf("STATUS=stuck"), lines.indexOf("STATUS=turning")];
  expect(code).toBe(0);
  expect(feeds(lines.slice(0, from))).toBeGreaterThan(0);
  expect(lines.slice(from, to)).toEqual(["STATUS=stuck"]);
  expect(feeds(lines.slice(to))).toBeGreaterThan(0);
});

test("nothing is fed without a watchdog, or for another process; nothing is told without systemd", async () => {
  const told = { code: 0, lines: ["READY=1", "STATUS=serving"] };
  expect(await serve(fed, {})).toEqual(told);
  expect(await serve(fed, { WATCHDOG_USEC: "20000", WATCHDOG_PID: "1" })).toEqual(told);
  const silent = `systemd.status("x"); systemd.stopping(); ${fed}`;
  expect(await serve(silent, { WATCHDOG_USEC: "20000", NOTIFY_SOCKET: "" })).toEqual({ code: 0, lines: [] });
  // One that nobody listens at is no reason to end.
  expect((await serve(silent, { NOTIFY_SOCKET: "@reef-test-nobody" })).code).toBe(3);
});
