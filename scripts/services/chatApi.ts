import { StartError } from "./process.ts";

type Answer<T> = { status: number; body: T & { error?: string; code?: string } };
type Call = <T>(method: string, path: string, body?: object, token?: string) => Promise<Answer<T>>;

const ANSWER_MS = 15_000;

/** Calls the API at `base`. Throws a sentence when nobody answers, or somebody who is not Reef. */
export function createCall(base: string): Call {
  return async <T>(method: string, path: string, body?: object, token?: string) => {
    const headers = { "content-type": "application/json", ...(token ? { authorization: `Bearer ${token}` } : {}) };
    let response: Response;
    let text: string;
    try {
      const signal = AbortSignal.timeout(ANSWER_MS);
      response = await fetch(base + path, { method, headers, signal, ...(body ? { body: JSON.stringify(body) } : {}) });
      text = await response.text();
    } catch {
      throw new StartError(`Reef does not answer at ${base}: run npm start in another terminal.`);
    }
    try {
      return { status: response.status, body: JSON.parse(text) as Answer<T>["body"] };
    } catch {
      throw new StartError(`What answers at ${base} is not Reef: another program has this port.`);
    }
  };
}
