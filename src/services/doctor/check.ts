import type { Host } from "../../clients/host.ts";
import type { Deps } from "../../deps.ts";
import type { Place } from "./place.ts";

export const GROUPS = [
  "versions",
  "settings",
  "network",
  "permissions",
  "database",
  "redis",
  "gateway",
  "chat",
  "voice",
  "billing",
  "jobs",
  "backup",
  "machine",
  "alarms",
] as const;
export type Group = (typeof GROUPS)[number];

/** What a check found, in one line without secrets; `fix` is one command or sentence. */
export interface Result {
  status: "ok" | "warn" | "bad" | "skipped";
  found: string;
  fix?: string;
  /** What `--fix` may do about it by itself: nothing is deleted, nothing that is at work is restarted. */
  repair?: Repair;
}
export interface Repair {
  does: string;
  apply(): Promise<unknown>;
}

/** Where checks look. `deps` null: the settings can't be read. */
export interface Scene {
  host: Host;
  place: Place;
  deps: Deps | null;
  options: { deep: boolean; alarm: boolean };
  /** What this release pins, by package. */
  pins: Record<string, string>;
  /** Where TLS is served, and a root of one's own, in tests. */
  tls: { address: string; port: number; ca?: string };
  /** Addresses that others may reach, and the ports that they must not. */
  outside: { addresses: string[]; innerPorts: readonly number[] };
}
export type SystemScene = Scene & { deps: Deps };

export interface Check {
  id: string;
  group: Group;
  /** Left out by `--quick`: it talks to a model, starts something or takes long. */
  isCostly: boolean;
  limitMs: number;
  run(scene: Scene): Promise<Result>;
}

const LIMIT_MS = 15_000;
type Traits = Partial<Pick<Check, "isCostly" | "limitMs">>;

export const ok = (found: string): Result => ({ status: "ok", found });
export const warn = (found: string, fix: string, repair?: Repair): Result => flaw("warn", found, fix, repair);
export const bad = (found: string, fix: string, repair?: Repair): Result => flaw("bad", found, fix, repair);
export const skip = (reason: string): Result => ({ status: "skipped", found: reason });

function flaw(status: "warn" | "bad", found: string, fix: string, repair?: Repair): Result {
  return { status, found, fix, ...(repair ? { repair } : {}) };
}

/** A check of the machine, which needs no settings. `name` is GROUP.WHAT. */
export function onHost(name: `${Group}.${string}`, run: Check["run"], traits: Traits = {}): Check {
  const group = name.split(".")[0] as Group;
  return { id: name, group, isCostly: false, limitMs: LIMIT_MS, ...traits, run };
}

/** A check of the system that the settings name. */
export function onSystem(
  name: `${Group}.${string}`,
  run: (scene: SystemScene) => Promise<Result>,
  traits: Traits = {},
): Check {
  const guarded = async (scene: Scene) =>
    scene.deps === null ? skip("the settings can't be read") : run({ ...scene, deps: scene.deps });
  return onHost(name, guarded, traits);
}

export const NO_SYSTEMD = "systemd does not run this machine";
export const NOT_INSTALLED = "not installed by scripts/setup.sh (no /opt/reef/current)";
export const NEEDS_ROOT = "only root can see it: sudo reef doctor";
