import { afterAll, beforeAll, expect, test } from "bun:test";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createRemoteWorkspaces, FilesAwayError } from "../../src/clients/remoteWorkspaces.ts";
import { createWorkspaces, type Workspaces } from "../../src/clients/workspaces.ts";
import { createLog } from "../../src/lib/log.ts";
import { freePort } from "../../scripts/services/process.ts";
import { isAnswer, makeAssistant, makeUser, openChat } from "../factories.ts";
import { FILES_TOKEN, serveFolder, startTestReef, until } from "../harness.ts";

const AGENT = "agent_10000000";
let dir: string;
let url: string;
let remote: Workspaces;
const closers: (() => unknown)[] = [];
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "reef-remote-"));
  const files = serveFolder(dir);
  closers.push(() => files.stop());
  url = files.env["GATEWAY_FILES_URL"]!;
  remote = createRemoteWorkspaces({ url, token: FILES_TOKEN, dir });
});
afterAll(async () => {
  for (const close of closers.reverse()) await close();
  rmSync(dir, { recursive: true });
});

const ask = (path: string, init: RequestInit = {}, token: string | null = FILES_TOKEN) =>
  fetch(`${url}${path}`, {
    ...init,
    headers: { ...(token && { authorization: `Bearer ${token}` }), ...(init.headers as object) },
  });
const post = (path: string, body: string) => ask(path, { method: "POST", body });
const failure = async (work: Promise<unknown>) =>
  work.then(
    () => null,
    (error: unknown) => error as Error & { code: string },
  );

test("the same calls do the same as on the folder itself", async () => {
  const here = mkdtempSync(join(tmpdir(), "reef-local-"));
  const local = createWorkspaces(here, createLog("silent"));
  const told: unknown[][] = [];
  for (const [workspaces, base] of [
    [local, here],
    [remote, dir],
  ] as const) {
    const said: unknown[] = [await workspaces.readConfig(), await workspaces.listAgents()];
    const settings = { agentId: AGENT, displayName: "Zoë" };
    await workspaces.prepare(settings);
    writeFileSync(join(base, "workspaces", AGENT, "SOUL.md"), "mine now");
    writeFileSync(join(base, "workspaces", AGENT, "long.md"), "x".repeat(300_000));
    mkdirSync(join(base, "workspaces", AGENT, "empty"));
    said.push(await workspaces.guard(settings), await workspaces.guard({ ...settings, displayName: null }));
    const files = await Array.fromAsync(workspaces.readFiles(AGENT));
    said.push(
      files.map((file) => [file.path, file.leftOut ?? [file.changedAt instanceof Date, file.content.toString()]]),
    );
    said.push(workspaces.workspaceOf(AGENT).slice(base.length), workspaces.logFile.slice(base.length));
    await workspaces.writeConfig("{}");
    await workspaces.writeConfig('{"a":1}');
    said.push(await workspaces.readConfig(), await workspaces.listAgents(), readdirSync(base).toSorted());
    writeFileSync(join(base, "openclaw.json.bak.1"), "x");
    await workspaces.clearLeftovers();
    await workspaces.purge(AGENT);
    await workspaces.purge(AGENT);
    said.push(await workspaces.listAgents(), readdirSync(base, { recursive: true }).map(String).toSorted());
    said.push((await failure(workspaces.purge("../etc")))?.name !== undefined);
    told.push(said);
  }
  expect(told[1]).toEqual(told[0]!);
  expect(told[0]!.length).toBe(13);
  rmSync(here, { recursive: true });
});

test("nobody without the token, nothing that is no agent's id, no body that is no settings", async () => {
  for (const token of [null, "", "wrong", `${FILES_TOKEN}x`, FILES_TOKEN.slice(1)])
    for (const [method, path] of [
      ["GET", "/config"],
      ["PUT", "/config"],
      ["GET", "/agents"],
      ["DELETE", `/agents/${AGENT}`],
      ["GET", "/nothing"],
    ] as const) {
      const refused = await ask(path, { method }, token);
      expect([path, refused.status]).toEqual([path, 401]);
    }
  expect((await ask("/livez", {}, null)).status).toBe(200);
  expect((await ask("/readyz", {}, null)).status).toBe(200);
  mkdirSync(join(dir, "victim"), { recursive: true });
  for (const id of ["..%2Fvictim", "%2e%2e%2fvictim", "..", ".", "A", "-a", "a%00b", "a.b", "a".repeat(65), "%ff"]) {
    expect([id, (await ask(`/agents/${id}`, { method: "DELETE" })).ok]).toEqual([id, false]);
    expect([id, (await ask(`/agents/${id}/files`)).ok]).toEqual([id, false]);
    expect([id, (await post(`/agents/${id}/prepare`, '{"display_name":null}')).ok]).toEqual([id, false]);
  }
  expect(existsSync(join(dir, "victim"))).toBe(true);
  for (const body of ["", "no json", "{}", '{"display_name":1}', '{"display_name":"a","agentId":"b"}', "[]"])
    expect([body, (await post(`/agents/${AGENT}/guard`, body)).status]).toEqual([body, 400]);
  expect((await post(`/agents/${AGENT}/guard`, `{"display_name":"${"x".repeat(10_000)}"}`)).status).toBe(413);
  const large = await ask("/config", { method: "PUT", body: "x".repeat(5 * 1024 * 1024) }).catch(() => ({
    status: 413,
  }));
  expect(large.status).toBe(413);
  expect(existsSync(join(dir, "workspaces", AGENT))).toBe(false);
});

