import { StartError } from "../scripts/services/process.ts";
import type { Sql } from "../src/db/connect.ts";
import { newId } from "../src/lib/ids.ts";
import { defineBench, type Services } from "./bench.ts";
import { openChatClient, type ChatClient, type TurnSeen } from "./chatClient.ts";
import { median, percentile, printTable, short } from "./measure.ts";
import { createPeople, wakeEveryone, type Person } from "./people.ts";
import { shareServices, startCell, type Cell } from "./systems/cell.ts";
import { openHost, openSwitch } from "./systems/network.ts";
import { openDatabase } from "./systems/reef.ts";

const TURN = "chunks=4 every=10 size=24";
const WARM_UP = 15;
const SETTLE_MS = 60;
/** Messages that are accepted while their gateway's host is cut off. */
const LEFT_WAITING = 5;
const COME_BACK_MS = 60_000;

/** A device on one host, its assistant on a gateway of the same or of the other. */
interface Way {
  name: string;
  /** Whether the socket's host is the gateway's. */
  same: boolean;
  person: Person;
  client: ChatClient;
  turns: TurnSeen[];
}

export const hosts = defineBench({
  summary: "two hosts with a gateway each, Postgres and Redis on a third: turns across, and one host cut off (root)",
  options: {
    turns: { value: 60, help: "turns of each of the four ways" },
    cut: { value: 8, help: "seconds that the second host is cut off" },
    real: {
      value: 10,
      help: "turns on a real gateway on the second host, through the first one's socket; 0 leaves it out",
    },
  },
  ownNetwork: true,
  async run(services, options) {
    const sql = await openDatabase(services);
    openSwitch();
    await shareServices(services);
    services.say("starting two hosts");
    const one = await startCell(services, await openHost(services, 1), "one");
    const two = await startCell(services, await openHost(services, 2), "two");
    const ways = await openWays(sql, [one, two]);
    await alternate(services, ways, options.turns);
    report(ways);
    await readAcross(one, ways);
    await cutOff(services, sql, { one, two, ways, seconds: options.cut });
    if (options.real > 0) await onRealGateway(services, sql, { one, two, turns: options.real });
  },
});

async function openWays(sql: Sql, cells: Cell[]): Promise<Way[]> {
  const pairs = cells.flatMap((socket) => cells.map((gateway) => ({ socket, gateway })));
  const people = await Promise.all(pairs.map(({ gateway }) => createPeople(sql, 1, gateway.id)));
  await wakeEveryone(sql);
  const ways: Way[] = [];
  for (const [i, { socket, gateway }] of pairs.entries()) {
    const person = people[i]![0]!;
    const name = `socket on ${socket.id}, gateway on ${gateway.id}`;
    ways.push({ name, same: socket === gateway, person, client: await openChatClient(socket.url, person), turns: [] });
  }
  return ways;
}

async function alternate(services: Services, ways: Way[], turns: number): Promise<void> {
  for (let i = 0; i < turns + WARM_UP; i++) {
    if (i % 10 === 0) services.say(`turn ${Math.max(0, i - WARM_UP)} of ${turns}, each way`);
    for (const way of i % 2 === 0 ? ways : ways.toReversed()) {
      const seen = await way.client.turn(TURN);
      if (i >= WARM_UP) way.turns.push(seen);
      await Bun.sleep(SETTLE_MS);
    }
  }
}

const FIGURES = {
  ack: (turn: TurnSeen) => turn.ackAt - turn.sentAt,
  "first text": (turn: TurnSeen) => turn.firstTextAt - turn.sentAt,
  end: (turn: TurnSeen) => turn.endAt - turn.sentAt,
};

function report(ways: Way[]): void {
  console.log(`\n${ways[0]!.turns.length} turns each way, alternating; ms from sending`);
  const heads = Object.keys(FIGURES).flatMap((name) => [`${name} p50`, "p95"]);
  const rows = ways.map(({ name, turns }) => [
    name,
    ...Object.values(FIGURES).flatMap((of) => [50, 95].map((p) => short(percentile(turns.map(of), p)))),
  ]);
  printTable(["", ...heads], rows);
  const of = (same: boolean, figure: (turn: TurnSeen) => number) =>
    ways.filter((way) => way.same === same).flatMap((way) => way.turns.map(figure));
  for (const [name, figure] of Object.entries(FIGURES))
    console.log(`across, to ${name}: added ${short(median(of(false, figure)) - median(of(true, figure)))} ms at p50`);
}

