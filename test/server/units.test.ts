import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import type { Program } from "../../scripts/services/debian.ts";
import { tool } from "../tools.ts";

const root = resolve(import.meta.dir, "../..");
const folder = join(root, "systemd");
const files = readdirSync(folder)
  .filter((name) => /\.(service|timer|target|slice|path|socket)$/.test(name))
  .sort();
const services = files.filter((name) => name.endsWith(".service"));
const timers = files.filter((name) => name.endsWith(".timer"));

/** The values of a setting in a unit, in their order. */
function valuesOf(name: string, key: string): string[] {
  const text = readFileSync(join(folder, name), "utf8").replaceAll("\\\n", "");
  return [...text.matchAll(new RegExp(`^${key}=(.*)$`, "gm"))].map((match) => match[1]!.trim());
}
const valueOf = (name: string, key: string) => valuesOf(name, key).at(-1) ?? "";

/** Seconds of "280s", "35min", "2h" or "150". */
function secondsOf(span: string): number {
  const [, amount, unit] = /^(\d+)(s|min|h)?$/.exec(span) ?? [];
  if (amount === undefined) throw new Error(`no time span: "${span}"`);
  return Number(amount) * { s: 1, min: 60, h: 3600 }[(unit ?? "s") as "s" | "min" | "h"];
}

const camelCase = (name: string) => name.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());
const jobOf = (timer: string) => camelCase(timer.replace(/^reef-|\.timer$/g, ""));

describe("jobs and timers", () => {
  const scheduled = readdirSync(join(root, "src/jobs"))
    .filter((name) => name.endsWith(".ts") && name !== "runTimer.ts")
    .filter((name) => readFileSync(join(root, "src/jobs", name), "utf8").includes("await runTimer("))
    .map((name) => name.replace(".ts", ""))
    .sort();

  test("every job has a timer, and every timer a job", () => {
    expect(timers.map(jobOf).sort()).toEqual(scheduled);
  });

  test("they run when the issue says, each once for all of them, and again after the machine was off", () => {
    const when = Object.fromEntries(timers.map((name) => [name.replace(".timer", ""), valueOf(name, "OnCalendar")]));
    expect(when).toMatchObject({
      "reef-backup": "*-*-* 02:00:00",
      "reef-verify-backup": expect.stringMatching(/^Sun /),
      "reef-check-health": "*-*-* *:00/5:00",
      "reef-sleep-inactive": "Sun *-*-* 03:00:00",
      "reef-remove-expired": "*-*-* 04:00:00",
      "reef-reconcile-billing": "*-*-* 00/6:15:00",
      "reef-run-canary": "*-*-* *:30:00",
    });
    for (const name of timers) {
      expect([name, valueOf(name, "Persistent")]).toEqual([name, "true"]);
      expect([name, secondsOf(valueOf(name, "RandomizedDelaySec"))]).toEqual([name, expect.any(Number)]);
      expect([name, valueOf(name, "WantedBy")]).toEqual([name, "reef.target"]);
    }
  });

  for (const timer of timers) {
    const service = timer.replace(".timer", ".service");
    const file = join(root, `src/jobs/${jobOf(timer)}.ts`);

    test(`${service} runs its job, with time for it and an alarm when it fails`, () => {
      expect(valueOf(service, "ExecStart")).toEndWith(` src/jobs/${jobOf(timer)}.ts`);
      expect(valueOf(service, "Type")).toBe("oneshot");
      expect(valueOf(service, "WantedBy")).toBe("");
      expect(valueOf(service, "After")).toStartWith("reef-api@1.service reef-api@2.service");
      expect(limitOf(file) / 1000).toBeLessThan(secondsOf(valueOf(service, "TimeoutStartSec")));
    });
  }

  /** The longest that a job may take, in milliseconds, as its file or its service says; 0 while there is none. */
  function limitOf(file: string): number {
    if (!existsSync(file)) return 0;
    const text = readFileSync(file, "utf8");
    const services = [...text.matchAll(/from "(\.\.\/services\/[^"]+)"/g)].map((match) =>
      join(dirname(file), match[1]!),
    );
    const source = [text, ...services.map((path) => readFileSync(path, "utf8"))].join("\n");
    const resolve = (term: string): string =>
      term.replace(/\b[A-Z_]\w*\b/g, (name) =>
        resolve(new RegExp(`const ${name} = ([^;]+);`).exec(source)?.[1] ?? "?"),
      );
    const sum = resolve(/\blimitMs: ([\w*+ ]+)/.exec(source)?.[1] ?? "?");
    if (!/^[\d_*+ ]+$/.test(sum)) throw new Error(`${file} does not say limitMs in numbers: ${sum}`);
    const product = (term: string) => term.split("*").reduce((all, one) => all * Number(one.replaceAll("_", "")), 1);
    return sum.split("+").reduce((all, term) => all + product(term), 0);
  }
});

