import type { Host } from "../clients/host.ts";

/** What systemd says of a unit: the properties asked for, by name; null where there is no systemd or no such unit. */
export async function readUnit<P extends string>(
  host: Host,
  unit: string,
  names: P[],
): Promise<Record<P, string> | null> {
  const shown = await host.run(["systemctl", "show", unit, `--property=LoadState,${names.join(",")}`]);
  if (shown === null || shown.code !== 0) return null;
  const values = new Map(shown.out.split("\n").map((line) => line.split(/=(.*)/s).slice(0, 2) as [string, string]));
  if (values.get("LoadState") !== "loaded") return null;
  return Object.fromEntries(names.map((name) => [name, values.get(name) ?? ""])) as Record<P, string>;
}
