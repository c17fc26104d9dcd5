import { factLines, fieldValue } from "./fileEdits.ts";
import type { NoteName } from "./projectContext.ts";

/** What the assistant knows at the start of a turn; an empty string means that it has not been told. */
export type Knowledge = {
  name: string;
  manner: string;
  purpose: string;
  person: string;
  /** Sentences said to the person, such as "Your cat is called Miso." */
  facts: string[];
};

export type Notes = Partial<Record<NoteName, string>>;

const mostFactChars = 400;

const flipped: Record<string, string> = {
  i: "you",
  "i'm": "you're",
  "i've": "you've",
  "i'll": "you'll",
  "i'd": "you'd",
  me: "you",
  my: "your",
  mine: "yours",
  myself: "yourself",
  we: "you",
  us: "you",
  our: "your",
  ours: "yours",
  "we're": "you're",
  your: "my",
  "you're": "I'm",
  yours: "mine",
  yourself: "myself",
  you: "me",
};

/** Turns a person's words into a sentence said to them: "my cat is Miso" becomes "Your cat is Miso." */
export function asFact(words: string): string {
  const flat = words
    .replace(/\s+/g, " ")
    .replace(/[?\s]+$/, "")
    .trim()
    .slice(0, mostFactChars);
  const turned = flat
    .replace(/\bI am\b/gi, "you are")
    .replace(/\bI was\b/gi, "you were")
    .split(/\b(you are|you were)\b/)
    .map((part, at) =>
      at % 2 === 1 ? part : part.replace(/[a-z]+(?:'[a-z]+)?/gi, (w) => flipped[w.toLowerCase()] ?? w),
    )
    .join("");
  const sentence = turned.replace(/^to (?=\w)/i, "you want to ");
  const first = String.fromCodePoint(sentence.codePointAt(0) ?? 32);
  const whole = first.toUpperCase() + sentence.slice(first.length);
  return /[.!?…]$/.test(whole) ? whole : `${whole}.`;
}

/** A fact as the middle of a sentence: "your cat is called Miso". */
export function inSentence(fact: string): string {
  const lowered = /^(Your|You|You're|You've|The|To|A|An)\b/.test(fact)
    ? fact.charAt(0).toLowerCase() + fact.slice(1)
    : fact;
  return lowered.replace(/\.$/, "");
}

const emptyWords = new Set(
  (
    "a an and are as at am be been but by can could did do does for from had has have he her him his how i if in is it its " +
    "me mine my name named call called of on or our please remember she so tell that the their them there they this to " +
    "was we were what whats when where which who why will with would you your yours know about about again any ever " +
    "still fact noted yes no not much many s re ve m d ll t"
  ).split(" "),
);

/** The words of a text that say what it is about, in a simple singular form. */
export function keywords(text: string): string[] {
  const words = text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  const telling = words.filter((word) => !emptyWords.has(word));
  return [...new Set(telling.map((word) => word.replace("favorite", "favourite").replace(/(?<=\w{3})s$/, "")))];
}

/** The facts that share the most telling words with a text, and whether they share all of them. */
export function factsAbout(text: string, facts: readonly string[]): { found: string[]; exact: boolean } {
  const wanted = keywords(text);
  const scored = facts.map((fact) => {
    const has = keywords(fact);
    return { fact, score: wanted.filter((word) => has.includes(word)).length };
  });
  const best = Math.max(0, ...scored.map(({ score }) => score));
  if (best === 0) return { found: [], exact: false };
  const found = scored.filter(({ score }) => score === best).map(({ fact }) => fact);
  return { found, exact: best === wanted.length };
}

/** A person's or an assistant's name out of free words, undefined when they hardly are one. */
export function asName(words: string): string | undefined {
  const bare = words
    .replace(/\s+/g, " ")
    .replace(/^["“'‘]|[.!?,;:"”'’\s]+$/g, "")
    .replace(/[,]? (please|from now on|then|ok|okay|if you like|for now|thanks|thank you)$/i, "")
    .replace(/["”'’.!?,;:\s]+$/, "")
    .trim();
  const longest = 40;
  if (
    bare === "" ||
    bare.length > longest ||
    bare.split(" ").length > 4 ||
    !/[\p{L}\p{N}\p{Emoji_Presentation}]/u.test(bare)
  ) {
    return undefined;
  }
  const first = String.fromCodePoint(bare.codePointAt(0) ?? 32);
  return first.toUpperCase() + bare.slice(first.length);
}

/** What the assistant knows from its notes; a name given in conversation goes before the one set in the app. */
export function readKnowledge(notes: Notes): Knowledge {
  const { AGENTS = "", IDENTITY = "", USER = "", MEMORY = "" } = notes;
  const appName = /name in the app: "(.*?)"\./.exec(AGENTS)?.[1]?.trim() ?? "";
  return {
    name: fieldValue(IDENTITY, "Name") || (appName.startsWith("{{") ? "" : appName),
    manner: fieldValue(IDENTITY, "Manner"),
    purpose: fieldValue(IDENTITY, "Purpose"),
    person: fieldValue(USER, "Name"),
    facts: [...factLines(MEMORY), ...factLines(USER)],
  };
}
