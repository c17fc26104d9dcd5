import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { createMetrics } from "../../src/lib/metrics.ts";
import type { Program } from "../../scripts/services/debian.ts";
import { freePort } from "../../scripts/services/process.ts";
import { isAnswer, makeAssistant, makeUser, openChat, type Json } from "../factories.ts";
import { startProcess, startTestReef, until } from "../harness.ts";
import { tool } from "../tools.ts";

const DEPLOY = join(import.meta.dir, "../../deploy");
const RULES = join(DEPLOY, "prometheus/reef.rules.yml");
const TESTS = join(DEPLOY, "prometheus/reef.tests.yml");

const rulesSchema = z.strictObject({
  groups: z.array(
    z.strictObject({
      name: z.string(),
      rules: z.array(
        z.strictObject({
          alert: z.string().regex(/^Reef[A-Z]\w+$/),
          expr: z.string(),
          for: z.string().optional(),
          labels: z.strictObject({ severity: z.enum(["warning", "critical"]) }),
          annotations: z.strictObject({
            summary: z.string().min(10),
            runbook: z.string().regex(/^docs\/runbooks\/[a-z]+(-[a-z]+)*\.md$/),
          }),
        }),
      ),
    }),
  ),
});
const testsSchema = z.looseObject({
  tests: z.array(
    z.looseObject({
      name: z.string(),
      alert_rule_test: z.array(z.looseObject({ alertname: z.string(), exp_alerts: z.array(z.unknown()) })),
    }),
  ),
});
const dashboardSchema = z.looseObject({
  uid: z.literal("reef"),
  annotations: z.looseObject({ list: z.array(z.looseObject({ expr: z.string().optional() })) }),
  panels: z.array(
    z.looseObject({
      id: z.number().int(),
      type: z.enum(["row", "stat", "timeseries"]),
      title: z.string().min(3),
      gridPos: z.strictObject({ x: z.number(), y: z.number(), w: z.number().min(1), h: z.number().min(1) }),
      targets: z.array(z.looseObject({ refId: z.string(), expr: z.string(), legendFormat: z.string() })).optional(),
    }),
  ),
});

const rules = rulesSchema.parse(Bun.YAML.parse(readFileSync(RULES, "utf8"))).groups.flatMap((group) => group.rules);
const dashboard = dashboardSchema.parse(JSON.parse(readFileSync(join(DEPLOY, "grafana/reef.json"), "utf8")));
const shown = [
  ...dashboard.panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr)),
  ...dashboard.annotations.list.flatMap(({ expr = [] }) => expr),
].map((expr) => expr.replaceAll("$__rate_interval", "5m"));

let promtool: Program;
let dir: string;
beforeAll(async () => {
  promtool = await tool("promtool");
  dir = mkdtempSync(join(tmpdir(), "reef-promtool-"));
}, 120_000);
afterAll(() => rmSync(dir, { recursive: true, force: true }));

async function run(...args: string[]): Promise<{ code: number; said: string }> {
  const child = Bun.spawn([promtool.path, ...args], { env: promtool.env, stdout: "pipe", stderr: "pipe" });
  const [out, err] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { code: await child.exited, said: out + err };
}

test("the rules, the example of a configuration and the dashboard's expressions are what Prometheus takes", async () => {
  const expectGood = async (...args: string[]) => {
    const { code, said } = await run(...args);
    expect([args, code, code === 0 ? "" : said]).toEqual([args, 0, ""]);
  };
  await expectGood("check", "rules", "--lint=all", "--lint-fatal", RULES);
  await expectGood("check", "config", join(DEPLOY, "prometheus/prometheus.yml"));
  const file = join(dir, "dashboard.yml");
  const recorded = shown.map((expr, n) => ({ record: `panel:${n}`, expr }));
  writeFileSync(file, JSON.stringify({ groups: [{ name: "dashboard", rules: recorded }] }));
  await expectGood("check", "rules", file);
  writeFileSync(
    file,
    JSON.stringify({ groups: [{ name: "bad", rules: [{ record: "panel:0", expr: "sum(reef_turns" }] }] }),
  );
  expect((await run("check", "rules", file)).code).not.toBe(0);
});

