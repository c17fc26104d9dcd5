import type { Stored } from "./goodClient.ts";
import type { Proxy } from "./proxy.ts";
import type { Victim } from "./servers.ts";
import type { Cell } from "./table.ts";
import type { World } from "./world.ts";

/** How long strikes last, in milliseconds. */
export interface Lengths {
  stop: number;
  cut: number;
  halfOpen: number;
}
export const FULL: Lengths = { stop: 10_000, cut: 3_000, halfOpen: 10_000 };
/** Just past the lease of a turn (one second), so that others have taken over meanwhile. */
export const SHORT: Lengths = { stop: 2_500, cut: 1_000, halfOpen: 2_500 };

export interface Strike {
  begin(): Promise<void> | void;
  lastsMs: number;
  end(): Promise<void> | void;
}

const SLOW = { latencyMs: 150, bytesPerSecond: 20_000 };

export function strikeOf(world: World, cell: Cell, lengths: Lengths): Strike {
  const victims: Partial<Record<Cell["part"], Victim>> = { ...world.servers, gateway: world.gateway };
  if (cell.part === "api") return strikeProcess(world, cell, lengths);
  if (cell.part === "client") return strikePhone(world, cell, lengths);
  const victim = victims[cell.part];
  if (!victim) return strikeNetwork(networkOf(world, cell), cell, lengths);
  if (cell.fault === "kill") return { begin: () => victim.kill(), lastsMs: 0, end: () => victim.start() };
  return { begin: () => victim.pause(), lastsMs: lengths.stop, end: () => victim.resume() };
}

/** Process A: it holds the turn, and device one's connection. */
function strikeProcess({ a }: World, cell: Cell, lengths: Lengths): Strike {
  if (cell.fault === "kill") return { begin: () => a.kill(), lastsMs: 0, end: () => a.start() };
  return { begin: () => a.pause(), lastsMs: lengths.stop, end: () => a.resume() };
}

/** Device one: killed it begins anew from what it had stored; stopped, it sleeps with its connection open. */
function strikePhone(world: World, cell: Cell, lengths: Lengths): Strike {
  const { phoneNetwork } = world;
  if (cell.fault === "kill") {
    let stored: Stored;
    return {
      begin() {
        stored = world.devices[0].store();
        world.devices[0].close();
        for (const proxy of phoneNetwork) proxy.cut();
      },
      lastsMs: 0,
      end: () => world.restartPhone(stored),
    };
  }
  return {
    begin() {
      world.devices[0].suspend();
      for (const proxy of phoneNetwork) proxy.freeze();
    },
    lastsMs: lengths.stop,
    end() {
      for (const proxy of phoneNetwork) proxy.pass();
      world.devices[0].resume();
    },
  };
}

function networkOf(world: World, cell: Cell): Proxy[] {
  const { networkOfA, phoneNetwork } = world;
  if (cell.part === "client-api") return phoneNetwork;
  return [networkOfA[cell.part.slice("api-".length) as keyof typeof networkOfA]];
}

function strikeNetwork(proxies: Proxy[], cell: Cell, lengths: Lengths): Strike {
  const each = (act: (proxy: Proxy) => void) => () => proxies.forEach(act);
  const end = each((proxy) => proxy.pass());
  if (cell.fault === "slow") return { begin: each((proxy) => proxy.slow(SLOW)), lastsMs: 0, end: () => undefined };
  if (cell.fault === "half-open") return { begin: each((proxy) => proxy.swallow()), lastsMs: lengths.halfOpen, end };
  const cut = each((proxy) => {
    proxy.refuse();
    proxy.cut();
  });
  return { begin: cut, lastsMs: lengths.cut, end };
}
