import { expect } from "bun:test";
import { until } from "../harness.ts";
import { checkWorld } from "./check.ts";
import type { CellGateway } from "./gateways.ts";
import { reach } from "./moments.ts";
import { Script } from "./script.ts";
import type { Servers } from "./servers.ts";
import { strikeOf, type Lengths } from "./strikes.ts";
import type { Cell } from "./table.ts";
import { openWorld, SAID, type World } from "./world.ts";

/** How a cell ended. `seconds`: from the strike until both devices showed the outcome. */
export interface Outcome {
  outcome: "answered" | "given back";
  seconds: number;
}

/** Longer than the real gateway takes to start on a busy machine. */
const SETTLE_MS = 90_000;
const NEXT_WORD_MS = 300;
const AFTERWARDS = "and now?";

/** Runs one cell in a world of its own; throws when anything that must hold does not. */
export async function runCell(
  cell: Cell,
  use: { servers: Servers; gateway: CellGateway; lengths: Lengths },
): Promise<Outcome> {
  const world = await openWorld(use.servers, use.gateway);
  try {
    const release = await reach(world, cell.moment);
    const strike = strikeOf(world, cell, use.lengths);
    const struckAt = Date.now();
    await strike.begin();
    world.letTheOtherIn();
    release();
    const ending = settled(world).then((outcome) => ({ outcome, seconds: (Date.now() - struckAt) / 1000 }));
    ending.catch(() => undefined);
    await Bun.sleep(strike.lastsMs);
    await strike.end();
    const ended = await ending;
    await sayMore(world);
    await checkWorld(world);
    return ended;
  } catch (error) {
    throw new Error(`${describe(world)}\n${error instanceof Error ? error.message : String(error)}`, { cause: error });
  } finally {
    await world.close();
  }
}

/** Waits until both devices show how the message ended. Only the answer itself or an honest failure will do. */
async function settled(world: World): Promise<Outcome["outcome"]> {
  await until(
    "both devices show the end of the message",
    () => world.devices.every((one) => one.messages.length >= 2 && one.outbox.length === 0),
    SETTLE_MS,
  );
  const [question, answer] = world.devices[0].messages;
  expect(question).toMatchObject({ role: "user", content: SAID });
  if (answer?.finish === "error") return "given back";
  expect(answer).toMatchObject({ role: "assistant", finish: "complete", content: world.script.text() });
  return "answered";
}

/**
 * All is healed: process A, which was struck, answers the next message, and both devices see it stream, also the one that
 * is connected to the other process. Text said before Redis is back reaches that one with the next text.
 */
async function sayMore(world: World): Promise<void> {
  const script = new Script(Array.from({ length: 100 }, (_, index) => `word ${index} `));
  world.gateway.play(script);
  world.keepTheOtherOut();
  // Else it may still claim what is said, and keep it until its connection is back.
  await until("the other one knows", async () => {
    const health = (await (await fetch(`http://127.0.0.1:${world.b.port}/health`)).json()) as {
      gateways: { ready: number };
    };
    return health.gateways.ready === 0;
  });
  world.devices[1].send(AFTERWARDS);
  let said = 0;
  await until(
    "what is said afterwards streams to both devices",
    async () => {
      script.open(++said);
      await Bun.sleep(NEXT_WORD_MS);
      return world.devices.every((one) => one.answer !== null);
    },
    script.parts.length * NEXT_WORD_MS,
  );
  script.open();
  await until(
    "it is answered on both devices",
    () => world.devices.every((one) => one.messages.length >= 4 && one.outbox.length === 0),
    SETTLE_MS,
  );
  expect(world.devices[0].messages.at(-1)).toMatchObject({ finish: "complete", content: script.text() });
}

function describe(world: World): string {
  const devices = world.devices.map((one, index) => {
    const { connected, outbox, answer, faults, refused } = one;
    const messages = one.messages.map((message) => `${message.seq} ${message.role} ${message.finish}`);
    return `device ${index + 1}: ${JSON.stringify({ connected, messages, outbox, answer, faults, refused })}`;
  });
  return [...devices, "process a:", world.a.log(), "process b:", world.b.log()].join("\n");
}
