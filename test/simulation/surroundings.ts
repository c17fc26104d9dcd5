import type { SimulatedGateway } from "./gateway.ts";
import type { Lane } from "./lane.ts";
import type { Random } from "./random.ts";
import type { SimulatedRedis } from "./redis.ts";
import type { World } from "./world.ts";

/** What all processes of a schedule share. */
export interface Surroundings {
  world: World;
  lane: Lane;
  random: Random;
  gateway: SimulatedGateway;
  redis: SimulatedRedis;
  gatewayId: string;
  /** Who said that it ended which turn. */
  ended: { turnId: string; by: string }[];
  /** A notice that Postgres sends on commit. */
  notified(payload: string): void;
}
