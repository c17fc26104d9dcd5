import { createHmac } from "node:crypto";
import { readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export interface GatewayAgent {
  name?: string;
  workspace?: string;
  model?: string;
}

type Issue = { path: string; message: string };
type Parsed = { value: Record<string, unknown>; entries: Record<string, GatewayAgent>; issues: Issue[] };

const rootKeys = new Set(
  (
    "gateway models agents tools memory session skills plugins cron update telemetry discovery browser commands messages logging " +
    "channels bindings env auth hooks ui wizard meta talk media audio diagnostics secrets mcp acp approvals"
  ).split(" "),
);
const entryKeys = new Set(
  "name workspace model agentDir identity tools skills sandbox subagents heartbeat memory groupChat params thinkingDefault".split(
    " ",
  ),
);
const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function parseConfig(text: string): Parsed {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return { value: {}, entries: {}, issues: [{ path: "", message: `JSON5 parse failed: ${String(error)}` }] };
  }
  if (!isObject(value))
    return { value: {}, entries: {}, issues: [{ path: "", message: "Invalid input: expected object" }] };
  const issues: Issue[] = Object.keys(value)
    .filter((key) => !rootKeys.has(key))
    .map((key) => ({ path: "", message: `Unrecognized key: "${key}"` }));
  const agents = isObject(value["agents"]) ? value["agents"] : {};
  const entries = agents["entries"] ?? {};
  if (!isObject(entries))
    return { value, entries: {}, issues: [...issues, { path: "agents.entries", message: "expected record" }] };
  for (const [id, entry] of Object.entries(entries)) issues.push(...entryIssues(id, entry));
  return { value, entries: entries as Record<string, GatewayAgent>, issues };
}

function entryIssues(id: string, entry: unknown): Issue[] {
  const path = `agents.entries.${id}`;
  if (!/^[a-z0-9][a-z0-9_-]{0,63}$/i.test(id)) return [{ path, message: "Invalid key in record" }];
  if (!isObject(entry)) return [{ path, message: "Invalid input: expected object" }];
  const unknown = Object.keys(entry).filter((key) => !entryKeys.has(key));
  const badText = ["name", "workspace"].filter((key) => key in entry && typeof entry[key] !== "string");
  return [
    ...unknown.map((key) => ({ path, message: `Unrecognized key: "${key}"` })),
    ...badText.map((key) => ({ path: `${path}.${key}`, message: "Invalid input: expected string" })),
  ];
}

/** The configuration file: watched, validated, applied; what is invalid is skipped and the old one serves on. */
export class GatewayConfig {
  readonly file: string;
  readonly rejected: string[] = [];
  agents: Record<string, GatewayAgent> = {};
  private applied = "";
  private seen: string;
  private changedAt: number | null = null;
  private readonly timer: ReturnType<typeof setInterval>;
  // The real gateway answers config.get from a cache that only an accepted file empties: it can hide an invalid file.
  private cached: Record<string, unknown> | null = null;

  /** Throws when the file is missing or invalid: the real gateway exits with code 78 then. */
  constructor(
    private readonly options: { dir: string; hashKey: string; reloadMs: number; onApplied: (hash: string) => void },
  ) {
    this.file = join(options.dir, "openclaw.json");
    this.seen = this.signature();
    const text = readFileSync(this.file, "utf8");
    const { entries, issues } = parseConfig(text);
    if (issues.length)
      throw new Error(`exit code 78: invalid config: ${issues.map((issue) => issue.message).join("; ")}`);
    this.accept(text, entries);
    this.timer = setInterval(() => this.poll(), Math.max(2, Math.min(10, options.reloadMs / 4)));
  }

  close(): void {
    clearInterval(this.timer);
  }

  hash(text: string): string {
    return `hmac-sha256:v1:${createHmac("sha256", this.options.hashKey).update(text).digest("base64url")}`;
  }

  appliedHash(): string {
    return this.hash(`resolved:${JSON.stringify(JSON.parse(this.applied))}`);
  }

  /** Writes the file without the agent (as `agents.delete` does, with a `.bak` beside it) and applies it at once. */
  dropAgent(agentId: string): void {
    writeFileSync(`${this.file}.bak`, this.applied);
    const { value, entries } = parseConfig(this.applied);
    delete entries[agentId];
    const text = `${JSON.stringify(value, null, 2)}\n`;
    writeFileSync(`${this.file}.tmp`, text);
    renameSync(`${this.file}.tmp`, this.file);
    this.seen = this.signature();
    this.changedAt = null;
    this.accept(text, entries);
    this.options.onApplied(this.hash(text));
  }

  get(): Record<string, unknown> {
    this.cached ??= this.read();
    return { ...this.cached, appliedConfigHash: this.appliedHash() };
  }

  private read(): Record<string, unknown> {
    let text: string | null = null;
    try {
      text = readFileSync(this.file, "utf8");
    } catch {
      // A missing file is reported below; the applied configuration serves on.
    }
    const { value, issues } = parseConfig(text ?? "{}");
    const views = { parsed: value, sourceConfig: value, resolved: value, runtimeConfig: value, config: value };
    return {
      path: this.file,
      includedPaths: [],
      includeProvenance: [],
      agentRosterIncludeOwned: false,
      bindingsIncludeOwned: false,
      exists: text !== null,
      raw: null,
      ...views,
      valid: issues.length === 0,
      hash: this.hash(text ?? ""),
      issues,
      warnings: [],
      legacyIssues: [],
      configRevisionHash: this.hash(`resolved:${JSON.stringify(value)}`),
    };
  }

  private poll(): void {
    const now = Date.now();
    const signature = this.signature();
    if (signature !== this.seen) {
      this.seen = signature;
      this.changedAt = now;
    }
    if (this.changedAt === null || now - this.changedAt < this.options.reloadMs) return;
    this.changedAt = null;
    this.reload();
  }

  private reload(): void {
    let text: string;
    try {
      text = readFileSync(this.file, "utf8");
    } catch {
      this.rejected.push("the file is missing");
      return;
    }
    if (text === this.applied) return;
    const { entries, issues } = parseConfig(text);
    if (issues.length) {
      this.rejected.push(issues.map((issue) => `${issue.path}: ${issue.message}`).join("; "));
      return;
    }
    this.accept(text, entries);
    this.options.onApplied(this.hash(text));
  }

  private accept(text: string, entries: Record<string, GatewayAgent>): void {
    this.applied = text;
    this.agents = Object.fromEntries(Object.entries(entries).map(([id, entry]) => [id.toLowerCase(), entry]));
    this.cached = null;
    writeFileSync(`${this.file}.last-good`, text);
  }

  private signature(): string {
    const stat = statSync(this.file, { throwIfNoEntry: false });
    return stat ? `${stat.ino}:${stat.mtimeMs}:${stat.size}` : "missing";
  }
}
