import { describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { environmentSchema } from "../../src/config.ts";
import { GROUPS } from "../../src/services/doctor/check.ts";
import { CHECKS } from "../../src/services/doctor/list.ts";
import { INVARIANTS } from "../../src/services/invariants.ts";
import { tool } from "../tools.ts";

/*
 * A runbook is read at night by somebody who believes it. Whatever it names has to be there: commands with their options,
 * units, jobs, files, settings, alarms, alerts, metrics, checks, invariants. What is looked into is the tree itself.
 */

const root = resolve(import.meta.dir, "../..");
const folder = join(root, "docs/runbooks");
const read = (path: string) => (existsSync(join(root, path)) ? readFileSync(join(root, path), "utf8") : "");
const readAll = (path: string, ending: RegExp) =>
  existsSync(join(root, path))
    ? readdirSync(join(root, path), { recursive: true, encoding: "utf8" })
        .filter((name) => ending.test(name) && statSync(join(root, path, name)).isFile())
        .map((name) => ({ path: join(path, name), text: read(join(path, name)) }))
    : [];

const books = readdirSync(folder)
  .filter((name) => name.endsWith(".md"))
  .map((name) => ({ name, text: readFileSync(join(folder, name), "utf8") }));
const source = readAll("src", /\.(ts|sql)$/);
const sourceText = source.map(({ text }) => text).join("\n");
const rules = read("deploy/prometheus/reef.rules.yml");
const units = existsSync(join(root, "systemd")) ? readdirSync(join(root, "systemd")) : [];

/** Programs of the system; their options are not ours to check. */
const FOREIGN = /^(certbot|nginx|docker|df|du|openssl|restic|ufw|systemd-cgtop|alter)$/;
const camel = (name: string) => name.replaceAll(/-(.)/g, (_, letter: string) => letter.toUpperCase());

const helps = new Map<string, Promise<string>>();
/** What a program of ours says of itself. */
function helpOf(...command: [string, ...string[]]): Promise<string> {
  const key = command.join(" ");
  const [file, ...words] = command;
  if (!existsSync(join(root, file))) return Promise.resolve("");
  const start = file.endsWith(".ts")
    ? [process.execPath, "--no-env-file", join(root, file)]
    : ["bash", join(root, file)];
  const ask = async () => {
    const child = Bun.spawn([...start, ...words, "--help"], { stdout: "pipe", stderr: "ignore" });
    return new Response(child.stdout).text();
  };
  const asked = helps.get(key) ?? ask();
  helps.set(key, asked);
  return asked;
}

function hasUnit(name: string): boolean {
  const bare = name.replaceAll("'", "");
  if (bare === "reef-*") return true;
  const template = bare.replace(/@[^.]*/, "@");
  const full = /\.(service|timer|path|target|slice)$/.test(template) ? template : `${template}.service`;
  return units.includes(full);
}

type Judge = (words: string[]) => Promise<string[]>;
const fault = (isFault: boolean, sentence: string) => (isFault ? [sentence] : []);

async function missingOptions(help: string, whose: string, words: string[]): Promise<string[]> {
  const options = words.filter((word) => word.startsWith("--")).map((word) => word.split("=")[0]!);
  if (help === "") return [`there is no ${whose}`];
  return options
    .filter((option) => !new RegExp(`${option}\\b`).test(help))
    .map((option) => `${whose} has no ${option}`);
}

const judgeReef: Judge = async ([command = "", ...words]) => {
  if (!new RegExp(`^  reef ${command}\\b`, "m").test(await helpOf("scripts/reef"))) return [`reef has no ${command}`];
  const job = (name: string) => helpOf(`src/jobs/${camel(name)}.ts`);
  switch (command) {
    case "status":
      return [];
    case "logs":
      return fault(!hasUnit(`reef-${words[0]}`) && !hasUnit(`reef-${words[0]}@x`), `nothing logs as ${words[0]}`);
    case "run":
      return missingOptions(await job(words[0] ?? ""), `job ${words[0]}`, words);
    case "admin": {
      const named = words.filter((word) => /^[a-z-]+$/.test(word) && !word.startsWith("-")).slice(0, 2);
      const known = /^npm run admin -- (\S+ \S+)/.exec(await helpOf("src/jobs/admin.ts", ...(named as [string])))?.[1];
      return fault(known !== named.join(" "), `reef admin has no ${named.join(" ")}`);
    }
    case "restore":
    case "deploy":
      return missingOptions(await helpOf(`scripts/${command}.sh`), `scripts/${command}.sh`, words);
    case "restart":
      return missingOptions(await helpOf("scripts/deploy.sh"), "scripts/deploy.sh", ["--restart", ...words]);
    default: {
      const only = words[words.indexOf("--only") + 1];
      const strange = words.includes("--only")
        ? (only ?? "").split(",").filter((name) => !GROUPS.includes(name as never))
        : [];
      const missing = await missingOptions(await job(command), `src/jobs/${camel(command)}.ts`, words);
      return [...missing, ...strange.map((name) => `the doctor has no group ${name}`)];
    }
  }
};

async function judgeCommand(line: string): Promise<string[]> {
  const [program = "", ...words] = line.match(/"[^"]*"|'[^']*'|\S+/g) ?? [];
  if (program === "reef") return judgeReef(words);
  if (program === "systemctl" || program === "journalctl")
    return words.filter((word) => /^'?reef[-.]/.test(word) && !hasUnit(word)).map((word) => `there is no unit ${word}`);
  if (/^scripts\/\S+\.sh$/.test(program)) return missingOptions(await helpOf(program), program, words);
  return fault(!FOREIGN.test(program), `what is ${program}?`);
}

const commandsIn = (text: string) =>
  [...text.matchAll(/^```sh\n([\s\S]*?)^```/gm)]
    .flatMap(([, block = ""]) => block.split("\n"))
    .filter((line) => line.trim() !== "" && !line.startsWith("#"));
/** Words in `code` outside of blocks. */
const spansIn = (text: string) =>
  [...text.replaceAll(/^```[\s\S]*?^```/gm, "").matchAll(/`([^`]+)`/g)].map(([, span = ""]) => span);

const STARTS = /^(reef|systemctl|journalctl|scripts\/\S+\.sh|certbot|nginx|docker|openssl|restic|ufw)( |$)/;
/** Names in capitals that are no settings of ours. */
const NOT_SETTINGS = /^(GATEWAY_PORT)$/;
const OUR_SETTINGS = /^[A-Z][A-Z0-9]*(_[A-Z0-9]+)+$/;

function judgeName(span: string): string[] {
  if (/^(docs|scripts|src|systemd|deploy)\/[\w./@-]+$/.test(span))
    return fault(!existsSync(join(root, span)), `there is no ${span}`);
  if (OUR_SETTINGS.test(span) && !NOT_SETTINGS.test(span))
    return fault(!(span in environmentSchema.shape), `there is no setting ${span}`);
  const [group = ""] = span.split(".");
  if (/^[a-z]+\.[a-z0-9_]+$/.test(span) && GROUPS.includes(group as never))
    return fault(!CHECKS.some(({ id }) => id === span), `the doctor has no check ${span}`);
  return [];
}

/** Alarm keys stand in the line that says how it is seen. */
function judgeAlarms(text: string): string[] {
  const seen = /\*\*Seen as:\*\*([\s\S]*?)\n\n/.exec(text)?.[1] ?? "";
  const list = /alarms? ((?:`[^`]+`(?:, | and )?)+)/.exec(seen)?.[1] ?? "";
  return [...list.matchAll(/`([^`]+)`/g)].flatMap(([, key = ""]) => {
    const made = key.includes(":") && sourceText.includes(`\`${key.split(":")[0]}:\${`);
    return fault(!made && !sourceText.includes(`"${key}"`), `nothing raises the alarm ${key}`);
  });
}