/** An export through the first host has the files that lie on the second. */
async function readAcross(one: Cell, ways: Way[]): Promise<void> {
  const { token, agentId } = ways.find(({ name }) => name.endsWith("gateway on two"))!.person;
  const response = await fetch(`${one.url}/api/user/export`, { headers: { authorization: `Bearer ${token}` } });
  const bytes = Buffer.from(await response.arrayBuffer());
  if (!bytes.includes("workspace/SOUL.md"))
    throw new StartError(`the export lacks the files of ${agentId} on host two`);
  console.log("an export through host one has the files that lie on host two");
}

interface Scene {
  one: Cell;
  two: Cell;
  ways: Way[];
  seconds: number;
}

/** Pulls the second host's cable: the first one's people go on, and what was acknowledged is answered afterwards, once. */
async function cutOff(services: Services, sql: Sql, { one, two, ways, seconds }: Scene): Promise<void> {
  services.say(`host two is cut off for ${seconds} s`);
  const [near, far, ...others] = ways as [Way, Way, Way, Way];
  for (const way of others) way.client.close();
  far.client.close();
  const inMidAnswer = await say(one, far.person, "chunks=30 every=100 size=24");
  await Bun.sleep(500);
  two.host.pull();
  const until = performance.now() + seconds * 1000;
  const meanwhile: TurnSeen[] = [];
  const waiting = [inMidAnswer];
  while (performance.now() < until) {
    meanwhile.push(await near.client.turn(TURN));
    if (waiting.length <= LEFT_WAITING) waiting.push(await say(one, far.person, TURN));
    await Bun.sleep(SETTLE_MS);
  }
  const answered = await countAnswers(sql, far.person);
  two.host.plug();
  const mended = performance.now();
  services.say("its cable is back; waiting for what was acknowledged");
  while ((await countAnswers(sql, far.person)) < answered + waiting.length) {
    if (performance.now() - mended > COME_BACK_MS) throw new StartError("what was acknowledged is not answered");
    await Bun.sleep(50);
  }
  const tookMs = performance.now() - mended;
  await expectOnce(sql, far.person, waiting);
  const p = (at: number) => short(percentile(meanwhile.map(FIGURES.end), at));
  console.log(`\nhost two cut off for ${seconds} s, one answer of its gateway half said:`);
  console.log(`  on host one ${meanwhile.length} turns meanwhile, to the end ${p(50)} ms at p50, ${p(95)} at p95`);
  console.log(
    `  ${waiting.length} acknowledged for host two were answered once each, ${short(tookMs / 1000)} s after it was back`,
  );
}

/** Sends a message by HTTP; it is acknowledged when this returns its turn. */
async function say(cell: Cell, person: Person, content: string): Promise<string> {
  const response = await fetch(`${cell.url}/api/assistants/${person.assistantId}/messages`, {
    method: "POST",
    headers: { authorization: `Bearer ${person.token}`, "content-type": "application/json" },
    body: JSON.stringify({ content, client_id: newId() }),
  });
  const body = (await response.json()) as { turn?: { id: string }; code?: string };
  if (body.turn === undefined) throw new StartError(`a message was refused: ${body.code}`);
  return body.turn.id;
}

async function countAnswers(sql: Sql, person: Person): Promise<number> {
  const [row] = await sql<{ n: number }[]>`
    select count(*)::int as n from messages where assistant_id = ${person.assistantId} and role = 'assistant'`;
  return row!.n;
}

async function expectOnce(sql: Sql, person: Person, turns: string[]): Promise<void> {
  const rows = await sql<{ id: string; status: string; answers: number; finish: string }[]>`
    select t.id, t.status, count(m.id)::int as answers, min(m.finish) as finish
    from turns t left join messages m on m.turn_id = t.id and m.role = 'assistant'
    where t.id in ${sql(turns)} and t.user_id = ${person.userId} group by t.id, t.status`;
  const bad = rows.filter((row) => row.status !== "done" || row.answers !== 1 || row.finish !== "complete");
  if (rows.length !== turns.length || bad.length > 0)
    throw new StartError(`not answered once each: ${JSON.stringify(bad)} of ${turns.length}`);
}

async function onRealGateway(
  services: Services,
  sql: Sql,
  { one, two, turns }: { one: Cell; two: Cell; turns: number },
): Promise<void> {
  services.say("starting the real gateway on host two");
  await two.stop();
  const real = await startCell(services, two.host, "real", true);
  const [person] = await createPeople(sql, 1, "real");
  await wakeEveryone(sql);
  const client = await openChatClient(one.url, person!);
  const seen: TurnSeen[] = [];
  for (let i = 0; i < turns; i++) seen.push(await client.turn(`question ${i}`));
  client.close();
  const p = (at: number) => short(percentile(seen.map(FIGURES["first text"]), at));
  console.log(
    `\nthe real gateway on host two, ${turns} turns through host one: first text ${p(50)} ms at p50, ${p(95)} at p95`,
  );
  await real.stop();
}