test("who believes that the folder lies elsewhere is refused before anything is done", async () => {
  const lost = createRemoteWorkspaces({ url, token: FILES_TOKEN, dir: "/var/lib/elsewhere" });
  expect(await failure(lost.prepare({ agentId: AGENT, displayName: null }))).toMatchObject({ code: "wrong_folder" });
  expect(existsSync(join(dir, "workspaces", AGENT))).toBe(false);
});

test("a configuration that was on its way for long does not undo a newer one", async () => {
  await remote.readConfig();
  const late = createRemoteWorkspaces({ url, token: FILES_TOKEN, dir });
  await late.readConfig();
  await remote.writeConfig('{"newer":1}');
  expect(await failure(late.writeConfig('{"older":1}'))).toMatchObject({ code: "changed_meanwhile" });
  expect(await remote.readConfig()).toBe('{"newer":1}');
  // The same once more is no other.
  await late.writeConfig('{"newer":1}');
  await late.writeConfig('{"after":1}');
  expect(await remote.readConfig()).toBe('{"after":1}');
});

test("a folder that somebody else put there is listed, and keeps nobody from seeing the others", async () => {
  await remote.prepare({ agentId: AGENT, displayName: null });
  for (const name of ["Old copy", "lost+found", ".hidden"]) mkdirSync(join(dir, "workspaces", name));
  expect(await remote.listAgents()).toEqual(await createWorkspaces(dir, createLog("silent")).listAgents());
  expect(await remote.listAgents()).toContain(AGENT);
  for (const name of ["Old copy", "lost+found", ".hidden"]) rmSync(join(dir, "workspaces", name), { recursive: true });
  await remote.purge(AGENT);
});

test("the file system's own word comes through", async () => {
  const odd = mkdtempSync(join(tmpdir(), "reef-odd-"));
  const files = serveFolder(odd);
  writeFileSync(join(odd, "workspaces"), "not a folder");
  const there = createRemoteWorkspaces({ url: files.env["GATEWAY_FILES_URL"]!, token: FILES_TOKEN, dir: odd });
  expect(await failure(there.prepare({ agentId: AGENT, displayName: null }))).toMatchObject({ code: "ENOTDIR" });
  await files.stop();
  rmSync(odd, { recursive: true });
});

const asRoot = ["unshare", "--user", "--map-root-user", "--mount"];
const mayMount = Bun.spawnSync([...asRoot, "mount", "-t", "tmpfs", "none", "/mnt"]).success;
test.skipIf(!mayMount)("a full disk is told as one (skipped where no file system may be mounted)", async () => {
  const port = freePort();
  const small = mkdtempSync(join(tmpdir(), `reef-test-${process.pid}-`));
  const start = `mount -t tmpfs -o size=64k none ${small} && exec ${process.execPath} --no-env-file ${FILES_PROGRAM}`;
  const child = Bun.spawn([...asRoot, "sh", "-c", start], { env: envOf(small, port), stdout: "ignore" });
  closers.push(() => child.kill());
  await untilServes(port);
  const there = createRemoteWorkspaces({ url: `http://127.0.0.1:${port}`, token: FILES_TOKEN, dir: small });
  expect(await failure(there.writeConfig("x".repeat(200_000)))).toMatchObject({ code: "ENOSPC" });
  const made = async () => {
    for (let i = 0; i < 50; i++) await there.prepare({ agentId: `agent_${i}`, displayName: null });
  };
  expect(await failure(made())).toMatchObject({ code: "ENOSPC" });
  // What is there can still be read, and erasing makes room again.
  await there.purge("agent_0");
  await there.writeConfig("{}");
});

