import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createHost, type HostOptions } from "../../src/clients/host.ts";

/** A machine that a test makes up: files below a folder of its own, and programs that say what they are told to. */
export interface StandIn {
  root: string;
  host: ReturnType<typeof createHost>;
  /** Puts a file on it. */
  write(path: string, text: string, mode?: number): void;
  folder(path: string, mode?: number): void;
  /** A program of that name: a shell script. Programs that were not made are not there. */
  program(name: string, script: string): void;
  remove(): void;
}

export function makeStandIn(options: Pick<HostOptions, "statfs"> = {}): StandIn {
  const root = mkdtempSync(join(tmpdir(), `reef-test-${process.pid}-`));
  const path = join(root, "programs");
  mkdirSync(path);
  const write = (name: string, text: string, mode = 0o644) => {
    mkdirSync(dirname(join(root, name)), { recursive: true });
    writeFileSync(join(root, name), text);
    chmodSync(join(root, name), mode);
  };
  return {
    root,
    host: createHost({ root, path, ...options }),
    write,
    folder(name, mode = 0o755) {
      mkdirSync(join(root, name), { recursive: true });
      chmodSync(join(root, name), mode);
    },
    program: (name, script) => write(join("programs", name), `#!/bin/sh\n${script}\n`, 0o755),
    remove: () => rmSync(root, { recursive: true, force: true }),
  };
}

/** A systemctl that knows one state for every unit. */
export function showUnit(properties: Record<string, string>): string {
  const lines = Object.entries({ LoadState: "loaded", ...properties }).map(([name, value]) => `${name}=${value}`);
  return `printf '%s\\n' ${lines.map((line) => `'${line}'`).join(" ")}`;
}
