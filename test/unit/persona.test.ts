import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { editBetween } from "../fakes/fileEdits.ts";
import type { ChatMessage, ChatRequest, Step, ToolOffer } from "../fakes/openai.ts";
import { personaAnswer } from "../fakes/persona.ts";
import { readNotes } from "../fakes/projectContext.ts";

const names = ["AGENTS", "SOUL", "IDENTITY", "USER", "MEMORY"] as const;
type Files = Record<string, string>;

function templateFiles(displayName = ""): Files {
  const files: Files = {};
  for (const name of names) {
    const template = readFileSync(new URL(`../../templates/workspace/${name}.md`, import.meta.url), "utf8");
    files[`${name}.md`] = template.replaceAll("{{display_name}}", displayName);
  }
  return files;
}

function systemPrompt(files: Files): string {
  const shown = names.filter((name) => files[`${name}.md`] !== undefined);
  const sections = shown.map((name) => `## /home/work/${name}.md\n${files[`${name}.md`]?.trimEnd()}`);
  return `You are a personal assistant.\n# Project Context\n${sections.join("\n")}\n<!-- /openclaw:attempt:STABLE -->\n## Temporal Context\nCurrent date: 2026-11-24`;
}

const tools: ToolOffer[] = ["edit", "read", "write"].map((name) => ({ type: "function", function: { name } }));

function countOf(text: string, part: string): number {
  return text.split(part).length - 1;
}

/** Does what the gateway's three tools do, with its answers. */
function runTool(files: Files, tool: string, args: Record<string, unknown>): string {
  const path = String(args.path);
  const content = files[path];
  const failed = (error: string) => JSON.stringify({ status: "error", tool, error }, null, 2);
  if (tool === "read") return content ?? `Optional file not found: /home/work/${path}.`;
  if (tool === "write") files[path] = String(args.content);
  if (tool === "write") return `Successfully wrote to ${path}`;
  let changed = content ?? "";
  for (const { oldText, newText } of args.edits as { oldText: string; newText: string }[]) {
    if (content === undefined || countOf(content, oldText) !== 1) return failed("Could not find the exact text");
    changed = changed.replace(oldText, () => newText);
  }
  files[path] = changed;
  return "Successfully replaced 1 block(s)";
}

async function stepsOf(request: ChatRequest, wordDelayMs = 0): Promise<Step[]> {
  const steps: Step[] = [];
  for await (const step of personaAnswer({ wordDelayMs })(request)) steps.push(step);
  return steps;
}

/** A person's conversation over files that outlive it; `prompt` may differ from the files, as a cut-off prompt does. */
function startSession(files: Files, options: { tools?: ToolOffer[]; prompt?: Files } = {}) {
  const history: ChatMessage[] = [];
  return async (words: string): Promise<string> => {
    history.push({ role: "user", content: `[Tue 2026-11-24 00:13 UTC] \u2060${words}` });
    const system: ChatMessage = { role: "system", content: systemPrompt(options.prompt ?? files) };
    for (let round = 0; round < 6; round++) {
      const request = { model: "m", messages: [system, ...history], tools: options.tools ?? tools };
      const steps = await stepsOf(request);
      const text = steps.map((step) => ("text" in step ? step.text : "")).join("");
      const calls = steps.flatMap((step) => ("tool" in step ? [step] : []));
      const toolCalls = calls.map((call, at) => ({
        id: `call${history.length}x${at}`,
        type: "function" as const,
        function: { name: call.tool, arguments: JSON.stringify(call.arguments) },
      }));
      history.push({ role: "assistant", content: text, ...(calls.length > 0 && { tool_calls: toolCalls }) });
      if (calls.length === 0) return text;
      for (const [at, call] of calls.entries()) {
        const result = runTool(files, call.tool, call.arguments);
        history.push({ role: "tool", tool_call_id: toolCalls[at]?.id ?? "", content: result });
      }
    }
    throw new Error("the persona never stopped calling tools");
  };
}