const FILES_PROGRAM = resolve(import.meta.dir, "../../src/files.ts");
const envOf = (folder: string, port: number) => ({
  PATH: process.env["PATH"]!,
  OPENCLAW_GATEWAY_DIR: folder,
  GATEWAY_FILES_PORT: String(port),
  GATEWAY_FILES_TOKEN: FILES_TOKEN,
  LOG_LEVEL: "silent",
});
const untilServes = (port: number) =>
  until("it serves", () =>
    fetch(`http://127.0.0.1:${port}/readyz`).then(
      (answer) => answer.ok,
      () => false,
    ),
  );

/** Somebody who takes connections and does what a broken host does. */
async function listenBadly(
  onConnection: (socket: import("node:net").Socket) => void,
): Promise<{ at: string; server: Server }> {
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    onConnection(socket);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  closers.push(() => server.close());
  return { at: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, server };
}

test("nobody there, one that hangs up, one that speaks something else: an error in time, never a wait without end", async () => {
  const at = (there: string) => createRemoteWorkspaces({ url: there, token: FILES_TOKEN, dir });
  const nobody = at(`http://127.0.0.1:${freePort()}`);
  for (const work of [nobody.guard({ agentId: AGENT, displayName: null }), nobody.readConfig(), nobody.purge(AGENT)])
    expect(await failure(work)).toBeInstanceOf(FilesAwayError);
  expect(await failure(Array.fromAsync(nobody.readFiles(AGENT)))).toBeInstanceOf(FilesAwayError);
  const hangsUp = at((await listenBadly((socket) => socket.end())).at);
  expect(await failure(hangsUp.readConfig())).toBeInstanceOf(FilesAwayError);
  const stranger = await listenBadly((socket) => {
    socket.on("data", () =>
      socket.end("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbad"),
    );
  });
  expect(await failure(at(stranger.at).readConfig())).toBeInstanceOf(FilesAwayError);
  // Of another release, say: it is no agent's fault, which would be marked as failed.
  const another = await listenBadly((socket) => {
    socket.on("data", () => socket.end('HTTP/1.1 200 OK\r\ncontent-length: 8\r\nconnection: close\r\n\r\n{"a": 1}'));
  });
  expect(await failure(at(another.at).readConfig())).toBeInstanceOf(FilesAwayError);
  const silent = at((await listenBadly(() => undefined)).at);
  expect(await failure(silent.guard({ agentId: AGENT, displayName: null }))).toBeInstanceOf(FilesAwayError);
});

test("what broke off in the middle is no whole folder", async () => {
  const line = `{"path":["a.md"],"changed_at":"2026-11-26T00:00:00Z","content":"YQ=="}\n`;
  const cut = await listenBadly((socket) => {
    socket.on("data", () =>
      socket.end(`HTTP/1.1 200 OK\r\ncontent-length: ${line.length}\r\nconnection: close\r\n\r\n${line}`),
    );
  });
  const workspaces = createRemoteWorkspaces({ url: cut.at, token: FILES_TOKEN, dir });
  expect(await failure(Array.fromAsync(workspaces.readFiles(AGENT)))).toMatchObject({ code: "cut_off" });
});

test("one that is being started again is waited for", async () => {
  const port = freePort();
  const workspaces = createRemoteWorkspaces({ url: `http://127.0.0.1:${port}`, token: FILES_TOKEN, dir });
  const prepared = workspaces.prepare({ agentId: AGENT, displayName: null });
  const files = serveFolder(dir, port);
  closers.push(() => files.stop());
  await prepared;
  expect(await workspaces.listAgents()).toContain(AGENT);
});

test("killed in the middle of writes, the configuration is an old one or a new one, never half of one", async () => {
  const port = freePort();
  const text = (n: number) => JSON.stringify({ n, filler: "x".repeat(900_000), end: n });
  const start = () =>
    Bun.spawn([process.execPath, "--no-env-file", FILES_PROGRAM], { env: envOf(dir, port), stdout: "ignore" });
  const workspaces = createRemoteWorkspaces({ url: `http://127.0.0.1:${port}`, token: FILES_TOKEN, dir });
  let cut = 0;
  let acknowledged = 0;
  writeFileSync(join(dir, "openclaw.json"), text(0));
  for (let round = 1, n = 0; round <= 6; round++) {
    const child = start();
    await untilServes(port);
    await workspaces.readConfig();
    let on = true;
    const writeOne = async () => {
      await workspaces.writeConfig(text(++n));
      acknowledged = n;
    };
    const writing = (async () => {
      while (on) await writeOne().catch(() => ((on = false), (cut += 1)));
    })();
    await Bun.sleep(20 * round);
    child.kill("SIGKILL");
    await child.exited;
    await writing;
    const found = JSON.parse(readFileSync(join(dir, "openclaw.json"), "utf8")) as { n: number; end: number };
    expect(found.n).toBe(found.end);
    expect(found.n).toBeGreaterThanOrEqual(acknowledged);
  }
  expect(cut).toBe(6);
  expect(acknowledged).toBeGreaterThan(0);
  await remote.readConfig();
  await remote.writeConfig("{}");
  expect(readdirSync(dir).filter((name) => name.includes("draft"))).toEqual([]);
});

