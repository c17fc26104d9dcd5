import { Database } from "bun:sqlite";
import { afterAll, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { copyGateway, hashWorkspace } from "../../src/clients/gatewayCopy.ts";
import { listFiles } from "../deletion/search.ts";
import { until } from "../harness.ts";
import { dyingWithUs } from "../../src/lib/deathSignal.ts";

const folder = mkdtempSync(join(tmpdir(), `reef-test-${process.pid}-`));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const never = new AbortController().signal;
const ID = "agent_0123456789abcdef0123";

function makeGateway(name: string): { dir: string; agent: string } {
  const dir = join(folder, name);
  const agent = join(dir, "state/agents", ID, "agent");
  for (const path of [agent, join(dir, "state/tmp"), join(dir, "parked"), join(dir, "workspaces", ID)])
    mkdirSync(path, { recursive: true });
  writeFileSync(join(dir, "workspaces", ID, "MEMORY.md"), "bees");
  return { dir, agent };
}
const target = (name: string) => {
  const path = join(folder, name);
  mkdirSync(path);
  return path;
};

/** Writes two rows in each transaction, as fast as it can, and never lets the WAL be empty. */
const WRITER = `
  import { Database } from "bun:sqlite";
  const db = new Database(process.argv.at(-1));
  db.run("pragma journal_mode = wal");
  db.run("create table if not exists pairs (n integer primary key, text text)");
  for (let n = 0; ; n += 2) {
    db.run("begin immediate");
    db.run("insert into pairs values (?, ?)", [n, "x".repeat(500)]);
    db.run("insert into pairs values (?, ?)", [n + 1, "x".repeat(500)]);
    db.run("commit");
    if (n % 20 === 0) await Bun.sleep(1);
  }`;

test("databases that are being written to are copied whole: every transaction, or nothing of it", async () => {
  const { dir, agent } = makeGateway("busy");
  const file = join(agent, "openclaw-agent.sqlite");
  const script = join(folder, "writer.ts");
  writeFileSync(script, WRITER);
  const writer = Bun.spawn([...dyingWithUs("KILL"), process.execPath, script, file]);
  await until("it writes", () => existsSync(`${file}-wal`));
  let last = 0;
  for (let round = 0; round < 5; round += 1) {
    await until("it has written more", () => {
      const rows = countPairs(file);
      return rows > last + 20;
    });
    const to = target(`busy-${round}`);
    const { damaged } = await copyGateway(dir, to, never);
    expect(damaged).toEqual([]);
    const copy = join(to, "state/agents", ID, "agent/openclaw-agent.sqlite");
    expect(existsSync(`${copy}-wal`)).toBe(false);
    const rows = countPairs(copy);
    expect(rows % 2).toBe(0);
    expect(rows).toBeGreaterThan(last);
    expect(new Database(copy, { readonly: true }).query("pragma integrity_check").get()).toEqual({
      integrity_check: "ok",
    });
    last = rows;
  }
  writer.kill();
  await writer.exited;
});

function countPairs(file: string): number {
  const database = new Database(file, { readonly: true });
  try {
    return (database.query("select count(*) as n from pairs").get() as { n: number }).n;
  } catch {
    return 0;
  } finally {
    database.close();
  }
}

test("links lead nowhere; what every start makes anew is left out; what can't be read is copied as it is, and named", async () => {
  const { dir, agent } = makeGateway("hostile");
  const secret = join(folder, "secret");
  writeFileSync(secret, "the host's secret");
  const foreign = join(folder, "foreign.sqlite");
  new Database(foreign).run("create table secrets (text text)");
  symlinkSync(secret, join(agent, "notes.json"));
  symlinkSync(foreign, join(agent, "other.sqlite"));
  symlinkSync(folder, join(dir, "state/agents/agent_linked"));
  symlinkSync(secret, join(dir, "workspaces", ID, "LINK.md"));
  writeFileSync(join(agent, "openclaw-agent.sqlite"), "no database at all");
  writeFileSync(join(dir, "state/tmp/gateway.lock"), "1");
  writeFileSync(join(dir, "state/plain.key"), "kept");
  writeFileSync(join(dir, "workspaces", ID, "film.bin"), Buffer.alloc(1_000_001));
  mkdirSync(join(dir, "parked/agent_parked/agent"), { recursive: true });
  new Database(join(dir, "parked/agent_parked/agent/openclaw-agent.sqlite")).run("create table rows (n)");
  const to = target("hostile-copy");
  const copied = await copyGateway(dir, to, never);
  expect(
    listFiles(to)
      .map((path) => path.slice(to.length + 1))
      .sort(),
  ).toEqual([
    "parked/agent_parked/agent/openclaw-agent.sqlite",
    `state/agents/${ID}/agent/openclaw-agent.sqlite`,
    "state/plain.key",
    `workspaces/${ID}/MEMORY.md`,
  ]);
  // What a restore will not bring back is named; a link is nobody's file.
  expect(copied.leftOut).toEqual([`workspaces/${ID}/film.bin: larger than 1000000 bytes`]);
  expect(copied.damaged).toEqual([`state/agents/${ID}/agent/openclaw-agent.sqlite`]);
  expect(readFileSync(join(to, copied.damaged[0]!), "utf8")).toBe("no database at all");
  expect(await hashWorkspace(join(to, "workspaces", ID))).toBe(copied.workspaces[ID]!);
  writeFileSync(join(to, "workspaces", ID, "MEMORY.md"), "wasps");
  expect(await hashWorkspace(join(to, "workspaces", ID))).not.toBe(copied.workspaces[ID]!);
});

test("agents that are erased while it copies are no fault", async () => {
  const { dir } = makeGateway("erased");
  const agents = Array.from({ length: 60 }, (_, n) => `agent_${String(n).padStart(20, "0")}`);
  for (const id of agents) {
    const agent = join(dir, "state/agents", id, "agent");
    mkdirSync(agent, { recursive: true });
    const database = new Database(join(agent, "openclaw-agent.sqlite"));
    database.run("create table rows (n)");
    database.close();
    mkdirSync(join(dir, "workspaces", id));
    writeFileSync(join(dir, "workspaces", id, "MEMORY.md"), id);
  }
  const to = target("erased-copy");
  const copying = copyGateway(dir, to, never);
  for (const id of agents.toReversed()) {
    rmSync(join(dir, "workspaces", id), { recursive: true });
    rmSync(join(dir, "state/agents", id), { recursive: true });
    await Bun.sleep(0);
  }
  const { damaged } = await copying;
  expect(damaged).toEqual([]);
});

test("an agent that is woken or parked while it copies is in it once, wherever it was first", async () => {
  const { dir } = makeGateway("moved");
  const makeState = (place: string, id: string) => {
    const agent = join(dir, place, id, "agent");
    mkdirSync(agent, { recursive: true });
    const database = new Database(join(agent, "openclaw-agent.sqlite"));
    database.run("create table rows (n)");
    database.close();
  };
  const idOf = (n: number) => `agent_${String(n).padStart(20, "0")}`;
  const [awake, asleep] = [
    Array.from({ length: 30 }, (_, n) => idOf(n)),
    Array.from({ length: 30 }, (_, n) => idOf(100 + n)),
  ];
  for (const id of awake) makeState("state/agents", id);
  for (const id of asleep) makeState("parked", id);
  const to = target("moved-copy");
  const copying = copyGateway(dir, to, never);
  await until("it has begun with agents", () => listFiles(to).some((path) => path.includes("agent_0000")));
  for (const id of asleep) renameSync(join(dir, "parked", id), join(dir, "state/agents", id));
  for (const id of awake) renameSync(join(dir, "state/agents", id), join(dir, "parked", id));
  await copying;
  const copied = listFiles(to).filter((path) => path.endsWith(".sqlite"));
  expect(copied.map((path) => path.split("/").at(-3)!).sort()).toEqual([...awake, ...asleep].sort());
});
