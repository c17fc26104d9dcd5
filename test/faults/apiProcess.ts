import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { freePort, spawnChild, type Child } from "../../scripts/services/process.ts";
import { until } from "../harness.ts";

const MAIN = resolve(import.meta.dir, "../../src/main.ts");

/** A real API process, always on the same port, that can be killed, stopped and started again. */
export class ApiProcess {
  readonly port = freePort();
  private child: Child | null = null;

  constructor(
    readonly name: string,
    private readonly env: Record<string, string>,
    private readonly folder: string,
  ) {}

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Starts it and waits until it answers; not for its gateway. */
  async start(): Promise<void> {
    const child = spawnChild({
      command: [process.execPath, "--no-env-file", MAIN],
      env: { PATH: process.env["PATH"] ?? "", ...this.env, PORT: String(this.port) },
      deathSignal: "KILL",
      logFile: this.logFile,
    });
    this.child = child;
    await until(`process ${this.name} answers`, () => !child.running() || this.answers("/livez"), 20_000);
    if (!child.running()) throw new Error(`process ${this.name} ended:\n${this.log()}`);
  }

  /** Whether it has its database and its gateway. */
  async ready(): Promise<void> {
    await until(`process ${this.name} is ready`, () => this.answers("/readyz"), 20_000);
  }

  async kill(): Promise<void> {
    this.child?.kill("SIGKILL");
    await this.child?.exited;
  }

  pause(): void {
    this.child?.kill("SIGSTOP");
  }

  resume(): void {
    this.child?.kill("SIGCONT");
  }

  /** The last lines it logged, for a failed cell. */
  log(lines = 25): string {
    if (!existsSync(this.logFile)) return "";
    return readFileSync(this.logFile, "utf8").trimEnd().split("\n").slice(-lines).join("\n");
  }

  private get logFile(): string {
    return join(this.folder, `api-${this.name}.log`);
  }

  private answers(path: string): Promise<boolean> {
    return fetch(this.url + path, { signal: AbortSignal.timeout(2_000) }).then(
      (answer) => answer.ok,
      () => false,
    );
  }
}