test("a large folder is read as fast as it is taken, and whole", async () => {
  await remote.prepare({ agentId: "agent_large", displayName: null });
  for (let i = 0; i < 18; i++) writeFileSync(join(dir, "workspaces", "agent_large", `f${i}`), Buffer.alloc(990_000, i));
  let bytes = 0;
  for await (const file of remote.readFiles("agent_large")) {
    if (file.leftOut !== undefined || !file.path[0]!.startsWith("f")) continue;
    expect(file.content.equals(Buffer.alloc(990_000, Number(file.path[0]!.slice(1))))).toBe(true);
    bytes += file.content.length;
  }
  expect(bytes).toBe(18 * 990_000);
  // Who stops early leaves no file open on the other side.
  const open = () => readdirSync("/proc/self/fd", { withFileTypes: true }).length;
  const before = open();
  for (let i = 0; i < 10; i++)
    for await (const file of remote.readFiles("agent_large")) if (file.path[0] === "f1") break;
  await until("all is closed", () => open() <= before + 2);
});

test("while nobody serves the folder messages wait and nobody fails; when it is back all goes on by itself", async () => {
  const port = freePort();
  const reef = await startTestReef({ GATEWAY_FILES_URL: `http://127.0.0.1:${port}`, GATEWAY_FILES_TOKEN: FILES_TOKEN });
  let files = serveFolder(reef.dir, port);
  closers.push(async () => {
    await reef.stop();
    await files.stop();
  });
  const stateOf = async (id: string) =>
    (await reef.sql`select state from assistants where id = ${id}`)[0]!["state"] as string;
  const user = await makeUser(reef);
  const awake = await makeAssistant(user);
  await until("it is awake", async () => (await stateOf(awake.id)) === "awake");
  await files.stop();
  const chat = await openChat(reef, user.token, awake.agent_id);
  chat.say("are you there?");
  await chat.next("its ack", (frame) => frame.type === "ack");
  const sleeper = await makeAssistant(await makeUser(reef));
  const tries = () => reef.logs.filter((line) => line.includes("loop run failed")).length;
  await until("it was tried some times", () => tries() >= 3);
  expect([await stateOf(awake.id), await stateOf(sleeper.id)]).toEqual(["awake", "waking"]);
  expect(chat.frames.filter((frame) => frame.type === "error" || isAnswer(frame))).toEqual([]);
  files = serveFolder(reef.dir, port);
  expect(await chat.next("the answer", isAnswer)).toMatchObject({
    content: "Echo: are you there?",
    finish: "complete",
  });
  await until("the other one is awake", async () => (await stateOf(sleeper.id)) === "awake");
  expect(reef.gateway.sends.length).toBe(1);
});

test("the program: help, a setting that is missing, an orderly end", async () => {
  const run = (env: Record<string, string>, ...args: string[]) =>
    Bun.spawn([process.execPath, "--no-env-file", FILES_PROGRAM, ...args], { env, stdout: "pipe", stderr: "pipe" });
  const help = run({}, "--help");
  expect(await new Response(help.stdout).text()).toContain("GATEWAY_FILES_TOKEN");
  expect(await help.exited).toBe(0);
  const bare = run({});
  expect(await new Response(bare.stderr).text()).toContain("GATEWAY_FILES_TOKEN is missing");
  expect(await bare.exited).toBe(78);
  const port = freePort();
  const child = run(envOf(dir, port));
  await untilServes(port);
  child.kill("SIGTERM");
  expect(await child.exited).toBe(0);
});

test("the reconciler's suite holds with a files process, too", async () => {
  const root = resolve(import.meta.dir, "../..");
  const child = Bun.spawn([process.execPath, "--no-env-file", "test", "./test/reconciler/reconciler.test.ts"], {
    cwd: root,
    env: { ...process.env, REEF_TEST_FILES: "remote" },
    stdout: "pipe",
    stderr: "pipe",
  });
  closers.push(() => child.kill());
  const said = (await new Response(child.stderr).text()) + (await new Response(child.stdout).text());
  expect(said).toContain(" 0 fail");
  expect(Number(/(\d+) pass/.exec(said)?.[1])).toBeGreaterThan(7);
  expect(await child.exited).toBe(0);
});
