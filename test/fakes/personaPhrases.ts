import { withField, withLine, withoutLines } from "./fileEdits.ts";
import { asFact, asName, factsAbout, inSentence, type Knowledge, keywords, type Notes } from "./personaFacts.ts";
import type { NoteName } from "./projectContext.ts";

export type Change = { note: NoteName; apply: (content: string) => string };
/**
 * What to write down and what to say when that worked. `asks`: the words already end in a question; `small`: small talk
 * that gives way to anything else in the same message.
 */
export type Outcome = { say: string; changes?: Change[]; asks?: boolean; small?: "talk" | "ack" };
export type Rule = { pattern: RegExp; act: (rest: string, known: Knowledge, clause: string) => Outcome | undefined };

export const questions = {
  name: "What would you like to call me?",
  manner: "How would you like me to talk to you: warm, dry, brief, playful?",
  purpose: "And what should I mostly be here for?",
  person: "And what is your name?",
};

/** Notes as they start when a file is not there at all. */
export const emptyNotes: Notes = {
  IDENTITY: "# Who I am\n\n- Name:\n- Manner:\n- Purpose:",
  USER: "# The person\n\n- Name:",
  MEMORY: "# Memory",
};

/** The notes as they will be once the changes are written. */
export function notesAfter(notes: Notes, changes: readonly Change[]): Notes {
  const after = { ...notes };
  for (const { note, apply } of changes) after[note] = apply(after[note] ?? emptyNotes[note] ?? "");
  return after;
}

/** The next thing a young assistant wants to know, "" when it has been told everything. */
export function nextQuestion(known: Knowledge): string {
  if (known.name === "") return questions.name;
  if (known.manner === "") return questions.manner;
  if (known.purpose === "") return questions.purpose;
  return known.person === "" ? questions.person : "";
}

const field = (note: NoteName, name: string, value: string): Change => ({
  note,
  apply: (content) => withField(content, name, value),
});

function asking(say: string, known: Knowledge): Outcome {
  const question = nextQuestion(known);
  return { say: `${say} ${question}`.trim(), asks: question !== "" };
}

/** Takes a name for itself. */
export function nameAssistant(words: string, known: Knowledge): Outcome | undefined {
  const name = asName(words);
  if (name === undefined) return undefined;
  const said = known.name === "" ? `${name}. I like it, that's me from now on.` : `${name} it is, from now on.`;
  return { ...asking(said, { ...known, name }), changes: [field("IDENTITY", "Name", name)] };
}

/** Learns the person's name. */
export function namePerson(words: string, known: Knowledge): Outcome | undefined {
  const person = asName(words);
  if (person === undefined) return undefined;
  const said = known.person === person ? `I know, ${person}!` : `Nice to meet you, ${person}.`;
  return { ...asking(said, { ...known, person }), changes: [field("USER", "Name", person)] };
}

export function setManner(words: string, known: Knowledge): Outcome {
  const manner = words
    .replace(/\s+/g, " ")
    .replace(/[.!]+$/, "")
    .slice(0, 200);
  return {
    ...asking("All right, that's how I'll talk.", { ...known, manner }),
    changes: [field("IDENTITY", "Manner", manner)],
  };
}

export function setPurpose(words: string, known: Knowledge): Outcome {
  const purpose = words
    .replace(/\s+/g, " ")
    .replace(/[.!]+$/, "")
    .slice(0, 300);
  return {
    ...asking("Good, then that's what I'm for.", { ...known, purpose }),
    changes: [field("IDENTITY", "Purpose", purpose)],
  };
}

/** Writes a fact down and says so; a line that says something else about the same is named, never dropped. */
export function rememberFact(words: string, known: Knowledge): Outcome {
  const fact = asFact(words);
  if (known.facts.includes(fact)) return { say: `Yes, I have that: ${inSentence(fact)}.` };
  const subject = /^Your .+? (?:is|are) (?:called|named) /.exec(fact)?.[0];
  const other = subject === undefined ? undefined : known.facts.find((known) => known.startsWith(subject));
  const also =
    other === undefined ? "" : ` I also have that ${inSentence(other)}; tell me to forget it if that is over.`;
  const sentence = inSentence(fact);
  const that = sentence.startsWith("you") ? ` that ${sentence}` : `: ${sentence}`;
  const cannotRemind = fact.startsWith("You want to ") ? " I can't remind you by myself, so ask me about it." : "";
  return {
    say: `I'll remember${that}.${also}${cannotRemind}`,
    changes: [{ note: "MEMORY", apply: (content) => withLine(content, `- ${fact}`) }],
  };
}

function forget(words: string, known: Knowledge): Outcome {
  if (/^(it|that|this|about it)?$/i.test(words.trim())) return { say: "No problem." };
  if (/^my name$/i.test(words.trim())) {
    if (known.person === "") return { say: "I don't know your name." };
    return { say: "I've forgotten your name.", changes: [field("USER", "Name", "")] };
  }
  const { found, exact } = factsAbout(words, known.facts);
  if (found.length === 0 || !exact) return { say: "I have nothing noted about that, so there is nothing to forget." };
  const lines = found.map((fact) => `- ${fact}`);
  const apply = (content: string) => withoutLines(content, lines);
  const said = found.map((fact) => `“${inSentence(fact)}”`).join(" and ");
  return {
    say: `Forgotten: ${said}.`,
    changes: [
      { note: "MEMORY", apply },
      { note: "USER", apply },
    ],
  };
}