describe("a newborn", () => {
  test("greets, asks for its name, its manner, its purpose and the person's name, and writes each down", async () => {
    const files = templateFiles();
    const say = startSession(files);
    expect(await say("hello")).toContain("What would you like to call me?");
    expect(await say("Coral")).toContain("How would you like me to talk");
    expect(await say("warm and a bit funny")).toContain("what should I mostly be here for?");
    expect(await say("Help me plan my week and remember birthdays.")).toContain("what is your name?");
    expect(await say("Ada")).toBe("Nice to meet you, Ada.");
    expect(files["IDENTITY.md"]).toBe(
      "# Who I am\n\n- Name: Coral\n- Manner: warm and a bit funny\n- Purpose: Help me plan my week and remember birthdays\n",
    );
    expect(files["USER.md"]).toContain("- Name: Ada\n");
    expect(await startSession(files)("hi!")).toBe("Hello, Ada! Coral here. What's on your mind?");
  });

  test("asks for its name after any first words", async () => {
    expect(await startSession(templateFiles())("remember that I like tea")).toMatch(/I like|you like tea.*call me\?$/s);
  });

  test("bears the name set in the app, until it is told another", async () => {
    const files = templateFiles("Nemo");
    const say = startSession(files);
    expect(await say("hello")).toStartWith("Hello! I'm Nemo");
    expect(await say("what is your name?")).toStartWith("I'm Nemo");
    expect(await say("call yourself Coral please")).toStartWith("Coral it is");
    expect(await startSession(files)("who are you?")).toStartWith("I'm Coral");
  });

  test("takes no request and no greeting for its name", async () => {
    const files = templateFiles();
    const say = startSession(files);
    await say("hello");
    await say("tell me a joke");
    await say("hello");
    await say("yes");
    expect(files["IDENTITY.md"]).toContain("- Name:\n");
  });
});

describe("memory", () => {
  test("a fact told in one session is known in the next", async () => {
    const files = templateFiles("Coral");
    const say = startSession(files);
    expect(await say("My name is Ada. Remember that my cat is called Miso")).toContain("your cat is called Miso");
    await say("I live in Lisbon and my sister is a doctor");
    const later = startSession(files);
    expect(await later("what is my cat called?")).toBe("Your cat is called Miso.");
    expect(await later("What’s my name?")).toBe("You're Ada.");
    expect(await later("where do I live?")).toBe("You live in Lisbon.");
    expect(await later("do you remember my sister?")).toBe("Your sister is a doctor.");
    expect(await later("what do you remember?")).toBe(
      "This is what I know about you:\n\n- Your name is Ada.\n- Your cat is called Miso.\n- You live in Lisbon.\n- Your sister is a doctor.",
    );
    expect(await later("what do you know about me?")).toContain("Miso");
    expect(await later("what is my dog called?")).toStartWith("You haven't told me that yet");
  });

  test("everything that was in the file stays when something is added", async () => {
    const files = templateFiles("Coral");
    const odd = "# Memory\n\n- a\n- a\nfree text\n\n## Plans\n- a\n\n```\n- a\n```\n";
    files["MEMORY.md"] = odd;
    await startSession(files)("remember that my cat is called Miso");
    expect(files["MEMORY.md"]).toBe(`${odd.trimEnd()}\n- Your cat is called Miso.\n`);
  });

  test("when the prompt shows only part of the file, the file itself is read before it is changed", async () => {
    const files = templateFiles("Coral");
    files["MEMORY.md"] = "# Memory\n\n- First.\n- Second.\n";
    const prompt = { ...files, "MEMORY.md": "# Memory\n\n- First.\n[truncated]" };
    expect(await startSession(files, { prompt })("remember that I love figs")).toContain("you love figs");
    expect(files["MEMORY.md"]).toBe("# Memory\n\n- First.\n- Second.\n- You love figs.\n");
  });

  test("a missing note is made, one that only the prompt lacks is kept", async () => {
    const files = templateFiles("Coral");
    const { "MEMORY.md": _memory, ...prompt } = files;
    files["MEMORY.md"] = "- Kept.\n";
    await startSession(files, { prompt })("remember that I love figs");
    expect(files["MEMORY.md"]).toBe("- Kept.\n- You love figs.\n");
    delete files["MEMORY.md"];
    await startSession(files)("remember that I love figs");
    expect(files["MEMORY.md"]).toBe("# Memory\n- You love figs.\n");
  });

  test("a save that fails is admitted", async () => {
    const files = templateFiles("Coral");
    const prompt = { ...files, "MEMORY.md": "# Other" };
    files["MEMORY.md"] = '{\n  "status": "error"\n}';
    expect(await startSession(files, { prompt })("remember that I love figs")).toContain("could not write that down");
    const failing = startSession(files, { tools: [] });
    expect(await failing("remember that I love figs")).toContain("could not write that down");
    expect(await failing("what do I love?")).toBe("You love figs.");
  });

  test("forgets what it is asked to forget and nothing else", async () => {
    const files = templateFiles("Coral");
    const say = startSession(files);
    await say("remember that my cat is called Miso");
    await say("remember that my dog is called Rex");
    expect(await say("forget my cat")).toBe("Forgotten: “your cat is called Miso”.");
    expect(files["MEMORY.md"]).not.toContain("Miso");
    expect(files["MEMORY.md"]).toContain("- Your dog is called Rex.");
    expect(await say("forget my horse")).toStartWith("I have nothing noted");
    expect(await say("forget everything")).toContain("yes, forget everything");
    expect(files["MEMORY.md"]).toContain("Rex");
    await say("yes, forget everything");
    expect(files["MEMORY.md"]).toBe(templateFiles()["MEMORY.md"] ?? "");
    expect(await say("what do you remember?")).toStartWith("Nothing yet");
  });

  test("a second cat does not push the first one out", async () => {
    const files = templateFiles("Coral");
    const say = startSession(files);
    await say("remember that my cat is called Miso");
    expect(await say("remember that my cat is called Tiger")).toContain("I also have that your cat is called Miso");
    expect(await say("what is my cat called?")).toBe("Your cat is called Miso. Your cat is called Tiger.");
  });
});

