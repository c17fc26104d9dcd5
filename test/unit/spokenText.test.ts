import { describe, expect, test } from "bun:test";
import { renderSpokenText } from "../../src/lib/spokenText.ts";

const SPOKEN: Record<string, [string, string][]> = {
  "marks of Markdown": [
    ["This is **bold**, *it*, ~~gone~~ and `code`.", "This is bold, it, gone and code."],
    ["***a** b*", "a b."],
    ["\\*not em\\* \\# \\[x\\] 1\\. a\\\nb", "*not em* # [x] 1. a\nb."],
    ["Use ``a ` b``.", "Use a ` b."],
    ["# Title\n\ntext\nmore text", "Title.\ntext\nmore text."],
    ["Title\n=====\n\n## Steps:\n\nDo it!", "Title.\nSteps:\nDo it!"],
    ["a\n\n---\n\nb\n\n***\n\nc", "a.\nb.\nc."],
    ["> quoted\n> more\n>> nested", "quoted\nmore.\nnested."],
    ["> [!NOTE]\n> Watch out", "Watch out."],
    ["a\r\nb\r\n\r\nc", "a\nb.\nc."],
    ['He said "hi"\n\n(so)\n\n"Really?"', 'He said "hi".\n(so).\n"Really?"'],
  ],
  lists: [
    ["- one\n  - two\n    - three\n\n- four", "one.\ntwo.\nthree.\nfour."],
    ["1. a\n2. b\n   1. c\n   - d", "1. a.\n2. b.\n1. c.\nd."],
    ["3. three\n4. four", "3. three.\n4. four."],
    ["- one\n\n- two\n\n  more of two", "one.\ntwo.\nmore of two."],
    ["- [x] done\n- [ ] open", "done.\nopen."],
    ["- \n- a\n- ```\n  code\n  ```\n- b", "a.\nb."],
  ],
  tables: [
    ["| A | B |\n|---|:-:|\n| 1 | **2** |\n| x | |\n| `a\\|b` | [l](http://x.org) |", "A, B.\n1, 2.\nx.\na|b, l."],
    ["Before\n\n| A |\n|---|\n\nAfter", "Before.\nA.\nAfter."],
  ],
  links: [
    ['See [wiki](https://en.wikipedia.org/wiki/A_(b)) and [x](<u v> "t").', "See wiki and x."],
    ["See [the **page**][1] and [foo].\n\n[1]: https://example.org 'T'\n[foo]: http://x.org", "See the page and foo."],
    ["[1]: http://x", ""],
    [
      "Go to https://www.example.org/a/b?x=1, www.foo.com/bar, <https://y.org:80/z> or https://bücher.example/ä.",
      "Go to example.org, foo.com, y.org or bücher.example.",
    ],
    ["[https://a.org/x](https://b.org) [](https://c.org)", "a.org."],
    ["<mailto:me@x.org> <me@x.org> [call](tel:+123)", "me@x.org me@x.org call."],
    ["![a cat](cat.png) and [![the logo](i.png)](http://l.org)", "a cat and the logo."],
  ],
  HTML: [
    ["Hello <b>bold</b><br>next <!-- c -->end", "Hello bold\nnext end."],
    ["<div>block <i>text</i></div>\n<script>alert('x')</script>\n<!-- > -->", "block text."],
    ["<details><summary>Sum</summary>\n\ninner\n\n</details>", "Sum.\ninner."],
    ["<br>", ""],
    ["<div", "<div."],
    [
      "AT&amp;T &lt;3 5 &gt; 4&nbsp;x&#39;s &#x41; &hellip; &unknown; &#0; a < b & c",
      "AT&T <3 5 > 4 x's A … &unknown; a < b & c.",
    ],
  ],
  "formulas and footnotes": [
    ["The area is $\\pi r^2$, \\(a + b\\).", "The area is pi r^2, a + b."],
    ["So:\n\n$$\\int_0^1 x dx$$\n\n\\[\na = b \\\\[2pt] c\n\\]\n\nDone.", "So:\nDone."],
    ["It costs $5 and $10, or $5-$10.", "It costs $5 and $10, or $5-$10."],
    ["Text[^1] more[^note].\n\n[^1]: The note.", "Text more.\nThe note."],
  ],
  code: [
    ["Before\n```js\nlet a = 1;\n```\nafter", "Before.\nafter."],
    ["Before\n```js\nlet a = 1;\n", "Before."],
    ["~~~\n```\ncode\n~~~\nrest", "rest."],
    ["para\n\n    code line\n\nafter", "para.\nafter."],
    ["```\nx\n```", ""],
  ],
  "numbers and other scripts": [
    [
      "1,234.56 € or 3.14; 2*3*4 = 24; snake_case_name; 10 * 5 * 2; 50% #1 @me ½ ²",
      "1,234.56 € or 3.14; 2×3×4 = 24; snake_case_name; 10 * 5 * 2; 50% #1 @me ½ ².",
    ],
    ["H~2~O", "H2O."],
    ["42", "42."],
    ["日本語。**太字**です。\n\n# مرحبا؟\n\nשלום\n\nไทย ปี", "日本語。太字です。\nمرحبا؟\nשלום.\nไทย ปี."],
    ["हिन्दी क्‍ष।", "हिन्दी क्‍ष।"],
    ["می‌خواهم", "می‌خواهم."],
  ],
  "what nobody can say": [
    ["Hi 👋🏽, family 👨‍👩‍👧‍👦 flag 🇩🇪 key 1️⃣ #️⃣ ©️ ™ ❤️ ☎ ok 🎉", "Hi, family flag key 1 # ok."],
    ["🏴󠁧󠁢󠁥󠁮󠁧󠁿 go", "go."],
    ["**👍** **yes**", "yes."],
    ["👨‍👩‍👧‍👦 🇩🇪 ❤️ 👍🏿", ""],
    ["... --- !!! ?", ""],
    ["", ""],
    [" \n\t\n", ""],
    ["a\u0007b\u200b\u202ex\ufeffy\u00adz\ud800 \udc00end", "abxyz end."],
  ],
};

