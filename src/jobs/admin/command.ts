import type { Deps } from "../../deps.ts";

/** Who sits at the machine, for the audit log. */
export interface Person {
  osUser: string;
}

/** What a command could not do, and the exit code: 1 not done, 2 it could not even be tried. */
export type Refusal = string | { code: 1 | 2; sentence: string };

/** Does it; null where it is done. */
export type Act = (deps: Deps, person: Person) => Promise<Refusal | null>;

/** One command of `npm run admin`, e.g. "token create". */
export interface Command {
  /** How it is called, after `npm run admin -- `, and what it does: a line of the overview. */
  usage: string;
  summary: string;
  /** What "--help" says after the usage. */
  help: string;
  /** Its options; each takes a value. */
  options?: readonly string[];
  /** Checks the words and options before anything is opened. Throws an Error whose message says what is wrong. */
  read(words: string[], options: Record<string, string | undefined>): Act;
}

/** Exactly these words, named as in the usage. Throws when one is missing or too many. */
export function takeWords(words: string[], ...names: string[]): string[] {
  const missing = names[words.length];
  if (missing !== undefined) throw new Error(`${missing} is missing.`);
  if (words.length > names.length) throw new Error("Too many arguments.");
  return words;
}

/** To the minute, in UTC. */
export function showTime(date: Date | null): string {
  return date?.toISOString().slice(0, 16).replace("T", " ") ?? "never";
}