function forgetEverything(known: Knowledge, sure: boolean): Outcome {
  if (!sure) {
    return { say: "That can't be undone. If you mean it, say “yes, forget everything”.", asks: true };
  }
  const lines = known.facts.map((fact) => `- ${fact}`);
  const apply = (content: string) => withoutLines(content, lines);
  return {
    say: "Done, I've forgotten what I knew about you.",
    changes: [
      { note: "MEMORY", apply },
      { note: "USER", apply: (content) => apply(content).replace(/^(- Name:).*$/m, "$1") },
    ],
  };
}

function recallAll(known: Knowledge): Outcome {
  const facts = known.person === "" ? known.facts : [`Your name is ${known.person}.`, ...known.facts];
  if (facts.length === 0) return { say: "Nothing yet. Tell me something about yourself and I'll remember it." };
  return { say: `This is what I know about you:\n\n${facts.map((fact) => `- ${fact}`).join("\n")}` };
}

/** Answers a question about the person from the facts, undefined when it is about something else. */
export function recall(clause: string, known: Knowledge): Outcome | undefined {
  if (keywords(clause).length === 0) return undefined;
  const { found, exact } = factsAbout(clause, known.facts);
  if (exact) return { say: found.join(" ") };
  if (!/\b(my|i|me|our|we|mine)\b/i.test(clause)) return undefined;
  if (found.length > 0) return { say: `I'm not sure. The nearest thing I know: ${found.map(inSentence).join("; ")}.` };
  return { say: "You haven't told me that yet. Tell me and I'll remember it." };
}

function remember(rest: string, known: Knowledge): Outcome | undefined {
  const words = rest.replace(/^(?:[:,]\s*|that |this:? |down:? ?(?:that )?)+/i, "").trim();
  if (/^(me|it|this|that)?[?]?$/i.test(words)) return { say: "Tell me what, and I'll remember it.", asks: true };
  const named = /^(?:my name is|my name's|i am called|i'm called)\s+(.+)/i.exec(words)?.[1];
  const own = /^(?:your name is|your name's|you are called|you're called)\s+(.+)/i.exec(words)?.[1];
  return (named && namePerson(named, known)) || (own && nameAssistant(own, known)) || rememberFact(words, known);
}

const polite =
  "(?:please |from now on,? |ok |okay |so |and |also |now |then |well |(?:can|could|would|will) you |i want you to |i'd like you to )*";

/** What the persona does about its notes, in order: the first rule that fits a clause and has an answer wins. */
export const noteRules: Rule[] = [
  { pattern: /^(yes,? )?(?:please )?forget everything/i, act: (yes, known) => forgetEverything(known, yes !== "") },
  {
    pattern: new RegExp(`^${polite}(?:remember|note|don't forget|keep in mind|write down|memori[sz]e)\\b(.*)`, "i"),
    act: remember,
  },
  {
    pattern: new RegExp(
      `^${polite}(?:forget|delete|erase|remove)\\b ?(?:about |that |what i (?:said|told you) about |the fact that )*(.*)`,
      "i",
    ),
    act: forget,
  },
  {
    pattern: new RegExp(
      `^${polite}(?:call yourself|your (?:new )?name (?:is|'s|should be|will be|shall be)|your name's|you(?: are|'re| will be) called|` +
        "(?:i'll|i will|i want to|i'd like to|i would like to|let's|let me|i'm going to) (?:call|name) you|change your name to|" +
        "rename yourself(?: to)?|how about calling you) (.+)",
      "i",
    ),
    act: nameAssistant,
  },
  {
    pattern: new RegExp(
      `^${polite}(?:(?:hi|hello|hey|no)(?: there)?[,! ]+)?(?:my name is|my name's|i am called|i'm called|(?:people |you can |you may |just )?call me|the name is|the name's) (.+)`,
      "i",
    ),
    act: namePerson,
  },
  {
    pattern:
      /^(?:(?:hi|hello|hey)[,! ]+(?:there[,! ]+)?)?(?:I'm|I am|i'm|i am) ((?!German|French|English|American|Italian|Spanish|Indian|Chinese|Dutch|British|Irish)\p{Lu}[\p{L}'-]+(?: \p{Lu}[\p{L}'-]+)?)$/u,
    act: namePerson,
  },
  {
    pattern: new RegExp(`^${polite}(?:be|talk|speak|sound)(?: to me)? (?!to |with |about )(.{2,})`, "i"),
    act: setManner,
  },
  { pattern: /^your (?:purpose|job|task|role) is (?:to )?(.+)/i, act: setPurpose },
  {
    pattern:
      /^(?:so |and |hey |hi |please )*(?:what (?:else )?(?:do|can|have|did) you (?:remember|know|noted?|learn(?:ed)?|remembered)|tell me (?:what|everything) you (?:know|remember)|do you (?:remember|know) (?:anything about )?me\b|what (?:did|have) i (?:tell|told) you)(?! (?:about|of) (?!me\b|myself\b))()/i,
    act: (_rest, known) => recallAll(known),
  },
  {
    pattern: /^(?:and |so |do you (?:know|remember) )*(?:what(?:'s| is|s)? my name|who am i\b|who i am\b|my name\b)()/i,
    act: (_rest, known) =>
      known.person === ""
        ? { say: `I don't know yet. ${questions.person.replace("And what", "What")}`, asks: true }
        : { say: `You're ${known.person}.` },
  },
  {
    pattern:
      /^(?:and |so )*(?:what(?:'s| is|s)? your name|what (?:are you called|(?:should|do|can) i call you)|who are you|do you have a name|(?:and )?what(?:'s| is) yours)()/i,
    act: (_rest, known) =>
      known.name === ""
        ? { say: `I don't have a name yet. ${questions.name}`, asks: true }
        : {
            say: `I'm ${known.name}, your assistant.${known.purpose === "" ? "" : ` What I'm here for, as you put it: ${known.purpose}.`}`,
          },
  },
];
