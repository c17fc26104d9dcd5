import { readFileSync } from "node:fs";
import { join } from "node:path";
import { newId } from "../src/lib/ids.ts";
import { startFakeOpenAi, type FakeOpenAi } from "../test/fakes/openai.ts";
import { defineBench, type Services } from "./bench.ts";
import { median, now, percentile, printTable, short, verdict } from "./measure.ts";
import { createPeople, wakeEveryone, type Person } from "./people.ts";
import { root } from "./systems/program.ts";
import { openDatabase, startLoadGateway, startReefProgram } from "./systems/reef.ts";

const KEY = "bench-provider-key";
const WORD_MS = 25;
/** As OpenAI's, about: to the transcript, to the first sound, and each second of it. */
const HEAR_MS = 400;
const FIRST_SOUND_MS = 500;
const SECOND_MS = 100;
const TURN_MS = 60_000;

interface Frame {
  type: string;
  role?: string;
  content?: string;
  code?: string;
}

/** What one way took from the end of the question to the first sound, in ms. */
interface Ways {
  sentences: number[];
  streamed: number[];
  whole: number[];
}

export const voice = defineBench({
  summary: "the first sound of a spoken answer: sentence by sentence, and by who waits for the whole text",
  options: {
    turns: { value: 4, help: "questions each way, alternating" },
    words: { value: 150, help: "words of an answer, one every 25 ms" },
    bytes: { value: 100, help: "streams of /api/voice/speak whose first bytes are timed" },
  },
  async run(services, options) {
    const sql = await openDatabase(services);
    const [person] = await createPeople(sql, 1);
    await sql`update plan_limits set voice_input_seconds = 1000000, voice_output_seconds = 1000000, tts_characters = 100000000`;
    services.say("starting the provider, the load gateway and Reef");
    const provider = await startProvider(services, `chunks=${options.words} every=${WORD_MS} words=1`);
    const gateway = await startLoadGateway(services);
    const reef = await startReefProgram(services, gateway, { OPENAI_BASE_URL: provider.url, OPENAI_API_KEY: KEY });
    await wakeEveryone(sql);
    const talker = await openTalker(reef.url, person!);
    const ways = await alternate(services, talker, reef.url, person!, options.turns);
    talker.close();
    const added = await timeFirstBytes(services, provider, reef.url, person!, options.bytes);
    await reef.stop();
    report(ways, added, options.words);
  },
});

async function startProvider(services: Services, heard: string): Promise<FakeOpenAi> {
  const provider = await startFakeOpenAi({ apiKey: KEY });
  services.onEnd(() => provider.close());
  provider.audio.hear = () => [{ delayMs: HEAR_MS }, { text: heard, duration: 2 }];
  provider.audio.speak = function* ({ seconds }) {
    yield { delayMs: FIRST_SOUND_MS };
    for (let rest = seconds; rest > 0; rest -= 1) {
      if (rest < seconds) yield { delayMs: SECOND_MS };
      yield { seconds: Math.min(1, rest) };
    }
  };
  return provider;
}

/** A device that asks by voice. */
interface Talker {
  /** Asks; resolves with the first sound where it wants to hear the answer, else with the whole text. */
  ask(speak: boolean): Promise<string>;
  /** Resolves when the last answer is over, its voice, too. */
  quiet(): Promise<void>;
  close(): void;
}

async function openTalker(url: string, person: Person): Promise<Talker> {
  const sound = readFileSync(join(root, "test/fixtures/voice/speech.ogg")).toString("base64");
  const address = `${url.replace(/^http/, "ws")}/ws/chat?agent_id=${person.agentId}`;
  const socket = new WebSocket(address, ["reef.v1", `bearer.${person.token}`]);
  const opened = Promise.withResolvers<void>();
  let waiting: { speak: boolean; first: PromiseWithResolvers<string>; over: PromiseWithResolvers<void> } | null = null;
  socket.onmessage = (event) => {
    const frame = JSON.parse(String(event.data)) as Frame;
    if (frame.type === "connected") opened.resolve();
    if (frame.type === "error") waiting?.first.reject(new Error(`error frame ${frame.code}`));
    if (frame.type === "audio") waiting?.first.resolve("");
    const answered = frame.type === "message" && frame.role === "assistant";
    if (answered && !waiting?.speak) waiting?.first.resolve(frame.content ?? "");
    if (waiting?.speak ? frame.type === "audio_end" : answered) waiting?.over.resolve();
  };
  socket.onclose = (event) => opened.reject(new Error(`socket closed: ${event.code} ${event.reason}`));
  await opened.promise;
  return {
    quiet: async () => waiting?.over.promise,
    ask(speak) {
      waiting = { speak, first: Promise.withResolvers(), over: Promise.withResolvers() };
      const late = setTimeout(() => waiting?.first.reject(new Error("no answer within a minute")), TURN_MS);
      socket.send(JSON.stringify({ type: "voice", client_id: newId(), audio: sound, speak }));
      return waiting.first.promise.finally(() => clearTimeout(late));
    },
    close: () => socket.close(),
  };
}

