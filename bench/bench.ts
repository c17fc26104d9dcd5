import type { Child } from "../scripts/services/process.ts";

/** A whole number that a bench can be given as `--name value`. */
export interface Option {
  value: number;
  help: string;
}

/** What `run.ts` starts for every bench and stops after it. */
export interface Services {
  /** Everything of this run; gone at its end. */
  folder: string;
  databaseUrl: string;
  redisUrl: string;
  postgresPid: number;
  redisPid: number;
  say(line: string): void;
  /** Stops with the run, in reverse order. */
  onEnd(stop: () => unknown): void;
  /** The same for a process, with the function that stops it earlier; one that ends by itself fails the run. */
  keep(name: string, child: Child): () => Promise<void>;
}

/** One measurement that can be run by name. */
export interface Bench<O extends string = string> {
  summary: string;
  options: Record<O, Option>;
  /** Runs in a network namespace of its own, which is gone at its end: needs root. */
  ownNetwork?: true;
  run(services: Services, options: Record<O, number>): Promise<void>;
}

/** Types a bench by its own options. */
export function defineBench<O extends string>(bench: Bench<O>): Bench<O> {
  return bench;
}
