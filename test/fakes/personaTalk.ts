import { type Knowledge, readKnowledge } from "./personaFacts.ts";
import {
  nameAssistant,
  namePerson,
  nextQuestion,
  noteRules,
  notesAfter,
  type Outcome,
  questions,
  recall,
  rememberFact,
  type Rule,
  setManner,
  setPurpose,
} from "./personaPhrases.ts";
import type { TurnView } from "./projectContext.ts";

const mostReadChars = 2000;
const scripted =
  "I'm a small scripted model, the one that answers while no real one is connected. I can remember what you tell me, " +
  "but not think about this. Set OPENAI_API_KEY and start again to give me a real mind; what I remember stays.";

function pick(choices: readonly string[], seed: string): string {
  let sum = 0;
  for (const char of seed) sum = (sum * 31 + (char.codePointAt(0) ?? 0)) % 9973;
  return choices[sum % choices.length] ?? "";
}

function greet(known: Knowledge): Outcome {
  const you = known.person === "" ? "" : `, ${known.person}`;
  if (known.name === "") {
    const hello = `Hello${you}! I'm brand new here: no name, no habits, no memories yet.`;
    return { say: `${hello} ${questions.name}`, asks: true, small: "talk" };
  }
  const question = nextQuestion(known);
  if (question === "")
    return { say: `Hello${you}! ${known.name} here. What's on your mind?`, asks: true, small: "talk" };
  return {
    say: `Hello${you}! I'm ${known.name}, and still quite new. ${question.replace(/^And what/, "What")}`,
    asks: true,
    small: "talk",
  };
}

function today(view: TurnView): Outcome | undefined {
  const date = /^\w{3} (\d{4}-\d{2}-\d{2}) (\d{2}:\d{2}) ?(.*)$/.exec(view.now);
  if (date === null) return undefined;
  const day = new Date(`${date[1]}T00:00:00Z`).toLocaleDateString("en-GB", { dateStyle: "full", timeZone: "UTC" });
  return { say: `It is ${day}, ${date[2]} ${date[3]}`.trim() + "." };
}

/** Small talk, after everything that touches the notes. */
const talkRules: Rule[] = [
  {
    pattern:
      /^(?:hi|hello|hey|hiya|howdy|yo|good (?:morning|afternoon|evening|day)|greetings|hallo|hola|bonjour|ciao|👋)\b[\s,!.]*(?:there|you|again|everyone|\p{Lu}\p{L}+)?[\s,!.🙂😀👋]*$/iu,
    act: (_rest, known) => greet(known),
  },
  { pattern: /^👋/u, act: (_rest, known) => greet(known) },
  {
    pattern: /^(?:(?:ok|okay|great|cool|nice),? )?(?:thanks?|thank you|thx|cheers|much appreciated)\b/i,
    act: (_rest, known, clause) => {
      const you = known.person === "" ? "" : `, ${known.person}`;
      return { say: pick([`You're welcome${you}.`, `Any time${you}.`, `Glad to${you}.`], clause), small: "talk" };
    },
  },
  {
    pattern:
      /^(?:and )?(?:how are you|what's up|how(?:'s| is) it going|how do you do|how do you feel|are you (?:ok|okay|well))/i,
    act: (_rest, _known, clause) => ({
      say: pick(["I'm well, thank you, and awake. And you?", "Good, thanks: rested and curious. How are you?"], clause),
      asks: true,
      small: "talk",
    }),
  },
  {
    pattern: /^(?:bye|goodbye|good night|see you|talk to you later|ciao)\b/i,
    act: (_rest, known) => ({
      say: `See you${known.person === "" ? "" : `, ${known.person}`}. I'll remember where we were.`,
    }),
  },
  {
    pattern: /(?:what can you do|how do you work|^help(?: me)?$|what are you (?:for|good at)|what do you do)/i,
    act: () => ({
      say:
        "We can talk, and I remember: tell me your name, give me one, say “remember that …”, ask “what do you know about me?” " +
        `or tell me to forget something. ${scripted}`,
    }),
  },
  {
    pattern:
      /(?:what|which) (?:\w+ )?model|are you (?:an? )?(?:ai|robot|bot|human|real|person|chatgpt|gpt|llm)|who made you|api key/i,
    act: () => ({ say: scripted }),
  },
  {
    pattern: /^(?:ok|okay|alright|fine|great|cool|nice|yes|yep|yeah|sure|perfect|good|👍|❤️)[\s!.]*$/iu,
    act: () => ({ say: "Good.", small: "ack" }),
  },
  { pattern: /^(?:no|nope|never ?mind|nothing)[\s!.]*$/i, act: () => ({ say: "All right. I'm here.", small: "ack" }) },
];

const statement =
  /^(?:(?:my|our) .{1,80}?(?: (?:is|are|was|were|has|have|had|lives?|works?|likes?|loves?|hates?)|'s) \S|i (?:live|work|(?:like|love|hate|prefer) (?!you\b|to talk)|own|play|study|speak|grew up|was born|moved|collect|can't stand|don't (?:like|eat|drink)|have (?!a question|a problem|no idea|to |been ))|(?:i'm|i am) (?:allergic|vegetarian|vegan|from|an? |married|single|learning|studying|retired|\d))/i;
const isQuestion = (clause: string) =>
  /\?\s*$/.test(clause) ||
  /^(?:and |so |do you (?:remember|know) )*(?:tell me about|what|who|where|when|which|how|why|do|does|did|am|is|are|was|have|has|can|could)\b/i.test(
    clause,
  );

