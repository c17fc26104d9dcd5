import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { readRunningFile } from "./services/runningFile.ts";

// Finds the system that runs here, then does what a timer does with the settings in its environment.
process.chdir(resolve(import.meta.dir, ".."));
if (existsSync(".env")) process.loadEnvFile(".env");
const running = readRunningFile(resolve(process.env["REEF_DATA_DIR"]?.trim() || ".data"));
for (const [name, value] of Object.entries(running)) process.env[name] ||= value;
await import("../src/jobs/doctor.ts");
