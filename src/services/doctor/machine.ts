import { listFolders, leftOf, ROOM } from "../watch.ts";
import { readUnit } from "../unitState.ts";
import {
  bad,
  NEEDS_ROOT,
  NO_SYSTEMD,
  NOT_INSTALLED,
  ok,
  onHost,
  onSystem,
  skip,
  warn,
  type Check,
  type Result,
  type Scene,
  type SystemScene,
} from "./check.ts";

const MEMORY = { warn: 0.1, bad: 0.04 };

async function checkDisk({ deps, host }: SystemScene): Promise<Result> {
  const rooms = await Promise.all(
    listFolders(deps.config).map(async (path) => ({ path, room: await host.room(path) })),
  );
  const left = rooms.flatMap(({ path, room }) => (room ? [{ path, share: leftOf(room) }] : []));
  const percent = (share: number) => `${Math.floor(share * 100)} %`;
  const least = left.toSorted((a, b) => a.share - b.share)[0];
  if (!least) return skip("the system does not tell");
  const found = `${percent(least.share)} left where ${least.path} lies, of ${left.length} folder(s)`;
  const fix = "docs/runbooks/disk-full.md";
  if (least.share < ROOM.bad) return bad(found, fix);
  return least.share < ROOM.warn ? warn(found, fix) : ok(found);
}

async function checkMemory({ host }: Scene): Promise<Result> {
  const text = (await host.read("/proc/meminfo")) ?? "";
  const value = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(text)?.[1]);
  const [available, all] = [value("MemAvailable"), value("MemTotal")];
  if (!(all > 0)) return skip("the system does not tell");
  const gigabytes = (kb: number) => `${(kb / 1024 / 1024).toFixed(1)} GB`;
  const found = `${gigabytes(available)} of ${gigabytes(all)} available`;
  const fix = "systemd-cgtop -m says who has it";
  if (available < MEMORY.bad * all) return bad(found, fix);
  return available < MEMORY.warn * all ? warn(found, fix) : ok(found);
}

async function checkClock({ host, place }: Scene): Promise<Result> {
  if (!place.hasSystemd) return skip(NO_SYSTEMD);
  const ran = await host.run(["timedatectl", "show", "--property=NTPSynchronized", "--property=NTP"]);
  if (!ran || ran.code !== 0) return skip("timedatectl does not tell");
  const fix = "timedatectl set-ntp true (apt-get install systemd-timesyncd)";
  if (/NTPSynchronized=yes/.test(ran.out)) return ok("synchronised");
  return warn("not synchronised: tokens and days go by the clock", fix);
}

/** What a unit's limit is in its file, in systemd and in the kernel. */
async function checkLimit({ host, place }: Scene, ...patterns: string[]): Promise<Result> {
  if (!place.hasSystemd) return skip(NO_SYSTEMD);
  const ran = await host.run(["systemctl", "list-units", "--state=active", "--plain", "--no-legend", ...patterns]);
  const units = (ran?.out ?? "").split("\n").flatMap((line) => line.trim().split(/\s+/)[0] || []);
  if (units.length === 0)
    return place.isInstalled
      ? bad(`no ${patterns.join(", ")} runs`, "systemctl start reef.target; reef status")
      : skip(NOT_INSTALLED);
  const found: string[] = [];
  const wrong: string[] = [];
  for (const unit of units) {
    const state = await readUnit(host, unit, ["MemoryMax", "ControlGroup", "NeedDaemonReload"]);
    const set = state?.MemoryMax ?? "infinity";
    if (state?.NeedDaemonReload === "yes") wrong.push(`${unit}: its file was changed and not read again`);
    else if (set === "infinity" || set === "") wrong.push(`${unit} has no limit of memory`);
    else {
      const kernel = await readKernelLimit(host, state?.ControlGroup ?? "");
      if (kernel !== null && kernel !== set)
        wrong.push(`${unit}: ${set} bytes are set, the kernel holds it to ${kernel}`);
      found.push(
        `${unit} ${Math.round(Number(set) / 1024 ** 3)} GB${kernel === null ? " (the kernel does not tell)" : ""}`,
      );
    }
  }
  if (wrong.length > 0) return bad(wrong.join("; "), "systemctl daemon-reload, then restart them one by one");
  return ok(found.join(", "));
}

async function readKernelLimit(host: Scene["host"], group: string): Promise<string | null> {
  const files = [`/sys/fs/cgroup${group}/memory.max`, `/sys/fs/cgroup/memory${group}/memory.limit_in_bytes`];
  for (const file of files) {
    const text = await host.read(file);
    if (text !== null) return text.trim();
  }
  return null;
}

/** A rule that lets in everybody, everywhere. */
const EVERYTHING = /^Anywhere(?: \(v6\))?\s+ALLOW(?: IN)?\s+Anywhere/m;

async function checkFirewall({ host, place }: Scene): Promise<Result> {
  if (!place.isInstalled) return skip(NOT_INSTALLED);
  if (!host.isRoot) return skip(NEEDS_ROOT);
  const fix = "ufw default deny incoming; ufw allow OpenSSH; ufw allow 80,443/tcp; ufw enable";
  const ufw = await host.run(["ufw", "status", "verbose"]);
  if (ufw && /^Status: active/m.test(ufw.out)) {
    if (!/^Default: (deny|reject) \(incoming\)/m.test(ufw.out) || EVERYTHING.test(ufw.out))
      return bad("ufw is active, and lets in what no rule holds off", "ufw default deny incoming; ufw status numbered");
    const allowed = [...ufw.out.matchAll(/^(\S+).*\bALLOW\b/gm)].map(([, what = ""]) => what);
    const inner = allowed.filter((what) => /\b(18789|18790|3001|3002|5432|6379)\b/.test(what));
    return inner.length === 0
      ? ok(`ufw lets in ${[...new Set(allowed)].join(", ")}`)
      : bad(`ufw lets in ${inner.join(", ")}`, `ufw delete allow ${inner[0]}`);
  }
  const nft = await host.run(["nft", "list", "ruleset"]);
  if (nft && /hook input[^}]*policy drop/.test(nft.out)) return ok("nftables drops what no rule lets in");
  return bad("nothing holds off what should not come in", fix);
}

async function checkFail2ban({ host, place }: Scene): Promise<Result> {
  if (!place.isInstalled) return skip(NOT_INSTALLED);
  if (!host.isRoot) return skip(NEEDS_ROOT);
  const ran = await host.run(["fail2ban-client", "status"]);
  if (!ran || ran.code !== 0) return bad("fail2ban does not run", "systemctl enable --now fail2ban");
  const jails = (/Jail list:\s*(.*)/.exec(ran.out)?.[1] ?? "").split(/,\s*/).filter((name) => name !== "");
  const ours = jails.filter((name) => name.includes("reef"));
  return ours.length > 0
    ? ok(`jail ${ours.join(", ")}`)
    : bad(`no jail of ours among ${jails.join(", ") || "none"}`, "sudo scripts/setup.sh installs it");
}

export const MACHINE: readonly Check[] = [
  onSystem("machine.disk", checkDisk),
  onHost("machine.memory", checkMemory),
  onHost("machine.clock", checkClock),
  onHost("machine.limits_api", (scene) => checkLimit(scene, "reef-api@*.service")),
  onHost("machine.limits_gateway", (scene) => checkLimit(scene, "reef-gateway@*.service")),
  onHost("machine.limits_slices", (scene) => checkLimit(scene, "openclaw.slice", "backend.slice")),
  onHost("machine.firewall", checkFirewall),
  onHost("machine.fail2ban", checkFail2ban),
];
