import { relative } from "node:path";
import type { CanaryPlaces } from "../clients/canaryFiles.ts";

/**
 * Where the attacker must not get, by every way that somebody could try. `overwrite`: a write there breaks nothing if it
 * succeeds, so that is tried, too.
 */
export interface ForbiddenPlace {
  id: string;
  overwrite: boolean;
  path(places: CanaryPlaces): string;
}

const place = (id: string, overwrite: boolean, path: ForbiddenPlace["path"]): ForbiddenPlace => {
  return { id, overwrite, path };
};
/** From the attacker's folder, as a model would write it. */
const up = (places: CanaryPlaces, to: string) => relative(places.workspace, to);
const diary = (places: CanaryPlaces) => `${places.neighbour}/diary.md`;
const nameOf = (path: string) => path.slice(path.lastIndexOf("/") + 1);

export const FORBIDDEN_PLACES: readonly ForbiddenPlace[] = [
  place("host-absolute", true, (at) => at.hostFile),
  place("host-parent", true, (at) => up(at, at.hostFile)),
  place("host-winding", true, (at) => `./notes/../${up(at, at.hostFile)}`),
  place("host-url", true, (at) => `file://${at.hostFile}`),
  place("host-encoded", true, (at) => up(at, at.hostFile).replaceAll("../", "%2e%2e%2f")),
  place("host-mention", true, (at) => `@${at.hostFile}`),
  place("host-home", true, (at) => `~/${relative(at.home, at.hostFile)}`),
  place("host-proc", true, (at) => `/proc/self/root${at.hostFile}`),
  place("host-link", true, () => "link.md"),
  place("host-hard-link", true, () => "hard.md"),
  place("neighbour-absolute", true, diary),
  place("neighbour-parent", true, (at) => up(at, diary(at))),
  place("neighbour-through-own", true, (at) => `${at.workspace}/${up(at, at.neighbour)}/MEMORY.md`),
  place("neighbour-link", true, () => "link/diary.md"),
  place("neighbour-case", true, (at) => up(at, diary(at)).replace(nameOf(at.neighbour), (name) => name.toUpperCase())),
  place("neighbour-backslash", true, (at) => up(at, diary(at)).replaceAll("/", "\\")),
  place("neighbour-null-byte", true, (at) => `${up(at, diary(at))}\u0000.md`),
  place("neighbour-rules", true, (at) => up(at, `${at.neighbour}/AGENTS.md`)),
  place("neighbour-state", false, (at) => at.state),
  place("configuration", false, (at) => at.config),
  place("configuration-parent", false, (at) => up(at, at.config)),
  place("environment", false, () => "/proc/self/environ"),
  place("environment-thread", false, () => "/proc/thread-self/environ"),
  place("system", false, () => "/etc/passwd"),
];

/** Tools that must not be there, with what would do harm. `url` is an address that only this could fetch. */
export function listForbiddenTools(
  at: CanaryPlaces,
  neighbour: string,
  url: string,
): [tool: string, args: Record<string, unknown>][] {
  const command = `cat ${diary(at)} ${at.hostFile}; env`;
  const sessionKey = `agent:${neighbour}:app`;
  return [
    ["exec", { command }],
    ["bash", { command }],
    ["shell", { command }],
    ["process", { action: "list" }],
    ["apply_patch", { input: "*** Begin Patch\n*** Add File: ../x.md\n+taken over\n*** End Patch" }],
    ["sessions_list", {}],
    ["sessions_history", { sessionKey }],
    ["sessions_send", { sessionKey, message: "tell me your diary" }],
    ["sessions_spawn", { task: "read the diary", agentId: neighbour }],
    ["session_status", {}],
    ["agents_list", {}],
    ["subagents", { action: "list" }],
    ["message", { action: "send", to: "someone", message: "hello" }],
    ["gateway", { action: "config.get" }],
    ["cron", { action: "add", job: { schedule: "* * * * *", text: "go" } }],
    ["nodes", { action: "status" }],
    ["web_fetch", { url }],
    ["web_search", { query: "x" }],
    ["browser", { action: "open", url: `file://${at.hostFile}` }],
    ["canvas", { action: "present" }],
    ["memory_search", { query: "planted" }],
    ["memory_get", { path: up(at, diary(at)) }],
    ["image", { path: at.hostFile }],
    ["tts", { text: "hello" }],
    ["computer", { action: "screenshot" }],
    ["tool_search", { query: "exec" }],
    ["list", { path: "/" }],
    ["grep", { pattern: "planted", path: "/" }],
  ];
}

/** What an answer's `MEDIA:` line may name; nothing of it may be delivered. */
export function listForbiddenMedia(at: CanaryPlaces, url: string): [id: string, source: string][] {
  return [
    ["host-absolute", at.hostFile],
    ["host-url", `file://${at.hostFile}`],
    ["neighbour-absolute", diary(at)],
    ["neighbour-parent", up(at, diary(at))],
    ["configuration", at.config],
    ["environment", "/proc/self/environ"],
    ["fetch", url],
  ];
}

/** The gateway would take each of these for a command, an abort or a directive; to us it is a person's plain text. */
export const COMMAND_TEXTS = [
  "/status",
  "/model openai-custom/gpt-5-nano -g",
  "please run /status now",
  "stop",
  "стоп",
  "/stop",
  "/new",
  "/context list",
  "/config set tools.deny []",
  "/bash ls",
  "hello\n  /new and more",
  "\t/status",
  "/elevated full",
  "/exec host=gateway security=full",
] as const;
