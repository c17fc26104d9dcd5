import { describe, expect, test } from "bun:test";
import { cutLong, SENTENCE_MAX_CHARACTERS, SentenceReader, type Piece } from "../../src/lib/sentences.ts";
import { renderSpokenText } from "../../src/lib/spokenText.ts";
import { createRandom } from "../simulation/random.ts";

const read = (chunks: string[]): Piece[] => {
  const reader = new SentenceReader();
  return [...chunks.flatMap((chunk) => reader.add(chunk)), ...reader.end()];
};
/** The pieces as they would be spoken: without code, blank lines and the white space between them. */
const sentences = (text: string) =>
  read([text])
    .filter((piece) => !piece.code && piece.text.trim() !== "")
    .map((piece) => piece.text.trim());
const words = (n: number) => Array.from({ length: n }, (_, i) => `word${i}`).join(" ");

const cases: [string, string, string[]][] = [
  ["sentences", "One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]],
  ["lines", "A heading\nA line without a stop\n\nMore.", ["A heading", "A line without a stop", "More."]],
  [
    "abbreviations",
    "Das sind z. B. 3.5 Meter, d. h. viel. Dr. Smith kam am 3. Mai. Ja.",
    ["Das sind z. B. 3.5 Meter, d. h. viel.", "Dr. Smith kam am 3. Mai.", "Ja."],
  ],
  [
    "lower case goes on",
    "It costs approx. (about 5 km. or so) a lot. Yes.",
    ["It costs approx. (about 5 km. or so) a lot.", "Yes."],
  ],
  ["numbers", "Pi is 3.14. In 2024. Version 1.2.3 came.", ["Pi is 3.14.", "In 2024.", "Version 1.2.3 came."]],
  ["an ellipsis", "Well... Then I saw it… Now what?", ["Well...", "Then I saw it… Now what?"]],
  ["quotes", 'He said "Stop." Then "Go!" (Really.) End.', ['He said "Stop."', 'Then "Go!"', "(Really.)", "End."]],
  ["CJK", "你好。今天天气很好！「是吗？」我说。", ["你好。", "今天天气很好！", "「是吗？」", "我说。"]],
  ["Hindi and Arabic", "नमस्ते। आप कैसे हैं? مرحبا؟ نعم.", ["नमस्ते।", "आप कैसे हैं?", "مرحبا؟", "نعم."]],
  ["emoji", "Hello! 😀 How are you? 🎉", ["Hello!", "😀 How are you? 🎉"]],
  [
    "bold that closes behind the stop",
    "**Note this.** And that. *Yes.* No.",
    ["**Note this.**", "And that.", "*Yes.*", "No."],
  ],
  ["bold over two sentences", "**One. Two.** Three.", ["**One. Two.**", "Three."]],
  [
    "a link that is not closed",
    "See [the Foo. Bar](http://a.example/b.html) page. Next.",
    ["See [the Foo. Bar](http://a.example/b.html) page.", "Next."],
  ],
  [
    "a link's title",
    '[A](http://a.example "One. Two.") three. Four.',
    ['[A](http://a.example "One. Two.") three.', "Four."],
  ],
  ["a code span", "Type `a. B` now. Then ``c. ` D`` too. End.", ["Type `a. B` now.", "Then ``c. ` D`` too.", "End."]],
  [
    "a bare address",
    "Look at https://a.example/x.html?a=B. Then go.",
    ["Look at https://a.example/x.html?a=B.", "Then go."],
  ],
  [
    "a list",
    "1. First one. More of it.\n2. Second\n   - inner *one*\n",
    ["1. First one.", "More of it.", "2. Second", "- inner *one*"],
  ],
  ["a fence", "Before:\n```js\nlet a = 1. \nB. C\n```\nAfter. End.", ["Before:", "After.", "End."]],
  ["a fence in a list", "- Do:\n    ~~~~\n    ~~~\n    x. Y\n    ~~~~\n- Done.", ["- Do:", "- Done."]],
  ["a fence that is never closed", "Before.\n```\nx. Y\n", ["Before."]],
  ["three backticks that are no fence", "```a. B``` is code. Next.\n", ["```a. B``` is code.", "Next."]],
  ["indented code", "Before.\n\n    code. Code\n    more\n\nAfter.", ["Before.", "After."]],
  ["an indented paragraph of a list", "- One.\n\n    Two. Three.\n", ["- One.", "Two.", "Three."]],
  [
    "a table",
    "See:\n| a. A | b |\n|---|---|\n| 1. | 2. X |\nAfter.",
    ["See:", "| a. A | b |\n|---|---|\n| 1. | 2. X |", "After."],
  ],
  ["a table at the end", "| a | b |\n|---|---|\n| 1 | 2 |", ["| a | b |\n|---|---|\n| 1 | 2 |"]],
  [
    "marks that are none",
    "2 * 3 is 6. 5*3 too. A snake_case_a. End.",
    ["2 * 3 is 6. 5*3 too.", "A snake_case_a.", "End."],
  ],
];

describe("a text in sentences", () => {
  test.each(cases)("%s", (_, text, expected) => {
    expect(sentences(text)).toEqual(expected);
    expect(
      read([text])
        .map((piece) => piece.text)
        .join(""),
    ).toBe(text);
    expect(read(text.split(""))).toEqual(read([text]));
  });
});

/** As models answer. */
const answers = [
  `# Packing list

Here's what I would **take along**. It's cold there (about -5 °C), so: *dress warmly!*

1. **Clothes**: a coat, e.g. the blue one. Gloves, too.
   - Socks, 3 pairs. Thick ones
   - A [good hat](https://shop.example/hats?id=3.5)
2. Documents: passport (see [the rules](https://gov.example/a_(b)). Don't forget!), ticket

> "Never travel without a book." Said somebody.

| Day | Plan |
|-----|------|
| Mon. | Museum. Then lunch |
| Tue. | Rest |

\`\`\`sh
echo "not. Spoken"
\`\`\`

Run \`npm start. Now\`, then wait... That's all — have fun! 🎉 See https://example.org/x?y=1. Bye`,
  "Klar! Das kostet ca. 3,50 € bzw. 4 $. Am 3. Mai um 10 Uhr, d. h. nächsten Montag.\n\n- Erstens. Zweitens.\n- Drittens\n\nGruß, Dr. Müller",
  "好的。我们开始吧！第一步：打开设置。\n第二步：选择「语言」。完成了吗？",
];
test.each(answers)("said piece by piece it is what the whole would be: %#", (answer) => {
  const spoken = read([answer]).flatMap((piece) => (piece.code ? [] : renderSpokenText(piece.text.trimStart())));
  const flat = (text: string) => text.replace(/\s+/g, " ").trim();
  expect(flat(spoken.join(" "))).toBe(flat(renderSpokenText(answer).replace(/(?<=[。！？])/g, " ")));
});

test("a sentence is whole as soon as something follows it, a line as soon as it ends", () => {
  const reader = new SentenceReader();
  expect(reader.add("First. ")).toEqual([]);
  expect(reader.add("S")).toEqual([{ text: "First. ", code: false }]);
  expect(reader.add("econd\n")).toEqual([{ text: "Second\n", code: false }]);
  expect(reader.add("```\nx\n```")).toEqual([]);
  expect(reader.add("\n")).toEqual([{ text: "```\nx\n```\n", code: true }]);
  expect(reader.add("|a|\n")).toEqual([]);
  expect(reader.add("b")).toEqual([{ text: "|a|\n", code: false }]);
  expect(reader.end()).toEqual([{ text: "b", code: false }]);
});

test("what never ends is cut: at a comma, between words, between characters", () => {
  const lengths = (text: string) => read([text]).map((piece) => piece.text.length);
  for (const text of [
    `${words(100)}, ${words(200)}`,
    words(400),
    "x".repeat(3000),
    "😀".repeat(1500),
    "[".repeat(2500),
  ]) {
    expect(Math.max(...lengths(text))).toBeLessThanOrEqual(SENTENCE_MAX_CHARACTERS);
    expect(read([text]).every((piece) => piece.text.isWellFormed())).toBe(true);
  }
  expect(read([`${words(100)}, ${words(200)}`])[0]!.text.at(-1)).toBe(",");
  expect(read([words(400)])[0]!.text.at(-1)).toBe(" ");
  const table = `| a |\n|---|\n${"| some words here |\n".repeat(200)}`;
  expect(read([table])).toEqual([{ text: table, code: false }]);
});

test("a long text is cut without losing a word", () => {
  const text = `${words(90)}. ${words(300)}\n${words(80)}, ${words(120)}`;
  const parts = cutLong(text);
  expect(parts.length).toBeGreaterThan(3);
  for (const part of parts) expect(part.length).toBeLessThanOrEqual(SENTENCE_MAX_CHARACTERS);
  expect(parts.join(" ").split(/\s+/)).toEqual(text.split(/\s+/));
  expect([cutLong("short"), cutLong("  ")]).toEqual([["short"], []]);
});

test("any text, however it is split: the same pieces, and joined they are the text", () => {
  const parts = [
    ...cases.flatMap(([, text]) => [text, ...text.split(/(?<= )/)]),
    ..."* ** _ ` `` ``` ~~~ | [ ]( ) . ! ? … 。 ， \" ' « » ( # > - 1. 2) a B ß 7 12. 😀 é z. Dr. e.g.".split(" "),
    "\n",
    "\n\n",
    "\r\n",
    " ",
    "    ",
    "\t",
    "\n```\n",
    "\n- ",
    "\n    ",
    "\n|",
    "$$",
    "\n$$\n",
    "\n\\[\n",
    "\\]\n",
    "\ud83d",
    words(30),
    words(160),
    "你好".repeat(70),
  ];
  for (let seed = 0; seed < 1500; seed++) {
    const random = createRandom("sentences", seed);
    const text = Array.from({ length: random.int(1, 40) }, () => random.pick(parts)).join(
      random.chance(0.5) ? " " : "",
    );
    const whole = read([text]);
    expect(whole.map((piece) => piece.text).join("")).toBe(text);
    expect(whole.every((piece) => piece.text !== "")).toBe(true);
    const chunks: string[] = [];
    for (let at = 0; at < text.length;) {
      const length = random.chance(0.3) ? 1 : random.int(1, 60);
      chunks.push(text.slice(at, at + length));
      at += length;
    }
    expect({ seed, pieces: read(chunks) }).toEqual({ seed, pieces: whole });
  }
});