for (const [what, cases] of Object.entries(SPOKEN)) {
  describe(what, () => {
    for (const [markdown, spoken] of cases)
      test(JSON.stringify(markdown), () => expect(renderSpokenText(markdown)).toBe(spoken));
  });
}

describe("long texts", () => {
  test("all words of a long text, in order, and nothing of a code block longer than a piece", () => {
    const words = Array.from({ length: 5000 }, (_, n) => `word${n}`);
    const text = `${words.slice(0, 2500).join(" ")}\n\n\`\`\`\n${"secret\n\n".repeat(2000)}\`\`\`\n\n${words.slice(2500).join("\n\n")}`;
    expect([...renderSpokenText(text).matchAll(/\w+/g)].map(([word]) => word)).toEqual(words);
  });

  test("never longer than asked for, however much is added for the ear", () => {
    for (const line of ["|a|b\n|-|-\n|c|d\n\n", "#a\n", "a\n\n", "1. a\n", "- a, b. c\n", "x".repeat(50)]) {
      const text = line.repeat(4096).slice(0, 4096);
      const spoken = renderSpokenText(text, 4096);
      expect([line, spoken.length > 100, spoken.length <= 4096]).toEqual([line, true, true]);
    }
  });

  // How long each takes was measured by hand: up to 0.1 s for 4096 characters, in step with the length beyond.
  test("what is hard for a parser: it comes to an end, deep nesting included", () => {
    const marks = [
      "[",
      "*",
      "`",
      "_",
      "![",
      "[](",
      "<",
      "> ",
      "- ",
      ">",
      "1. ",
      "_a",
      "a*b",
      "[a](",
      "<!--",
      "\\[",
      "$",
      "[^",
    ];
    const more = [
      "**a *b ",
      "| a ",
      "`a",
      "  - a\n",
      "> - ",
      "*a_ ",
      "]",
      "&",
      "|\n|-",
      "``` ",
      "\\(",
      " ",
      "👍\u200d",
      '"',
      "<a ",
    ];
    for (const mark of [...marks, ...more]) {
      for (const length of [4096, 20_000]) {
        const spoken = renderSpokenText(`${mark.repeat(Math.ceil(length / mark.length)).slice(0, length)}\n\nend`);
        expect([mark, spoken === "" || spoken.length >= 4]).toEqual([mark, true]);
      }
    }
  });
});