describe("services", () => {
  const ours = services.filter((name) => valueOf(name, "ExecStart").includes("/opt/reef/"));
  const own = (name: string) => ours.filter((each) => each.startsWith(name));

  test("each tells of its failure but the ones that tell", () => {
    const silent = services.filter((name) => valueOf(name, "OnFailure") !== "reef-alarm@%n.service");
    expect(silent).toEqual(["reef-alarm@.service", "reef-recovered@.service"]);
  });

  test("those that stay up are restarted for ever, but never with a bad configuration, and tell of each crash", () => {
    const lasting = [...own("reef-api@"), ...own("reef-gateway@"), ...own("reef-files@")];
    expect(lasting).toHaveLength(3);
    for (const name of lasting) {
      expect([name, valueOf(name, "RestartPreventExitStatus")]).toEqual([name, "78"]);
      expect([name, valueOf(name, "StartLimitIntervalSec")]).toEqual([name, "0"]);
      expect([name, valueOf(name, "Restart")]).toEqual([name, expect.stringMatching(/^(on-failure|always)$/)]);
      expect([name, valueOf(name, "ExecStopPost")]).toEqual([name, expect.stringContaining("reef-alarm@%n.service")]);
      expect([name, valueOf(name, "Wants")]).toEqual([name, expect.stringContaining("reef-recovered@%n.service")]);
    }
    // A broken machine does not mail for ever.
    expect(secondsOf(valueOf("reef-alarm@.service", "StartLimitIntervalSec"))).toBe(6 * 3600);
    expect(valueOf("reef-alarm@.service", "StartLimitBurst")).toBe("5");
  });

  test("limits are those of the issue, and a stop that is orderly always fits", () => {
    const limits = (name: string) => [valueOf(name, "MemoryMax"), valueOf(name, "CPUQuota") || valueOf(name, "Slice")];
    expect(limits("openclaw.slice")).toEqual(["14G", "200%"]);
    expect(limits("backend.slice")).toEqual(["6G", "200%"]);
    expect(limits("reef-api@.service")).toEqual(["2G", "backend.slice"]);
    expect(limits("reef-gateway@.service")).toEqual(["14G", "openclaw.slice"]);
    expect(valueOf("reef-gateway@.service", "ExecStart")).toContain("--max-old-space-size=12288 ");
    expect(valueOf("reef-gateway@.service", "TimeoutStopSec")).toBe("330");
    const stopMs = /const STOP_MS = ([\d_]+);/.exec(readFileSync(join(root, "src/process.ts"), "utf8"))?.[1];
    expect(Number(stopMs?.replaceAll("_", ""))).toBeLessThan(
      1000 * secondsOf(valueOf("reef-api@.service", "TimeoutStopSec")),
    );
    expect(valueOf("reef-api@.service", "Type")).toBe("notify");
    expect(Number(valueOf("reef-api@.service", "WatchdogSec"))).toBeGreaterThan(0);
    for (const name of ours)
      expect([name, valueOf(name, "Slice")]).toEqual([name, expect.stringMatching(/^(backend|openclaw)\.slice$/)]);
  });

  test("the gateway gets what scripts/services/gateway.ts gives it", () => {
    const source = readFileSync(join(root, "scripts/services/gateway.ts"), "utf8");
    const given = [...source.matchAll(/^ {4}((?:OPENCLAW_|HOME|TMPDIR)\w*): (?:"(.*)")?/gm)].map(([, name, value]) => [
      name!,
      value,
    ]);
    expect(given.length).toBeGreaterThan(8);
    const environment = ["Environment", "UnsetEnvironment"]
      .flatMap((key) => valuesOf("reef-gateway@.service", key))
      .join(" ");
    for (const [name, value] of given) {
      // The token is in the gateway's own file.
      if (name === "OPENCLAW_GATEWAY_TOKEN") continue;
      expect(` ${environment} `).toContain(
        ` ${name}=${value === undefined ? "/var/lib/reef-gateway/%i/" : `${value} `}`,
      );
    }
  });

  test("the users' secrets are apart, and whoever is not root may do nothing that root may", () => {
    for (const name of ours) {
      const user = valueOf(name, "User");
      const hidden = valueOf(name, "InaccessiblePaths").split(" ");
      if (user === "root") {
        expect(["reef-backup.service", "reef-verify-backup.service"]).toContain(name);
        continue;
      }
      expect([name, valuesOf(name, "CapabilityBoundingSet")]).toEqual([name, [""]]);
      const other = { reef: ["-/var/lib/reef-gateway"], "reef-gateway": ["-/var/lib/reef", "-/run/reef"] }[user];
      // It measures the disks of the others' folders, which it can't enter.
      const paths =
        name === "reef-check-health.service" ? [] : [...(other ?? ["an unknown user"]), "-/var/backups/reef"];
      expect([name, ["-/etc/reef", ...paths].filter((path) => !hidden.includes(path))]).toEqual([name, []]);
    }
  });

  test("each has every lock, and none that keeps an engine from compiling", () => {
    const locks = readFileSync(join(folder, "reef-api@.service"), "utf8")
      .split("\n")
      .filter((line) =>
        /^(NoNew|Protect|Private|Restrict(?!Addr)|Lock|RemoveIPC|Keyring|SystemCall(Arch|Error)|UMask|LimitCORE)/.test(
          line,
        ),
      );
    expect(locks.length).toBeGreaterThanOrEqual(20);
    for (const name of ours) {
      const lines = readFileSync(join(folder, name), "utf8").split("\n");
      const open = locks.filter((lock) => !lines.includes(lock));
      // What the drill makes in its own /var/tmp is read by another user, too.
      expect([name, open]).toEqual([name, name === "reef-verify-backup.service" ? ["UMask=0077"] : []]);
      expect([name, valueOf(name, "MemoryDenyWriteExecute")]).toEqual([name, ""]);
    }
  });
});

