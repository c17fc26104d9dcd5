import { chmodSync, existsSync, readFileSync, readlinkSync, realpathSync, writeFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { spawnChild, type Child } from "../../scripts/services/process.ts";
import { dyingWithUs } from "../../src/lib/deathSignal.ts";

const STAND_IN = resolve(import.meta.dir, "standIn.ts");

interface Unit {
  child: Child;
  state: "running" | "failed" | "dead";
}

/** What a `systemctl` answers. */
interface Reply {
  code: number;
  output: string;
}

/**
 * Stands in for systemd where there is none: really starts and stops the API processes of a server that lies under
 * `root`, with the settings of its env files, in what /opt/reef/current leads to at that moment. All die with the test.
 */
export class ServiceManager {
  /** What was asked for, one line each. */
  readonly calls: string[] = [];
  /** A gateway of this version does not come up again. */
  badOpenclaw: string | null = null;
  private readonly units = new Map<string, Unit>();
  private readonly server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    idleTimeout: 0,
    fetch: async (request) => Response.json(await this.answer((await request.json()) as string[])),
  });

  constructor(
    private readonly root: string,
    private readonly bin: string,
  ) {
    for (const name of ["systemctl", "systemd-run"]) {
      const text = `#!/bin/sh\nexec ${process.execPath} --no-env-file ${STAND_IN} ${name} "$@"\n`;
      writeFileSync(join(bin, name), text);
      chmodSync(join(bin, name), 0o755);
    }
  }

  /** For those who call the stand-ins. */
  get env(): Record<string, string> {
    return { PATH: `${this.bin}:${process.env["PATH"] ?? ""}`, STAND_IN_URL: this.server.url.href };
  }

  /** The folder that a unit's process runs in; null when it does not run. */
  folderOf(name: string): string | null {
    const unit = this.units.get(name);
    return unit?.state === "running" ? readlinkSync(`/proc/${unit.child.pid}/cwd`) : null;
  }

  /** What /opt/reef/current leads to; null when there is none. */
  linkedFolder(): string | null {
    const link = join(this.root, "opt/reef/current");
    return existsSync(link) ? realpathSync(link) : null;
  }

  async stop(): Promise<void> {
    await Promise.all([...this.units.values()].map(({ child }) => child.stop("SIGTERM", 10_000)));
    await this.server.stop(true);
  }

  private async answer([program, ...args]: string[]): Promise<Reply> {
    this.calls.push([program, ...args].join(" "));
    if (program === "systemd-run") return this.run(args);
    const words = args.filter((arg) => !arg.startsWith("--"));
    const [verb, unit = ""] = words;
    if (verb === "start") return this.start(unit);
    if (verb === "stop") return this.stopUnit(unit);
    if (verb === "show") return this.show(unit, args.find((arg) => arg.startsWith("--property="))!.slice(11));
    if (verb === "restart" && unit.startsWith("reef-gateway@")) {
      const version = basename(readlinkSync(join(this.root, "opt/reef/openclaw/current")));
      return { code: version === this.badOpenclaw ? 1 : 0, output: "" };
    }
    // What else is known of units that this stand-in does not run: the gateway's files are served, and so on.
    const known = ["daemon-reload", "reset-failed", "enable", "disable", "is-active", "restart"];
    return { code: known.includes(verb ?? "") ? 0 : 1, output: "" };
  }

  private start(name: string): Reply {
    if (this.units.get(name)?.state === "running") return { code: 0, output: "" };
    const n = name.split("@")[1]!;
    const child = spawnChild({
      command: inFolder(join(this.root, "opt/reef/current"), [process.execPath, "--no-env-file", "src/main.ts"]),
      env: { PATH: "/usr/bin:/bin", ...this.settings("reef.env"), ...this.settings(`api/${n}.env`) },
      deathSignal: "KILL",
      logFile: join(this.root, `${name}.log`),
    });
    const unit: Unit = { child, state: "running" };
    this.units.set(name, unit);
    void child.exited.then((code) => (unit.state = code === 0 ? "dead" : "failed"));
    return { code: 0, output: "" };
  }

  private async stopUnit(name: string): Promise<Reply> {
    await this.units.get(name)?.child.stop("SIGTERM", 10_000);
    return { code: 0, output: "" };
  }

  private show(name: string, property: string): Reply {
    const unit = this.units.get(name);
    const running = unit?.state === "running";
    if (property === "MainPID") return { code: 0, output: String(running ? unit.child.pid : 0) };
    return { code: 0, output: unit?.state ?? "dead" };
  }

  private async run(args: string[]): Promise<Reply> {
    const property = (name: string) =>
      args
        .find((arg) => arg.startsWith(`--property=${name}=`))!
        .split("=")
        .slice(2)
        .join("=");
    const settings = this.settings(property("EnvironmentFile").slice(join(this.root, "etc/reef/").length));
    const command = args.slice(args.findIndex((arg) => !arg.startsWith("--")));
    const child = Bun.spawn([...dyingWithUs("KILL"), ...inFolder(property("WorkingDirectory"), command)], {
      env: { PATH: "/usr/bin:/bin", ...settings },
      stdout: "pipe",
      stderr: "pipe",
    });
    const texts = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    return { code: await child.exited, output: texts.join("").trimEnd() };
  }

  private settings(file: string): Record<string, string> {
    const lines = readFileSync(join(this.root, "etc/reef", file), "utf8").split("\n");
    return Object.fromEntries(
      lines.filter(Boolean).map((line) => [line.split("=")[0]!, line.slice(line.indexOf("=") + 1)]),
    );
  }
}

/** As systemd does: the working directory is what a link leads to now. */
function inFolder(folder: string, command: string[]): string[] {
  return ["sh", "-c", 'cd "$0" && exec "$@"', realpathSync(folder), ...command];
}