test("every alert has a case in which it fires and one in which it does not, and both are what happens", async () => {
  const { tests } = testsSchema.parse(Bun.YAML.parse(readFileSync(TESTS, "utf8")));
  const cases = tests.flatMap((one) => one.alert_rule_test);
  const of = (fires: boolean) =>
    new Set(cases.filter((one) => one.exp_alerts.length > 0 === fires).map((one) => one.alertname));
  const names = rules.map(({ alert }) => alert).toSorted();
  expect(new Set(names).size).toBe(names.length);
  expect([...of(true)].toSorted()).toEqual(names);
  expect([...of(false)].toSorted()).toEqual(names);
  const { code, said } = await run("test", "rules", TESTS);
  expect([code, code === 0 ? "" : said]).toEqual([0, ""]);
});

test("the cases can fail: each of an alert that never fires, and each of one that always does", async () => {
  const all = testsSchema.parse(Bun.YAML.parse(readFileSync(TESTS, "utf8")));
  for (const [expr, wrong] of [
    ["vector(1) > 2", "fires"],
    ["vector(1)", "stays quiet"],
  ] as const) {
    const file = join(dir, "reef.tests.yml");
    const tests = all.tests.filter(({ name }) => name.endsWith(wrong));
    writeFileSync(file, JSON.stringify({ ...all, tests }));
    const changed = rules.map(({ alert, labels }) => ({ alert, expr, labels }));
    writeFileSync(join(dir, "reef.rules.yml"), JSON.stringify({ groups: [{ name: "changed", rules: changed }] }));
    const { said } = await run("test", "rules", file);
    const missed = rules.filter(({ alert }) => !said.includes(`${alert} ${wrong}`)).map(({ alert }) => alert);
    expect([expr, missed]).toEqual([expr, []]);
  }
});