function applyRules(rules: readonly Rule[], clause: string, known: Knowledge): Outcome | undefined {
  const bare = clause.replace(/^["“]|[.!"”\s]+$/g, "").trim();
  for (const { pattern, act } of rules) {
    const match = pattern.exec(bare);
    const outcome = match === null ? undefined : act((match[1] ?? "").trim(), known, bare);
    if (outcome !== undefined) return outcome;
  }
  return undefined;
}

function understandClause(clause: string, known: Knowledge, view: TurnView): Outcome | undefined {
  const noted = applyRules(noteRules, clause, known);
  if (noted !== undefined) return noted;
  const time =
    /^(?:and )?what(?:'s| is)? (?:the )?(?:time|date|day|day is it|time is it)|^what (?:day|date|time) is it/i.test(
      clause,
    );
  const talked = (time ? today(view) : undefined) ?? applyRules(talkRules, clause, known);
  if (talked !== undefined) return talked;
  if (isQuestion(clause)) return recall(clause, known);
  return statement.test(clause) ? rememberFact(clause, known) : undefined;
}

/** Cuts a message into the parts that are understood one by one. */
export function splitClauses(text: string): string[] {
  return text
    .slice(0, mostReadChars)
    .replaceAll("’", "'")
    .split(
      /(?<=[.!?])\s+|\n+|;\s+|,\s+(?=(?:what|who|how|where)\b)|,?\s+(?:and|but)\s+(?=(?:please |also )?(?:call (?:me|yourself)|remember|my|i|i'm|your name|forget|don't forget|what|who|how|where|do you)\b)|(?<=^(?:hi|hello|hey)),?\s+(?=(?:i|my|call|what|who|do|remember)\b)/i,
    )
    .map((clause) => clause.trim())
    .filter((clause) => clause !== "");
}

/** Takes words that fit no rule as the answer to the question that the assistant asked just before. */
function answerToQuestion(view: TurnView, known: Knowledge, ack: boolean): Outcome | undefined {
  const words = view.text.replaceAll("’", "'");
  const asked = (question: string) =>
    view.lastAnswer.toLowerCase().includes(question.replace("And ", "").toLowerCase());
  if (!Object.values(questions).some(asked) || words.endsWith("?") || words.length > 300) return undefined;
  if (/^(?:skip|later|not now|no|nope|never ?mind|nothing|i don't (?:know|care|mind)|dunno|whatever)\b/i.test(words)) {
    return { say: "That can wait. What can I do for you?", asks: true };
  }
  if (asked(questions.manner)) return setManner(words, known);
  if (asked(questions.purpose)) return setPurpose(words, known);
  // A request or a plain "yes" is not a name.
  if (
    ack ||
    /^(?:tell|write|give|show|make|explain|help|do|let|can|i|i'll|my|we|the|please|sing|say|read|find)\b/i.test(words)
  ) {
    return undefined;
  }
  if (asked(questions.person)) return namePerson(words.replace(/^(?:it's|it is|i'm|i am) /i, ""), known);
  const free = /^(?:you (?:choose|decide|pick)|up to you|surprise me|anything)/i.test(words);
  const given = words.replace(
    /^(?:how about|what about|maybe|let's (?:say|go with|try)|you're|you are|it's|hm+,?) /i,
    "",
  );
  return nameAssistant(free ? "Pip" : given, known);
}

function fallback(view: TurnView, known: Knowledge): Outcome {
  if (view.text === "" && view.images > 0) return { say: `I can't look at pictures yet. ${scripted}` };
  if (view.text === "") return { say: "I'm listening." };
  const close = known.facts.length > 0 && isQuestion(view.text) ? recall(view.text, known) : undefined;
  return (
    close ?? {
      say: `${pick(["I can't answer that one.", "That is beyond me.", "I have to pass on that."], view.text)} ${scripted}`,
    }
  );
}

function combine(outcomes: readonly Outcome[], known: Knowledge): Outcome {
  const weighty = outcomes.filter((outcome) => outcome.small === undefined);
  const spoken = weighty.length > 0 ? weighty : outcomes.slice(-1);
  const only = spoken[0];
  if (only !== undefined && spoken.length === 1) return only;
  const ends = Object.values(questions).map((question) => ` ${question}`);
  const said = spoken.map(({ say }) =>
    ends.reduce((rest, end) => (rest.endsWith(end) ? rest.slice(0, -end.length) : rest), say),
  );
  const question = spoken.some((outcome) => outcome.asks) ? nextQuestion(known) : "";
  return {
    say: `${[...new Set(said)].join(" ")} ${question}`.trim(),
    changes: spoken.flatMap((outcome) => outcome.changes ?? []),
    asks: question !== "",
  };
}

/** What to write down and to say about what the person wrote; the same view always gives the same outcome. */
export function understand(view: TurnView): Outcome {
  const start = readKnowledge(view.notes);
  const outcomes: Outcome[] = [];
  let notes = view.notes;
  const clauses = splitClauses(view.text);
  for (const [at, clause] of clauses.entries()) {
    const outcome = understandClause(clause, readKnowledge(notes), view);
    if (at === 0 && (outcome === undefined || outcome.small === "ack")) {
      const answered = answerToQuestion(view, start, outcome !== undefined);
      if (answered !== undefined) return answered;
    }
    if (outcome === undefined) continue;
    outcomes.push(outcome);
    notes = notesAfter(notes, outcome.changes ?? []);
  }
  return outcomes.length === 0 ? fallback(view, start) : combine(outcomes, readKnowledge(notes));
}