// A machine of another kind than Debian may have neither systemd nor a way to fetch it.
const analyze = await tool("systemd-analyze").catch((error: unknown) => {
  console.warn(`units.test.ts: the units are not verified: ${String(error)}`);
  return null;
});

describe.skipIf(analyze === null)("systemd says of the units", () => {
  const { path, env, root: installed } = analyze ?? ({} as Program);
  let dir: string;
  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), `reef-test-${process.pid}-units-`));
    for (const name of files) for (const instance of instancesOf(name)) copyUnit(name, instance);
  });
  afterAll(() => rmSync(dir, { recursive: true, force: true }));

  /** A template is verified as one of its instances. */
  function instancesOf(name: string): string[] {
    if (!name.includes("@.")) return [name];
    const instance = /alarm|recovered/.test(name) ? "reef-api@1.service" : "main";
    return [name, name.replace("@.", `@${instance}.`)];
  }

  /** Programs of a server are stubs in our folder: that they are where the unit says is what is not known here. */
  function copyUnit(name: string, instance: string): void {
    const text = readFileSync(join(folder, name), "utf8").replace(
      /(^Exec\w+=[-+!:@]*)(\/(?:opt|usr\/local)\/\S+)/gm,
      (_, start: string, program: string) => {
        const stub = join(dir, "root", program);
        mkdirSync(dirname(stub), { recursive: true });
        writeFileSync(stub, "");
        chmodSync(stub, 0o755);
        return `${start}${stub}`;
      },
    );
    writeFileSync(join(dir, instance), text);
  }

  function ask(...args: string[]): { code: number | null; said: string } {
    const child = Bun.spawnSync([path, ...args, "--no-pager"], {
      env: {
        ...env,
        SYSTEMD_UNIT_PATH: `${dir}:${join(installed, "usr/lib/systemd/system")}:${join(installed, "lib/systemd/system")}`,
      },
      cwd: dir,
    });
    return { code: child.exitCode, said: `${child.stdout.toString()}${child.stderr.toString()}`.trim() };
  }

  test("nothing: there is no fault in any", () => {
    const units = readdirSync(dir).filter((name) => /\.\w+$/.test(name) && !name.includes("@."));
    expect(units.length).toBeGreaterThanOrEqual(files.length);
    expect(ask("verify", "--man=no", ...units)).toEqual({ code: 0, said: "" });
  });

  test("something, where there is a fault", () => {
    for (const fault of [
      "ProtectSistem=strict",
      "MemoryMax=2X",
      "ExecStart=\nExecStart=/opt/nothing",
      "OnFailure=a b@",
    ]) {
      copyFileSync(join(dir, "reef-prune-logs.service"), join(dir, "faulty.service"));
      writeFileSync(
        join(dir, "faulty.service"),
        `${readFileSync(join(dir, "faulty.service"), "utf8")}${fault.startsWith("OnF") ? "[Unit]\n" : ""}${fault}\n`,
      );
      expect([fault, ask("verify", "--man=no", "faulty.service").said]).toEqual([
        fault,
        expect.stringContaining("faulty.service"),
      ]);
    }
    rmSync(join(dir, "faulty.service"));
  });

  for (const name of services) {
    test(`the exposure of ${name} is OK or better`, () => {
      const { said } = ask("security", "--offline=true", join(dir, instancesOf(name).at(-1)!));
      const level = Number(/Overall exposure level for \S+: ([\d.]+)/.exec(said)?.[1]);
      // "OK" ends below 5.0; ours are at 1.3 to 2.0.
      expect(level, `${name} has an exposure of ${level}, which is not below 3.0`).toBeLessThan(3);
    });
  }

  test("when each timer elapses next", () => {
    for (const name of timers)
      for (const when of valuesOf(name, "OnCalendar"))
        expect([name, ask("calendar", when)]).toEqual([
          name,
          { code: 0, said: expect.stringContaining("Next elapse") },
        ]);
  });
});