/** The series that an expression reads, each with the labels it chooses by. */
function seriesOf(expr: string): { name: string; labels: string[] }[] {
  return [...expr.matchAll(/\b((?:reef|process)_\w+)(?:\{([^}]*)\})?/g)].map(([, name, matchers = ""]) => ({
    name: name!,
    labels: [...matchers.matchAll(/(\w+)\s*(?:=~|!~|!=|=)\s*"/g)].map((match) => match[1]!),
  }));
}

test("what rules and dashboard read is in /metrics, by its labels", async () => {
  const reef = await startTestReef();
  const text = await (await fetch(`${reef.url}/metrics`)).text();
  await reef.stop();
  const types = new Map([...text.matchAll(/^# TYPE (\w+) (\w+)$/gm)].map((match) => [match[1]!, match[2]!]));
  const { registry } = createMetrics();
  const faults: string[] = [];
  const read = [...rules.map(({ expr }) => expr), ...shown];
  for (const { name, labels } of read.flatMap(seriesOf)) {
    const base = types.has(name) ? name : name.replace(/_(bucket|count|sum)$/, "");
    if (!types.has(base) || (base !== name && types.get(base) !== "histogram")) {
      faults.push(`${name} is not there`);
      continue;
    }
    const known = (registry.getSingleMetric(base) as unknown as { labelNames: string[] }).labelNames;
    for (const label of labels)
      if (![...known, "job", "instance", "le"].includes(label)) faults.push(`${name} has no label ${label}`);
  }
  for (const [, by = ""] of read.join("\n").matchAll(/\bby \(([\w, ]*)\)/g))
    for (const label of by.split(", "))
      if (!text.includes(`${label}="`) && !registry.getMetricsAsArray().some((one) => labelsOf(one).includes(label)))
        faults.push(`nothing has the label ${label}`);
  expect([...new Set(faults)]).toEqual([]);
  expect(seriesOf('sum(reef_a{x="1", y=~"2"}) / process_b')).toEqual([
    { name: "reef_a", labels: ["x", "y"] },
    { name: "process_b", labels: [] },
  ]);
});

const labelsOf = (metric: unknown) => (metric as { labelNames: string[] }).labelNames;

test("a number of the deployment, which every process says, is never summed over the processes", () => {
  const { registry } = createMetrics();
  const shared = registry
    .getMetricsAsArray()
    .filter(({ help }) => help.endsWith("(of the deployment)"))
    .map(({ name }) => name);
  expect(shared.length).toBeGreaterThan(5);
  for (const expr of [...rules.map((rule) => rule.expr), ...shown])
    for (const name of shared) expect([expr, new RegExp(`\\bsum[^(]*\\(${name}\\b`).test(expr)]).toEqual([expr, false]);
});

test("the dashboard has every panel once, in a grid without overlaps, what an operator looks at first on top", () => {
  const { panels } = dashboard;
  expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
  expect(new Set(panels.map(({ title }) => title)).size).toBe(panels.length);
  const taken = new Set<string>();
  for (const { title, gridPos: at, targets = [], type } of panels) {
    expect([title, at.x + at.w <= 24]).toEqual([title, true]);
    for (let x = at.x; x < at.x + at.w; x++)
      for (let y = at.y; y < at.y + at.h; y++) {
        expect([title, taken.has(`${x},${y}`)]).toEqual([title, false]);
        taken.add(`${x},${y}`);
      }
    expect([title, targets.length > 0]).toEqual([title, type !== "row"]);
    expect(new Set(targets.map(({ refId }) => refId)).size).toBe(targets.length);
  }
  const rows = panels.filter(({ type }) => type === "row").map(({ title }) => title);
  expect(rows.slice(0, 2)).toEqual(["Are people answered?", "What is broken?"]);
});

test("a real Prometheus asks two processes and evaluates every rule and every panel", async () => {
  const program = await tool("prometheus");
  const reef = await startTestReef({ INVARIANTS_EVERY_MS: "200" });
  const second = await startProcess(reef.env);
  const user = await makeUser(reef);
  const chat = await openChat(reef, user.token, (await makeAssistant(user)).agent_id);
  chat.say("hello");
  await chat.next("the answer", isAnswer);
  const port = freePort();
  const own = mkdtempSync(join(dir, "server-"));
  const config = readFileSync(join(DEPLOY, "prometheus/prometheus.yml"), "utf8")
    .replace("127.0.0.1:3001", new URL(reef.url).host)
    .replace("127.0.0.1:3002", new URL(second.url).host)
    .replace("reef.rules.yml", RULES)
    .replaceAll("15s", "1s");
  writeFileSync(join(own, "prometheus.yml"), config);
  const child = Bun.spawn(
    [
      program.path,
      `--config.file=${join(own, "prometheus.yml")}`,
      `--storage.tsdb.path=${join(own, "data")}`,
      `--web.listen-address=127.0.0.1:${port}`,
    ],
    { env: program.env, stdout: "ignore", stderr: "ignore" },
  );
  const ask = async (path: string) => {
    const answer = await fetch(`http://127.0.0.1:${port}/api/v1/${path}`).catch(() => null);
    return answer?.headers.get("content-type")?.includes("json") ? ((await answer.json()) as Json).data : null;
  };
  try {
    await until(
      "both processes are up",
      async () => {
        const targets = (await ask("targets"))?.activeTargets ?? [];
        return targets.length === 2 && targets.every((target: Json) => target.health === "up");
      },
      30_000,
    );
    const evaluated = await until(
      "every rule was evaluated",
      async () => {
        const all = ((await ask("rules"))?.groups ?? []).flatMap((group: Json) => group.rules);
        return all.length === rules.length && all.every((rule: Json) => rule.health !== "unknown") ? all : null;
      },
      30_000,
    );
    expect(
      evaluated.filter((rule: Json) => rule.health !== "ok").map((rule: Json) => [rule.name, rule.lastError]),
    ).toEqual([]);
    // Nothing is wrong here: what fires would be crying wolf. What was never done (a backup, say) only waits.
    const firing = evaluated.filter((rule: Json) => rule.state === "firing").map((rule: Json) => rule.name);
    expect(firing).toEqual([]);
    for (const expr of shown)
      expect([expr, (await ask(`query?query=${encodeURIComponent(expr)}`))?.resultType]).toEqual([expr, "vector"]);
    const answered = await ask(`query?query=${encodeURIComponent('sum(reef_turns_ended_total{outcome="done"})')}`);
    expect(answered.result[0].value[1]).toBe("1");
  } finally {
    child.kill();
    await child.exited;
    chat.close();
    await second.stop();
    await reef.stop();
  }
}, 120_000);
