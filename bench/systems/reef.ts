import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { connectDatabase, type Sql } from "../../src/db/connect.ts";
import { migrate } from "../../src/db/migrate.ts";
import type { Services } from "../bench.ts";
import { startProgram, type Program } from "./program.ts";

export const GATEWAY_ID = "main";
export const GATEWAY_TOKEN = "bench-gateway-token";
export const JWT_SECRET = "a secret of the benches, long enough";

/** Where the gateway and Reef meet: openclaw.json, workspaces, state. */
export function gatewayFolder(services: Services): string {
  const dir = join(services.folder, "gateway");
  for (const name of ["state", "home", "workspaces"]) mkdirSync(join(dir, name), { recursive: true, mode: 0o700 });
  return dir;
}

/** Opens the run's database with Reef's tables in it. */
export async function openDatabase(services: Services): Promise<Sql> {
  const sql = connectDatabase(services.databaseUrl, { max: 4, name: "bench" });
  services.onEnd(() => sql.end({ timeout: 1 }));
  await migrate(sql);
  return sql;
}

/** What Reef is started with: a production's defaults but for what the load needs. */
export function reefEnvironment(services: Services, gateway: { url: string }): Record<string, string> {
  return {
    DATABASE_URL: services.databaseUrl,
    REDIS_URL: services.redisUrl,
    JWT_SECRET,
    GATEWAY_ID,
    OPENCLAW_GATEWAY_URL: gateway.url.replace(/^http/, "ws"),
    OPENCLAW_GATEWAY_TOKEN: GATEWAY_TOKEN,
    OPENCLAW_GATEWAY_DIR: gatewayFolder(services),
  };
}

/** Starts Reef as `npm start` does, from src/main.ts. `settings` are its environment variables. */
export function startReefProgram(
  services: Services,
  gateway: { url: string },
  settings: Record<string, string> = {},
): Promise<Program> {
  const env = { ...reefEnvironment(services, gateway), ...settings };
  return startProgram(services, { name: "reef", runtime: "bun", file: "src/main.ts", env });
}

/** The gateway for load: it answers as fast, or as slowly, as the message asks (see systems/loadGateway.ts). */
export function startLoadGateway(services: Services): Promise<Program> {
  const env = { GATEWAY_DIR: gatewayFolder(services), GATEWAY_TOKEN };
  return startProgram(services, { name: "load gateway", runtime: "node", file: "bench/systems/loadGateway.ts", env });
}