/** What a runbook names that is not there, as sentences. */
async function faultsOf(text: string): Promise<string[]> {
  const spans = spansIn(text);
  const commands = [...commandsIn(text), ...spans.filter((span) => STARTS.test(span))];
  const judged = await Promise.all(
    commands.map(async (line) => (await judgeCommand(line)).map((one) => `${one} (${line})`)),
  );
  const links = [...text.matchAll(/\]\(([^)#]+)\)/g)].map(([, target = ""]) => target);
  const alerts = text.match(/\bReef[A-Z]\w+/g) ?? [];
  const metrics = text.match(/\breef_[a-z_]+\b/g) ?? [];
  return [
    ...judged.flat(),
    ...spans.flatMap(judgeName),
    ...judgeAlarms(text),
    ...links.filter((target) => !existsSync(join(folder, target))).map((target) => `the link ${target} leads nowhere`),
    ...alerts.filter((name) => !rules.includes(`alert: ${name}\n`)).map((name) => `there is no alert ${name}`),
    ...metrics.filter((name) => !sourceText.includes(`"${name}"`)).map((name) => `there is no metric ${name}`),
  ];
}

describe("every runbook", () => {
  for (const { name, text } of books) {
    test(`${name}: all that it names is there`, async () => expect(await faultsOf(text)).toEqual([]), 60_000);
    test(`${name}: its parts, in their order`, () => {
      const parts = [...text.matchAll(/^## (.+)$/gm)].map(([, title]) => title);
      expect(parts).toEqual(["Is it real", "What to do", "Over when", "Tell users"]);
      expect(text).toContain("**Seen as:**");
    });
  }
  test("invariants are called as they are", () => {
    const { text } = books.find(({ name }) => name === "invariant-violated.md")!;
    const named = spansIn(text).filter((span) => /^[a-z]+_[a-z_]+$/.test(span));
    expect(named.length).toBeGreaterThan(8);
    expect(named.filter((span) => !INVARIANTS.some(({ id }) => id === span))).toEqual([]);
  });
  test("its commands are shell, all of it", async () => {
    const shellcheck = await tool("shellcheck");
    const work = mkdtempSync(join(tmpdir(), "reef-runbooks-"));
    const file = join(work, "commands.sh");
    writeFileSync(file, `#!/bin/sh\n${books.flatMap(({ text }) => commandsIn(text)).join("\n")}\n`);
    const child = Bun.spawn([shellcheck.path, file], { env: shellcheck.env, stdout: "pipe" });
    expect(await new Response(child.stdout).text()).toBe("");
    expect(await child.exited).toBe(0);
    rmSync(work, { recursive: true });
  });
});

describe("whoever sends somebody to a runbook", () => {
  test("sends them to one that is there", () => {
    const texts = [
      ...source,
      ...readAll("systemd", /./),
      ...readAll("deploy", /./),
      ...readAll("scripts", /\.(sh|ts)$|reef$/),
      ...readAll("docs", /\.md$/),
    ];
    const named = texts.flatMap(({ path, text }) =>
      [...text.matchAll(/docs\/runbooks\/([\w-]+\.md)/g)].map(([, book = ""]) => ({ path, book })),
    );
    expect(named.length).toBeGreaterThan(10);
    expect(named.filter(({ book }) => !books.some(({ name }) => name === book))).toEqual([]);
  }, 120_000);
  test("is named there: every alert of Prometheus", () => {
    const alerts = rules.split(/^\s*- alert: /m).slice(1);
    const unnamed = alerts.filter((alert) => {
      const [name = ""] = alert.split("\n");
      const book = /runbook: docs\/runbooks\/([\w-]+\.md)/.exec(alert)?.[1];
      return !books.some((one) => one.name === book && one.text.includes(`\`${name}\``));
    });
    expect(unnamed.map((alert) => alert.split("\n")[0])).toEqual([]);
    expect(alerts.length).toBeGreaterThan(20);
  });
});

test("the check can fail", async () => {
  const bad: [string, string][] = [
    ["```sh\nreef explode\n```", "reef has no explode (reef explode)"],
    ["```sh\nreef doctor --only kitchen\n```", "the doctor has no group kitchen (reef doctor --only kitchen)"],
    ["```sh\nreef doctor --harder\n```", "src/jobs/doctor.ts has no --harder (reef doctor --harder)"],
    ["`reef admin billing explode`", "reef admin has no billing explode (reef admin billing explode)"],
    [
      "```sh\nsystemctl restart reef-kitchen@1\n```",
      "there is no unit reef-kitchen@1 (systemctl restart reef-kitchen@1)",
    ],
    ["```sh\nrm -rf /var\n```", "what is rm? (rm -rf /var)"],
    ["`src/jobs/kitchen.ts`", "there is no src/jobs/kitchen.ts"],
    ["`GATEWAY_KITCHEN`", "there is no setting GATEWAY_KITCHEN"],
    ["`gateway.kitchen`", "the doctor has no check gateway.kitchen"],
    ["[x](kitchen.md)", "the link kitchen.md leads nowhere"],
    ["`ReefKitchenBurns`", "there is no alert ReefKitchenBurns"],
    ["`reef_kitchen_total`", "there is no metric reef_kitchen_total"],
    ["**Seen as:** alarm `kitchen:main`.\n\n", "nothing raises the alarm kitchen:main"],
  ];
  for (const [text, sentence] of bad) expect(await faultsOf(text)).toEqual([sentence]);
});
