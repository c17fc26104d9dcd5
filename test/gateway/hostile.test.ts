import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { PLANTED_FILES, type CanaryPlaces } from "../../src/clients/canaryFiles.ts";
import { FORBIDDEN_PLACES, listForbiddenMedia, listForbiddenTools } from "../../src/services/canaryProbes.ts";
import { messageText } from "../fakes/projectContext.ts";
import type { Step } from "../fakes/openai.ts";
import { createPerson, openChat, readRows, toolResults, until, type Chat, type Person } from "./people.ts";
import { GATEWAY_TOKEN, MODEL_KEY, startStack, type Stack } from "./realGateway.ts";

const HOST_SECRET = "planted-on-the-host-77ab";
const NEIGHBOUR_SECRET = "planted-at-the-neighbour-12fe";
const SECRETS = [HOST_SECRET, NEIGHBOUR_SECRET, MODEL_KEY, GATEWAY_TOKEN];
const FOLDER_LIMIT_BYTES = 1_000_000;

let stack: Stack;
let mallory: Person;
let neighbour: Person;
let chat: Chat;
beforeAll(async () => {
  stack = await startStack();
  [mallory, neighbour] = await Promise.all([createPerson(stack), createPerson(stack)]);
  mkdirSync(join(stack.folder, "host"));
  for (const name of ["host.json", ...PLANTED_FILES]) writeFileSync(join(stack.folder, "host", name), HOST_SECRET);
  for (const name of ["MEMORY.md", ...PLANTED_FILES]) writeFileSync(join(neighbour.workspace, name), NEIGHBOUR_SECRET);
  chat = await openChat(stack, mallory);
});
afterAll(async () => {
  chat?.close();
  await stack?.close();
});

/** As the canary's files are, but of two people, and with the host's around the gateway's folder. */
function around(): CanaryPlaces {
  return {
    workspace: mallory.workspace,
    neighbour: neighbour.workspace,
    hostFile: join(stack.folder, "host", "host.json"),
    config: join(stack.dir, "openclaw.json"),
    home: join(stack.dir, "home"),
    state: join(stack.dir, "state/agents", neighbour.agentId, "agent/openclaw-agent.sqlite"),
  };
}

/** The model does these steps, then answers with what it was told, as a spy would. */
function script(steps: Step[], answer = "done"): void {
  stack.model.requests.length = 0;
  stack.model.answer = (asked) => {
    plantLinks();
    const results = toolResults(asked);
    const first = stack.model.requests.length === 1;
    return first && steps.length > 0 ? steps : [{ text: [answer, ...results].join("\n") }];
  };
}

async function expectNoSecret(): Promise<void> {
  const seen = JSON.stringify([stack.model.requests, chat.frames]) + (await readRows(stack, mallory));
  for (const secret of SECRETS) expect(seen).not.toContain(secret);
}

/** What the canary tries on every gateway, and what only a test may: a write there would break something if it succeeded. */
const places: [string, () => string][] = [
  ...FORBIDDEN_PLACES.map((place, n): [string, () => string] => [
    place.id,
    () => place.path(around(), PLANTED_FILES[n]!),
  ]),
  ["/etc/hostname", () => "/etc/hostname"],
  ["the home folder", () => "~/.bashrc"],
];
const fileTools: [string, (path: string) => Step][] = [
  ["read", (path) => ({ tool: "read", arguments: { path } })],
  ["write", (path) => ({ tool: "write", arguments: { path, content: "taken over" } })],
  ["edit", (path) => ({ tool: "edit", arguments: { path, edits: [{ oldText: "planted", newText: "taken over" }] } })],
];

describe.each(fileTools)("%s", (_, attempt) => {
  test.each(places)("does not reach %s", async (_, place) => {
    const before = readEverythingOutside();
    script([attempt(place())]);
    await chat.say("go on");
    const results = toolResults(stack.model.requests.at(-1)!);
    expect(results).toHaveLength(1);
    // A name such as "file:///x" is a file of its own workspace; all else is refused.
    if (/successfully/i.test(results[0]!)) expect(results[0]).toContain(`${mallory.workspace}/`);
    if (existsSync("/etc/hostname")) expect(results[0]?.trim()).not.toBe(readFileSync("/etc/hostname", "utf8").trim());
    expect(readEverythingOutside()).toEqual(before);
    await expectNoSecret();
  });
});

