import { z } from "zod";
import type { Deps } from "../deps.ts";
import { newId } from "../lib/ids.ts";
import { withDeadline } from "../lib/retry.ts";

type SocketDeps = Pick<Deps, "redis" | "config" | "processId">;

/** A client whose socket nobody has refreshed for so many heartbeats is gone, and so is a process that refreshes none. */
export const SILENT_HEARTBEATS = 2.4;
export const MAX_SOCKETS_PER_USER = 10;
/** Nobody waits longer than this for a cache to say how many there are. */
const CLAIM_MS = 300;

const socketSchema = z.object({
  id: z.string(),
  userId: z.string(),
  agentId: z.string(),
  processId: z.string(),
  since: z.string(),
});
/** A chat socket that is open, in whatever process. */
export type OpenSocket = z.output<typeof socketSchema>;

/**
 * The chat sockets of all processes: a sorted set per user in Redis (`ws:connections:{userId}`), by the time each runs out
 * unless it is refreshed. Written from the sockets there are: a Redis that was emptied has them again a heartbeat later.
 */
export interface OpenSockets {
  /** Takes a place; null when the user has too many, wherever. Without Redis it is given: each process counts its own. */
  claim(userId: string, agentId: string): Promise<OpenSocket | null>;
  refresh(sockets: OpenSocket[]): void;
  release(socket: OpenSocket): void;
  /** Throws when Redis is away. */
  list(userId: string): Promise<OpenSocket[]>;
}

// Arguments: the socket, its lifetime in milliseconds, how many there may be (0: any number). Redis' own clock.
const PUT = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit = tonumber(ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if limit > 0 and redis.call('ZCARD', KEYS[1]) >= limit then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1`;

export function createOpenSockets(deps: SocketDeps): OpenSockets {
  const { redis, config } = deps;
  const lifetimeMs = Math.ceil(config.CHAT_PING_MS * SILENT_HEARTBEATS);
  return {
    async claim(userId, agentId) {
      const since = new Date().toISOString();
      const socket = { id: newId(), userId, agentId, processId: deps.processId, since };
      const put = redis.eval(PUT, 1, keyOf(userId), render(socket), lifetimeMs, MAX_SOCKETS_PER_USER);
      const answer = await withDeadline(put, CLAIM_MS, "counting sockets").catch(() => null);
      return answer === 0 ? null : socket;
    },
    refresh(sockets) {
      if (sockets.length === 0) return;
      const pipeline = redis.pipeline();
      for (const socket of sockets) pipeline.eval(PUT, 1, keyOf(socket.userId), render(socket), lifetimeMs, 0);
      pipeline.exec().catch(() => null);
    },
    release(socket) {
      redis.zrem(keyOf(socket.userId), render(socket)).catch(() => 0);
    },
    async list(userId) {
      const [seconds, microseconds] = await redis.time();
      const now = Number(seconds) * 1000 + Math.floor(Number(microseconds) / 1000);
      const members = await redis.zrangebyscore(keyOf(userId), now + 1, "+inf");
      return members.map((member) => socketSchema.parse(JSON.parse(member)));
    },
  };
}

function keyOf(userId: string): string {
  return `ws:connections:${userId}`;
}

/** The same text each time: it is what Redis knows the socket by. */
function render({ id, userId, agentId, processId, since }: OpenSocket): string {
  return JSON.stringify({ id, userId, agentId, processId, since });
}