describe("talk", () => {
  test.each([
    ["thanks!", /welcome|Any time|Glad/],
    ["how are you?", /\?$/],
    ["what day is it?", /^It is Tuesday.? 24 November 2026, 00:13 UTC\.$/],
    ["what is the meaning of life?", /OPENAI_API_KEY/],
    ["are you an AI?", /scripted model/],
    ["what can you do?", /I remember/],
    ["Ünïcödé 🙂 – что ты умеешь", /scripted model/],
    ["🦊", /scripted model/],
  ])("%s", async (words, expected) => {
    expect(await startSession(templateFiles("Coral"))(words)).toMatch(expected);
  });

  test.each([
    [
      "hey there, my name is Ada and remember that I hate rain",
      /^Nice to meet you, Ada\. I'll remember that you hate rain\./,
    ],
    ["My name is Ada, what's yours?", /Ada.*I'm Coral/],
    ["remember that tea is at four", /^I'll remember: Tea is at four\.$/],
    ["Can you remember that we moved to Rome?", /^I'll remember that you moved to Rome\.$/],
    ["from now on your name is Pearl", /^Pearl it is/],
    ["Write me a poem", /OPENAI_API_KEY/],
    ["I love you", /OPENAI_API_KEY/],
  ])("%s", async (words, expected) => {
    expect(await startSession(templateFiles("Coral"))(words)).toMatch(expected);
  });

  test("32,000 characters of anything are answered quickly", async () => {
    const say = startSession(templateFiles("Coral"));
    for (const unit of ["a", "remember that ", "my ", "and I ", "🙂", "what is my ", "\n", ". "]) {
      const started = performance.now();
      expect(await say(unit.repeat(Math.ceil(32_000 / unit.length)).slice(0, 32_000))).not.toBe("");
      expect(performance.now() - started).toBeLessThan(500);
    }
  });

  test("a normal answer streams word by word in less than 1.5 s", async () => {
    const messages: ChatMessage[] = [{ role: "user", content: "what can you do?" }];
    const steps = await stepsOf({ model: "m", messages }, 25);
    const waits = steps.flatMap((step) => ("delayMs" in step ? [step.delayMs] : []));
    expect(waits.length).toBeGreaterThan(20);
    expect(waits.reduce((sum, wait) => sum + wait, 0)).toBeLessThan(1500);
  });
});

test("edits replace one block that occurs once", () => {
  const before = "a\nb\na\nb";
  const edit = editBetween(before, "a\nb\na\nb\nc");
  expect(edit).toEqual({ oldText: "b\na\nb", newText: "b\na\nb\nc" });
  expect(editBetween("same", "same")).toBeUndefined();
});

test("the five templates are short, and only the two that we render carry placeholders", () => {
  const read = (name: string) => readFileSync(new URL(`../../templates/workspace/${name}.md`, import.meta.url), "utf8");
  expect(names.map(read).join("").length).toBeLessThan(3500);
  for (const name of ["USER", "MEMORY", "IDENTITY"]) expect(read(name)).not.toContain("{{");
  expect(Object.keys(readNotes(systemPrompt(templateFiles()))).sort()).toEqual([...names].sort());
});