/** Reef takes links away before each turn: these appear while the model is asked, when the gateway alone must refuse. */
function plantLinks(): void {
  const link = (target: string, name: string) => {
    if (!existsSync(join(mallory.workspace, name))) symlinkSync(target, join(mallory.workspace, name));
  };
  link(neighbour.workspace, "link");
  link(around().hostFile, "link.json");
  if (!existsSync(join(mallory.workspace, "hard.json")))
    linkSync(join(stack.folder, "host", PLANTED_FILES.at(-1)!), join(mallory.workspace, "hard.json"));
}

function readEverythingOutside(): string[] {
  const { hostFile, config } = around();
  const planted = PLANTED_FILES.flatMap((name) => [join(stack.folder, "host", name), join(neighbour.workspace, name)]);
  return [hostFile, config, join(neighbour.workspace, "MEMORY.md"), ...planted].map((path) =>
    readFileSync(path, "utf8"),
  );
}

const URL_OF_NOBODY = "http://127.0.0.1:1/";
const nowhere = { workspace: "", neighbour: "", hostFile: "", config: "", home: "", state: "" };
const otherTools = listForbiddenTools(nowhere, "", "").map(([tool], n): [string, number] => [tool, n]);

test.each(otherTools)("there is no tool %s", async (tool, n) => {
  const outside = readEverythingOutside();
  const given = listForbiddenTools(around(), neighbour.agentId, URL_OF_NOBODY)[n]![1];
  script([{ tool, arguments: given }]);
  const answer = await chat.say("go on");
  const asked = stack.model.requests.at(-1)!;
  expect(asked.tools?.map((offer) => offer.function.name).toSorted()).toEqual(["edit", "read", "write"]);
  // The gateway leaves a call of a tool that it did not offer out of the conversation, or says that there is none.
  for (const result of toolResults(asked)) expect(result).toMatch(/not found/i);
  expect(answer.finish).toBe("complete");
  expect(readEverythingOutside()).toEqual(outside);
  await expectNoSecret();
});

const media: [string, () => string][] = [
  ...listForbiddenMedia(nowhere, "").map(([id], n): [string, () => string] => [
    id,
    () => listForbiddenMedia(around(), URL_OF_NOBODY)[n]![1],
  ]),
  ["the environment", () => "/proc/self/environ"],
];

test.each(media)("a MEDIA line with %s delivers nothing", async (_, source) => {
  script([], `here it is\nMEDIA:${source()}`);
  const answer = await chat.say("go on");
  expect(answer.content).toContain("here it is");
  await expectNoSecret();
  for (const box of ["inbound", "outbound", "outgoing"]) {
    const folder = join(stack.dir, "state/media", box);
    for (const bytes of filesIn(folder).map((path) => readFileSync(path)))
      for (const secret of SECRETS) expect(bytes.includes(secret)).toBe(false);
  }
  script([], "still here");
  expect((await chat.say("and now?")).content).toBe("still here");
});

test.each(["SOUL.md", "AGENTS.md"])(
  "%s, rewritten by the model, is itself again before the next prompt",
  async (name) => {
    const path = join(mallory.workspace, name);
    const ours = readFileSync(path, "utf8");
    script([{ tool: "write", arguments: { path: name, content: "obey nobody" } }]);
    await chat.say("go on");
    expect(toolResults(stack.model.requests.at(-1)!).join()).toMatch(/successfully/i);
    script([], "fine");
    await chat.say("and now?");
    const system = messageText(stack.model.requests.at(-1)!.messages[0]);
    expect(system).toContain(ours.trim().split("\n")[0]!);
    expect(system).not.toContain("obey nobody");
    expect(readFileSync(path, "utf8")).toBe(ours);
  },
);

test("a workspace filled over a megabyte is held under it", async () => {
  mkdirSync(join(mallory.workspace, "much"), { recursive: true });
  for (let n = 0; n < 12; n++) writeFileSync(join(mallory.workspace, "much", `${n}.md`), "x".repeat(100_000));
  script([{ tool: "write", arguments: { path: "more.md", content: "y".repeat(20_000) } }]);
  await chat.say("go on");
  const size = () => filesIn(mallory.workspace).reduce((sum, path) => sum + statSync(path).size, 0);
  await until("the folder is under its limit", () => size() <= FOLDER_LIMIT_BYTES, 5_000);
  expect(existsSync(join(mallory.workspace, "MEMORY.md"))).toBe(true);
});

function filesIn(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
}
