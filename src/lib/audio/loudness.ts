/** What is louder than this (dBFS, RMS over a window) is nobody's room: quiet speech is at -45, a quiet room below -60. */
const SPEECH_DB = -54;
/** So much of that (seconds) is a word; less may be a click. */
const WORD_SECONDS = 0.12;
/** Very quiet speech stands out from its own room instead: by this much, for so long, and above what is inaudible. */
const ABOVE_FLOOR_DB = 15;
const FAINT_SECONDS = 0.2;
const FAINTEST_DB = -66;
/** The room is what is heard in the quietest fifth. */
const FLOOR_SHARE = 0.2;
/** Digital silence. */
export const LOWEST_DB = -120;
const WINDOW_SECONDS = 0.02;

/** Listens to a recording from its beginning and tells whether somebody may be speaking in it. */
export interface SpeechDetector {
  /** Samples of each channel, -1 to 1; all calls at the same rate. */
  addSamples(channels: readonly Float32Array[], rate: number): void;
  /** A stretch of which only the level is known. */
  addLevel(db: number, seconds: number): void;
  /** Whether enough was heard to be sure: the rest doesn't matter. */
  isSure(): boolean;
  /** The answer after the last sample. */
  verdict(): boolean;
  /** How much was heard, in seconds. */
  readonly seconds: number;
}

/** A detector for one recording. */
export function createSpeechDetector(): SpeechDetector {
  /** Seconds at each level, from 0 dBFS down. */
  const levels = new Float64Array(1 - LOWEST_DB);
  const windows: Window[] = [];
  let seconds = 0;
  let loudSeconds = 0;

  const addLevel = (db: number, length: number) => {
    seconds += length;
    // A level that is no number comes of samples that are none: not silence, at any rate.
    if (!(db < SPEECH_DB)) loudSeconds += length;
    levels[Math.max(0, Math.min(-LOWEST_DB, Math.round(-db) || 0))]! += length;
  };
  return {
    addLevel,
    addSamples(channels, rate) {
      const size = Math.max(1, Math.round(rate * WINDOW_SECONDS));
      const length = channels[0]?.length ?? 0;
      for (let from = 0; from < length;) {
        const rest = Math.min(size - (windows[0]?.count ?? 0), length - from);
        channels.forEach((channel, index) => fill((windows[index] ??= emptyWindow()), channel, from, from + rest));
        from += rest;
        if (windows[0]!.count < size) continue;
        addLevel(Math.max(...windows.map(levelOf)), size / rate);
        windows.length = 0;
      }
    },
    isSure: () => loudSeconds >= WORD_SECONDS,
    verdict() {
      if (loudSeconds >= Math.min(WORD_SECONDS, seconds / 2)) return seconds > 0;
      const threshold = Math.max(FAINTEST_DB, floorOf(levels, seconds) + ABOVE_FLOOR_DB);
      const faintSeconds = levels.subarray(0, Math.max(0, -threshold)).reduce((sum, length) => sum + length, 0);
      return faintSeconds >= FAINT_SECONDS;
    },
    get seconds() {
      return seconds;
    },
  };
}

interface Window {
  count: number;
  sum: number;
  squares: number;
}

function emptyWindow(): Window {
  return { count: 0, sum: 0, squares: 0 };
}

function fill(window: Window, samples: Float32Array, from: number, to: number): void {
  let sum = 0;
  let squares = 0;
  for (let at = from; at < to; at++) {
    const sample = samples[at]!;
    sum += sample;
    squares += sample * sample;
  }
  window.sum += sum;
  window.squares += squares;
  window.count += to - from;
}

/** RMS without the constant part, which cheap microphones add. */
function levelOf({ count, sum, squares }: Window): number {
  const mean = sum / count;
  return powerToDb(squares / count - mean * mean);
}

/** dBFS of a mean square; a full-scale square wave is 0. */
export function powerToDb(power: number): number {
  return power > 1e-12 ? 10 * Math.log10(power) : power <= 1e-12 ? LOWEST_DB : Number.NaN;
}

function floorOf(levels: Float64Array, seconds: number): number {
  let sum = 0;
  for (let db = LOWEST_DB; db < 0; db++) {
    sum += levels[-db]!;
    if (sum >= seconds * FLOOR_SHARE) return db;
  }
  return 0;
}
