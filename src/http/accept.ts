/** What a client would rather have, of an `Accept` header: higher is better, 0 is not wanted. */
export interface Preference {
  /** E.g. `audio/mpeg`, `audio/*`; lower case, without parameters. */
  type: string;
  quality: number;
}

/** An `Accept` header in its parts, best first; what can't be read is left out. */
export function parseAccept(header: string): Preference[] {
  return header
    .slice(0, 1000)
    .split(",")
    .flatMap((part) => {
      const [type = "", ...parameters] = part.split(";").map((text) => text.trim().toLowerCase());
      if (!/^[\w.+*-]+\/[\w.+*-]+$/.test(type)) return [];
      const quality = Number(parameters.find((text) => text.startsWith("q="))?.slice(2) ?? 1);
      return [{ type, quality: Number.isNaN(quality) ? 0 : quality }];
    })
    .sort((a, b) => b.quality - a.quality);
}
