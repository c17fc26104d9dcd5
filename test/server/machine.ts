import { spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import {
  appendFileSync,
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import type { Server } from "node:net";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { writableCache } from "../../scripts/services/debian.ts";
import { tool } from "../tools.ts";
import { relay, startProxy } from "./relay.ts";
import { dyingWithUs } from "../../src/lib/deathSignal.ts";

/*
 * A real server to try the operation on: Debian with systemd as its first process, in namespaces of this machine. Its
 * disk is a throw-away copy over a tree that is built once and kept. Its network is a loopback of its own; what another
 * service brings (Postgres, Redis, a provider) is carried to ports of that loopback, and a proxy leads apt and npm out.
 */

/** Debian's release; "trixie" has the versions of systemd, nginx and fail2ban that are nearest to Ubuntu's. */
const SUITE = process.env["REEF_SERVER_SUITE"] ?? "bookworm";
const SYSTEM = ["systemd", "systemd-sysv", "dbus", "iproute2", "ca-certificates", "procps", "openssh-server"];
/** What setup.sh installs, so that a run takes seconds. Without `age`: one package is really fetched. */
const TOOLS = "nginx certbot ufw fail2ban python3-systemd jq restic postgresql-client curl openssl".split(" ");
const PROXY_PORT = 3128;
const BOOT_MS = 90_000;
const PREFIX = "reef-machine-";

type Outcome = { code: number; stdout: string; stderr: string };

export type Machine = {
  /** What the console said, systemd's words included. */
  console(): string;
  /** Runs a shell command as root; never rejects for its exit code. `input` is its stdin. */
  exec(command: string, options?: { input?: string; timeoutMs?: number }): Promise<Outcome>;
  /** The same, and rejects with everything it printed unless it ends with 0. Resolves with its stdout. */
  run(command: string, options?: { input?: string; timeoutMs?: number }): Promise<string>;
  /** Copies a folder's content (or what `git ls-files` names of a checkout, with `tracked`) into a folder of the machine. */
  copyIn(from: string, to: string, options?: { tracked?: boolean }): Promise<void>;
  /** A socket on this machine that leads to the machine's port: fetch(url, { unix }). */
  reach(port: number): Promise<string>;
  /** Shuts down in order and starts again on the same disk. */
  reboot(): Promise<void>;
  stop(): Promise<void>;
};

type Options = {
  name?: string;
  /** Ports of the machine's loopback, and the ports of ours they lead to: what another service brings. */
  ports?: Record<number, number>;
};

/** Why no machine can be booted here, as a sentence; null where it can. */
export function whyNoMachine(): string | null {
  const cannot = "A server can't be booted here:";
  if (process.getuid?.() !== 0) return `${cannot} it needs root (namespaces, mounts, control groups).`;
  for (const program of ["unshare", "nsenter", "mount", "tar"])
    if (Bun.which(program) === null) return `${cannot} the command ${program} is missing.`;
  const tried = spawnSync("unshare", [
    "-m",
    "-p",
    "-f",
    "-u",
    "-i",
    "-n",
    "-C",
    "--mount-proc",
    "mount",
    "-t",
    "tmpfs",
    "tmpfs",
    "/mnt",
  ]);
  if (tried.status !== 0) return `${cannot} namespaces of its own are not allowed (${tried.stderr.toString().trim()}).`;
  if (!/\boverlay\b/.test(readFileSync("/proc/filesystems", "utf8")))
    return `${cannot} the kernel has no overlay file system.`;
  return null;
}

/** The folder of the finished tree: built on first use (two minutes), then kept in the cache. */
export async function buildTree(log: (line: string) => void = console.error): Promise<string> {
  const packages = [...SYSTEM, ...TOOLS];
  const key = createHash("sha256")
    .update([SUITE, ...packages].join(" "))
    .digest("hex")
    .slice(0, 10);
  const done = join(writableCache(), `server-${SUITE}-${key}`);
  if (existsSync(done)) return done;
  const debootstrap = await tool("debootstrap");
  const half = mkdtempSync(`${done}-new-`);
  const logFile = join(writableCache(), "server-tree.log");
  log(`building a server's tree (once; about two minutes; ${logFile})`);
  const keyring = join(debootstrap.root, "usr/share/keyrings/debian-archive-keyring.gpg");
  const base = [
    debootstrap.path,
    "--variant=minbase",
    `--include=${SYSTEM.join(",")}`,
    ...(existsSync(keyring) ? [`--keyring=${keyring}`] : []),
    SUITE,
    half,
    findMirror(),
  ];
  // Nothing that is installed is started: this is no server yet.
  const rest = `mount -t proc proc '${half}/proc' && cp /etc/resolv.conf '${half}/etc/' &&
    printf 'exit 101\n' > '${half}/usr/sbin/policy-rc.d' && chmod 755 '${half}/usr/sbin/policy-rc.d' &&
    DEBIAN_FRONTEND=noninteractive chroot '${half}' apt-get -y --no-install-recommends install ${TOOLS.join(" ")} &&
    chroot '${half}' apt-get clean && rm -f '${half}/usr/sbin/policy-rc.d'`;
  const output = openSync(logFile, "w");
  for (const command of [base, ["unshare", "-m", "bash", "-c", rest]]) {
    const env = { ...debootstrap.env, LANG: "C.UTF-8" };
    const child = Bun.spawn([...dyingWithUs("TERM"), ...command], { env, stdio: ["ignore", output, output] });
    if ((await child.exited) === 0) continue;
    rmSync(half, { recursive: true, force: true });
    throw new Error(`The tree could not be built; ${logFile} says why.`);
  }
  chmodSync(half, 0o755);
  if (existsSync(done)) rmSync(half, { recursive: true, force: true });
  else renameSync(half, done);
  return done;
}

/** Where this machine fetches Debian from, if it does. */
function findMirror(): string {
  const listed = spawnSync("apt-get", ["indextargets", "--format", "$(ORIGIN) $(SITE)"]).stdout?.toString() ?? "";
  const sites = listed.split("\n").map((line) => /^Debian (http\S+)$/.exec(line)?.[1]);
  return sites.find((site) => site !== undefined && !site.includes("security")) ?? "http://deb.debian.org/debian";
}

/** Boots a machine. Resolves when systemd says that it is up. Rejects with its console's last words. */
export async function startMachine(options: Options = {}): Promise<Machine> {
  const tree = await buildTree();
  await removeLeft();
  const folder = mkdtempSync(join(tmpdir(), `${PREFIX}${process.pid}-`));
  const name = options.name ?? "reef-server";
  const sockets = join(folder, "sockets");
  mkdirSync(sockets);
  const ports = Object.entries(options.ports ?? {});
  const out: Server[] = [
    await startProxy(join(sockets, "proxy")),
    ...(await relay(ports.map(([inside, ours]) => `${join(sockets, inside)}=${ours}`))),
  ];
  // The network lives as long as this process: a reboot does not cut what hangs on it.
  const network = await startNetwork(tree, [
    `${PROXY_PORT}=${join(sockets, "proxy")}`,
    ...ports.map(([inside]) => `${inside}=${join(sockets, inside)}`),
  ]);
  prepareDisk(folder);
  let booted: Booted | null = null;
  const relays: Bun.Subprocess[] = [network];
  const reached = new Map<number, string>();
  const release = async () => {
    await booted?.powerOff("off");
    for (const server of out) server.close();
    for (const child of relays) child.kill("SIGKILL");
    await Promise.all(relays.map((child) => child.exited));
    rmSync(folder, { recursive: true, force: true });
  };
  const boot = async () => {
    booted = await bootOnce({ tree, folder, name, network: network.pid });
  };
  try {
    await boot();
  } catch (error) {
    await release();
    throw error;
  }
  const exec: Machine["exec"] = (command, given = {}) => enter(booted!.pid, command, given);
  const run: Machine["run"] = async (command, given) => {
    const { code, stdout, stderr } = await exec(command, given);
    if (code !== 0) throw new Error(`exit code ${code} of: ${command}\n${stdout}${stderr}`);
    return stdout;
  };
  return {
    exec,
    run,
    console: () => readFileSync(join(folder, "console.log"), "utf8"),
    async copyIn(from, to, { tracked = false } = {}) {
      const names = tracked ? `git -C '${from}' ls-files -z --cached --others --exclude-standard` : "printf '.\\0'";
      const pack = `${names} | tar -C '${from}' --null -T - --ignore-failed-read -cf -`;
      const unpack = `nsenter -t ${booted!.pid} -a -r -w sh -c 'mkdir -p "$0" && tar -xf - -C "$0"' '${to}'`;
      const { code, stderr } = await collect(
        Bun.spawn(["bash", "-c", `set -o pipefail; ${pack} | ${unpack}`], PIPES),
        120_000,
      );
      if (code !== 0) throw new Error(`${from} could not be copied into the machine: ${stderr}`);
    },
    async reach(port) {
      const path = reached.get(port) ?? join(sockets, `in-${port}`);
      if (!reached.has(port))
        relays.push(await startRelay(["nsenter", `--net=/proc/${network.pid}/ns/net`], [`${path}=${port}`]));
      reached.set(port, path);
      return path;
    },
    async reboot() {
      await booted!.powerOff("reboot");
      await boot();
    },
    stop: release,
  };
}

const PIPES = { stdin: "ignore", stdout: "pipe", stderr: "pipe" } as const;
type Piped = Bun.Subprocess<"ignore" | Blob, "pipe", "pipe">;

async function collect(child: Piped, timeoutMs: number): Promise<Outcome> {
  const timer = setTimeout(() => child.kill("SIGKILL"), timeoutMs);
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  clearTimeout(timer);
  return { code, stdout, stderr };
}

/** A command in the machine, with a bare environment: nothing of ours comes along. */
function enter(
  pid: number,
  command: string,
  { input = "", timeoutMs = 120_000 }: { input?: string; timeoutMs?: number },
) {
  const clean = [
    "env",
    "-i",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LANG=C.UTF-8",
  ];
  const command_ = ["nsenter", "-t", String(pid), "-a", "-r", "-w", ...clean, "bash", "-c", command];
  return collect(Bun.spawn([...dyingWithUs("KILL"), ...command_], { ...PIPES, stdin: new Blob([input]) }), timeoutMs);
}

function startNetwork(tree: string, pairs: string[]): Promise<Bun.Subprocess> {
  return startRelay(["unshare", "-n", "sh", "-c", `chroot '${tree}' ip link set lo up && exec "$@"`, "sh"], pairs);
}

async function startRelay(within: string[], pairs: string[]): Promise<Bun.Subprocess> {
  const command = [process.execPath, "--no-env-file", resolve(import.meta.dir, "relay.ts"), ...pairs];
  const child = Bun.spawn([...dyingWithUs("KILL"), ...within, ...command], { ...PIPES, stderr: "inherit" });
  const { value } = await child.stdout.getReader().read();
  if (value === undefined) throw new Error("The machine's network could not be set up.");
  return child;
}

/** What the tree lacks of a server of ours: the way out, whom to trust, who fetches packages from where. */
function prepareDisk(folder: string): void {
  const upper = join(folder, "upper");
  for (const path of ["etc/apt/apt.conf.d", "etc/ssl/certs", "etc/systemd/system", "root"])
    mkdirSync(join(upper, path), { recursive: true });
  chmodSync(join(upper, "root"), 0o700);
  writeFileSync(join(upper, "etc/machine-id"), `${randomBytes(16).toString("hex")}\n`);
  // The network is there from the start, and is not systemd's to bring up.
  for (const unit of ["systemd-networkd-wait-online.service", "systemd-networkd.service"])
    symlinkSync("/dev/null", join(upper, "etc/systemd/system", unit));
  const proxy = `http://127.0.0.1:${PROXY_PORT}`;
  writeFileSync(
    join(upper, "etc/apt/apt.conf.d/90proxy"),
    `Acquire::http::Proxy "${proxy}";\nAcquire::https::Proxy "${proxy}";\n`,
  );
  const trusted = "/etc/ssl/certs/ca-certificates.crt";
  if (existsSync(trusted)) copyFileSync(trusted, join(upper, trusted));
  const registry = spawnSync("npm", ["config", "get", "registry"]).stdout?.toString().trim();
  const npm = [
    `proxy=${proxy}`,
    `https-proxy=${proxy}`,
    `cafile=${trusted}`,
    ...(registry ? [`registry=${registry}`] : []),
  ];
  writeFileSync(join(upper, "root/.npmrc"), `${npm.join("\n")}\n`);
  writeFileSync(join(upper, "root/.curlrc"), `proxy = "${proxy}"\nnoproxy = "127.0.0.1,localhost,.test"\n`);
}

type Booted = { pid: number; powerOff(how: "off" | "reboot"): Promise<void> };

async function bootOnce(options: { tree: string; folder: string; name: string; network: number }): Promise<Booted> {
  const { tree, folder, name, network } = options;
  const logFile = join(folder, "console.log");
  appendFileSync(logFile, "");
  const output = openSync(logFile, "a");
  const groups = makeGroups(basename(folder));
  const npmCache = join(writableCache(), "server-npm");
  mkdirSync(npmCache, { recursive: true });
  const join_ = groups.map((group) => `echo $$ > ${group}/cgroup.procs`).join(" && ");
  const unshare = "unshare -m -p -f -u -i -C --kill-child=KILL";
  const boot = `bash ${resolve(import.meta.dir, "boot.sh")} ${tree} ${folder} ${name} ${npmCache}=/root/.npm`;
  const child = Bun.spawn(
    [...dyingWithUs("KILL"), "bash", "-c", `${join_} && exec nsenter --net=/proc/${network}/ns/net ${unshare} ${boot}`],
    { stdio: ["ignore", output, output] },
  );
  const end = async (signal: number) => {
    const pid = firstChild(child.pid);
    if (pid !== null) spawnSync("kill", [`-${signal}`, String(pid)]);
    const timer = setTimeout(() => child.kill("SIGKILL"), 150_000);
    await child.exited;
    clearTimeout(timer);
    await removeGroups(groups);
  };
  const until = Date.now() + BOOT_MS;
  for (;;) {
    const pid = firstChild(child.pid);
    // "degraded": a unit of the distribution did not like it here; that is no reason to refuse.
    if (pid !== null && isSystemd(pid)) {
      const { stdout } = await enter(pid, "systemctl is-system-running", { timeoutMs: 10_000 });
      if (/^(running|degraded)/.test(stdout)) return { pid, powerOff: (how) => end(how === "off" ? 38 : 39) };
    }
    if (child.exitCode !== null || Date.now() > until) break;
    await Bun.sleep(150);
  }
  child.kill("SIGKILL");
  await child.exited;
  await removeGroups(groups);
  throw new Error(`The machine did not come up:\n${readFileSync(logFile, "utf8").split("\n").slice(-30).join("\n")}`);
}

function firstChild(pid: number): number | null {
  try {
    return Number(readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ")[0]) || null;
  } catch {
    return null;
  }
}

function isSystemd(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/comm`, "utf8").trim() === "systemd";
  } catch {
    return false;
  }
}

/** Where control groups are mounted on this machine: one place (v2), or one for each controller (v1, hybrid). */
function groupRoots(): string[] {
  const mounts = readFileSync("/proc/mounts", "utf8")
    .split("\n")
    .map((line) => line.split(" "));
  return mounts.flatMap(([, path = "", kind = ""]) =>
    /^cgroup2?$/.test(kind) && path.startsWith("/sys/fs/cgroup") ? [path] : [],
  );
}

/** Of runs that were killed: the process in the name is no more, and its machine died with it. */
async function removeLeft(): Promise<void> {
  for (const within of [tmpdir(), ...groupRoots()]) {
    for (const name of readdirSync(within).filter((entry) => entry.startsWith(PREFIX))) {
      if (existsSync(`/proc/${name.slice(PREFIX.length).split("-")[0]}`)) continue;
      if (within === tmpdir()) rmSync(join(within, name), { recursive: true, force: true });
      else await removeGroups([join(within, name)]);
    }
  }
}

/** A control group of its own in each hierarchy: what systemd sees as the whole. */
function makeGroups(name: string): string[] {
  return groupRoots().map((root) => {
    const group = join(root, name);
    mkdirSync(group, { recursive: true });
    // A new group of cpuset (v1) is empty, and nobody can be put into it.
    for (const file of ["cpuset.cpus", "cpuset.mems"]) {
      const [from, to] = [join(root, file), join(group, file)];
      if (existsSync(from) && existsSync(to)) writeFileSync(to, readFileSync(from));
    }
    return group;
  });
}

async function removeGroups(groups: string[]): Promise<void> {
  for (const group of groups) {
    for (let tries = 0; tries < 20; tries++) {
      const within = spawnSync("find", [group, "-depth", "-mindepth", "1", "-type", "d"]).stdout.toString().split("\n");
      try {
        for (const path of [...within.filter(Boolean), group]) rmdirSync(path);
        break;
      } catch {
        // The kernel lets go of the dead after a moment.
        await Bun.sleep(100);
      }
    }
  }
}
