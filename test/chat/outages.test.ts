import { afterEach, expect, test } from "bun:test";
import { connect } from "node:net";
import { isAnswer, makeAssistant, makeUser, openChat } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
afterEach(() => reef.stop());

test("a client that does not answer pings is closed with 4408", async () => {
  reef = await startTestReef({ CHAT_PING_MS: "200" });
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  // By hand: every WebSocket library answers pings by itself.
  const { hostname, port } = new URL(reef.url);
  let received = "";
  const socket = connect(Number(port), hostname);
  socket.on("data", (data) => (received += data.toString("latin1")));
  socket.write(
    `GET /ws/chat?agent_id=${assistant.agent_id}&token=${user.token} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n` +
      "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
  );
  const closeFrame = `${String.fromCharCode(4408 >> 8, 4408 & 255)}no heartbeat`;
  await until("the close frame comes", () => received.includes(closeFrame));
  expect(received).toContain("connected");
  socket.destroy();
});

test("without Redis everything works, only slower", async () => {
  reef = await startTestReef({ REDIS_URL: "redis://127.0.0.1:1" });
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const chat = await openChat(reef, user.token, assistant.agent_id);
  chat.say("hello");
  expect(await chat.next("the answer", isAnswer)).toMatchObject({ content: "Echo: hello", finish: "complete" });
  const health = (await (await fetch(`${reef.url}/health`)).json()) as { status: string; down: string[] };
  expect([health.status, health.down]).toEqual(["degraded", ["redis"]]);
});
