import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startRedis } from "../scripts/services/redis.ts";
import { Proxy } from "./faults/proxy.ts";

/** How often Redis was emptied, restarted, and out of reach. */
interface Trouble {
  emptied: number;
  restarted: number;
  removed: number;
}

/** A Redis of the test's own, at one address however often it is restarted. */
export interface OwnRedis {
  url: string;
  /** Empties it, takes it away and kills it in turn, until told to end; answers how often. */
  makeTrouble(): { end(): Promise<Trouble> };
  close(): Promise<void>;
}

const REMOVED_MS = 50;

export async function openRedis(): Promise<OwnRedis> {
  const folder = mkdtempSync(join(tmpdir(), "reef-quota-"));
  const launch = () => startRedis({ dataDir: folder, log: () => undefined, password: "quota-redis-password" });
  let server = await launch();
  const proxy = await Proxy.open(() => Number(new URL(server.url).port));
  const empty = async () => {
    const client = new Bun.RedisClient(server.url, { autoReconnect: false });
    await client.send("FLUSHALL", []);
    client.close();
  };
  const makeTrouble = () => {
    let over = false;
    const made: Trouble = { emptied: 0, restarted: 0, removed: 0 };
    const working = (async () => {
      while (!over) {
        for (let n = 0; n < 3; n++, made.emptied++) await empty();
        proxy.refuse();
        proxy.cut();
        await Bun.sleep(REMOVED_MS);
        proxy.pass();
        made.removed++;
        server.kill();
        await server.exited;
        server = await launch();
        made.restarted++;
      }
    })();
    const end = async () => {
      over = true;
      await working;
      return made;
    };
    return { end };
  };
  return {
    url: Object.assign(new URL(server.url), { port: String(proxy.port) }).toString(),
    makeTrouble,
    async close() {
      proxy.close();
      await server.stop();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
