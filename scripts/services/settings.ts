import { join, resolve } from "node:path";
import { ConfigError, loadConfig } from "../../src/config.ts";
import { StartError } from "./process.ts";

export const root = resolve(import.meta.dir, "../..");

/** Reads `.env` into the environment; what is set already wins. Bun itself does not: tests and jobs must not see the file. */
export function loadEnvFile(file: string = join(root, ".env")): void {
  try {
    process.loadEnvFile(file);
  } catch (error) {
    const code = error instanceof Error && "code" in error ? String(error.code) : String(error);
    if (code !== "ENOENT")
      throw new StartError(
        `${file} can't be read (${code}): it must be a file that you may read, or not be there.`,
        78,
      );
  }
}

/** A variable of the environment; blank counts as absent. */
export function env(name: string): string | undefined {
  return process.env[name]?.trim() || undefined;
}

/** Where everything is kept: a relative path means the same folder wherever a command is run. */
export function dataDir(): string {
  return resolve(root, env("REEF_DATA_DIR") ?? ".data");
}

/** The address that reaches a server on this host and port; one that listens everywhere is reached on the loopback. */
export function urlOf(host: string, port: number | string): string {
  const reached = host === "0.0.0.0" || host === "::" ? "127.0.0.1" : host;
  return `http://${reached.includes(":") ? `[${reached}]` : reached}:${port}`;
}

// What `npm start` provides where the environment does not. With a gateway of one's own all of it is one's own.
const PROVIDED = {
  DATABASE_URL: "postgres://127.0.0.1/reef",
  REDIS_URL: "redis://127.0.0.1",
  JWT_SECRET: "x".repeat(32),
};
const PROVIDED_GATEWAY = {
  OPENCLAW_GATEWAY_URL: "ws://127.0.0.1:1",
  OPENCLAW_GATEWAY_TOKEN: "x".repeat(16),
  OPENCLAW_GATEWAY_DIR: ".",
};

/** Checks all that the application will read before anything is started. Throws every fault at once. */
export function requireGoodSettings(): void {
  const given = Object.fromEntries(Object.entries(process.env).filter(([name]) => env(name) !== undefined));
  const provided = { ...PROVIDED, ...(given["OPENCLAW_GATEWAY_URL"] ? {} : PROVIDED_GATEWAY) };
  const faults: string[] = [];
  try {
    if (loadConfig({ ...provided, ...given }).PORT === 0)
      faults.push("PORT must not be 0: npm start needs a fixed one");
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    faults.push(...error.faults);
  }
  if (faults.length > 0) throw new StartError(new ConfigError(faults).message, 78);
}