async function alternate(
  services: Services,
  talker: Talker,
  url: string,
  person: Person,
  turns: number,
): Promise<Ways> {
  const ways: Ways = { sentences: [], streamed: [], whole: [] };
  const spoken = async (accept: string, text: string) => (await speak(url, person, text, accept)).firstAt;
  // The first round warms up.
  for (let turn = -1; turn < turns; turn++) {
    services.say(`question ${Math.max(0, turn)} of ${turns}, each way`);
    for (const way of ["sentences", "streamed", "whole"] as const) {
      await talker.quiet();
      const startedAt = now();
      const text = await talker.ask(way === "sentences");
      const heardAt =
        way === "sentences" ? now() : await spoken(way === "streamed" ? "audio/mpeg" : "application/json", text);
      if (turn >= 0) ways[way].push(heardAt - startedAt);
    }
  }
  return ways;
}

/** Has a text spoken; when its first sound (of JSON: all of it) was here. */
async function speak(url: string, person: Person, text: string, accept: string): Promise<{ firstAt: number }> {
  const response = await fetch(`${url}/api/voice/speak`, {
    method: "POST",
    headers: { "content-type": "application/json", accept, authorization: `Bearer ${person.token}` },
    body: JSON.stringify({ text }),
  });
  if (!response.ok || !response.body) throw new Error(`speak: ${response.status} ${await response.text()}`);
  if (accept === "application/json") {
    await response.json();
    return { firstAt: now() };
  }
  const reader = response.body.getReader();
  await reader.read();
  const firstAt = now();
  await reader.cancel();
  return { firstAt };
}

/** From the provider's first byte to the client's, ms: both are in this process, whose own work is in it. */
async function timeFirstBytes(
  services: Services,
  provider: FakeOpenAi,
  url: string,
  person: Person,
  count: number,
): Promise<number[]> {
  let sentAt = 0;
  provider.audio.speak = function* () {
    yield { delayMs: 20 };
    sentAt = now();
    yield { seconds: 1 };
  };
  const added: number[] = [];
  for (let n = -10; n < count; n++) {
    if (n % 20 === 0) services.say(`first bytes, ${n} of ${count}`);
    const { firstAt } = await speak(url, person, "Words follow words until the end.", "audio/mpeg");
    if (n >= 0) added.push(firstAt - sentAt);
  }
  return added;
}

function report(ways: Ways, added: number[], words: number): void {
  console.log(`\nFrom the end of the question to the first sound, ms; ${ways.sentences.length} questions each way,`);
  console.log(`answers of ${words} words, one every ${WORD_MS} ms.`);
  printTable(
    ["", "p50", "p95"],
    [
      ["sentence by sentence (chat socket)", ways.sentences],
      ["whole text, then streamed", ways.streamed],
      ["whole text, then as JSON", ways.whole],
    ].map(([name, values]) => [
      name as string,
      short(median(values as number[])),
      short(percentile(values as number[], 95)),
    ]),
  );
  const ratio = median(ways.streamed) / median(ways.sentences);
  console.log(verdict("whole text, streamed, to sentence by sentence", ratio, "≥ 1.5", ratio >= 1.5));
  if (added.length === 0) return;
  const p95 = percentile(added, 95);
  console.log(
    `\n/api/voice/speak, first byte in to first byte out: p50 ${short(median(added))} ms of ${added.length}.`,
  );
  console.log(verdict("at p95, ms", p95, "≤ 5", p95 <= 5));
}
