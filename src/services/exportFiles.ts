import type { WorkspaceFile } from "../clients/workspaceFiles.ts";
import { findAssistant } from "../db/assistants.ts";
import {
  findAccount,
  FIRST,
  listAuditRows,
  listDailyUsageRows,
  listExportedAssistants,
  listLedgerRows,
  listMailRows,
  listMessageRows,
  listSessionRows,
  listSpokenMessages,
  type ExportedAssistant,
  type ListedRow,
  type Place,
  type SpokenMessage,
} from "../db/exportRows.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { createFileNames, toFileName } from "../lib/fileNames.ts";
import type { ZipEntry } from "../lib/zip.ts";
import { findFolder } from "./gatewayFolders.ts";
import { README } from "./exportReadme.ts";

type FileDeps = Pick<Deps, "sql" | "workspaces" | "config">;
type Chunks = AsyncGenerator<Buffer>;

/** What an export begins with, read before its first byte: whose it is, and how far each conversation goes. */
export interface ExportHead {
  userId: string;
  timezone: string;
  /** The person's own day, e.g. 2026-11-24. */
  today: string;
  account: object;
  assistants: ExportedAssistant[];
  /** By gateway. */
  folders: Map<string, Awaited<ReturnType<typeof findFolder>>>;
}

const ROWS = 500;
/** Messages have up to 32,000 characters: a page of them is at most some megabytes. */
const MESSAGES = 100;

/** Throws `unauthorized` for somebody whose rows are gone, `service_unavailable` where files can't be reached from here. */
export async function readExportHead(deps: FileDeps, userId: string): Promise<ExportHead> {
  const account = await findAccount(deps.sql, userId);
  if (!account) throw new AppError("unauthorized");
  const assistants = await listExportedAssistants(deps.sql, userId);
  const folders: ExportHead["folders"] = new Map();
  for (const id of new Set(assistants.map(({ gatewayId }) => gatewayId))) folders.set(id, await findFolder(deps, id));
  return { userId, ...account, assistants, folders };
}

/**
 * The files of an export, each read while it is packed. Throws when something that was there at the beginning is gone:
 * an export is whole or visibly broken.
 */
export async function* listExportFiles(deps: FileDeps, head: ExportHead): AsyncGenerator<ZipEntry> {
  const { userId } = head;
  const changedAt = new Date();
  const lists = {
    sessions: { sessions: listSessionRows },
    usage: { days: listDailyUsageRows, ledger: listLedgerRows },
    audit: { events: listAuditRows },
    mails: { waiting: listMailRows },
  };
  yield { path: "README.txt", changedAt, content: once(README) };
  yield { path: "account.json", changedAt, content: once(pretty(head.account)) };
  for (const [name, parts] of Object.entries(lists))
    yield { path: `${name}.json`, changedAt, content: renderLists(deps, userId, parts) };
  const names = createFileNames();
  for (const assistant of head.assistants) yield* listAssistantFiles(deps, head, assistant, changedAt, names);
}

async function* listAssistantFiles(
  deps: FileDeps,
  head: ExportHead,
  assistant: ExportedAssistant,
  changedAt: Date,
  names: ReturnType<typeof createFileNames>,
): AsyncGenerator<ZipEntry> {
  // The end of an id is its random part: two that were made in the same minute begin alike.
  const name = `${toFileName(assistant.displayName ?? "", "Assistant")}-${assistant.id.slice(-8)}`;
  const folder = `assistants/${name}`;
  yield { path: `${folder}/assistant.json`, changedAt, content: once(pretty(assistant.about)) };
  yield { path: `${folder}/conversation.md`, changedAt, content: renderTranscript(deps, head, assistant) };
  yield { path: `${folder}/conversation.jsonl`, changedAt, content: renderMessages(deps, head.userId, assistant) };
  const leftOut: string[] = [];
  for await (const file of head.folders.get(assistant.gatewayId)!.readFiles(assistant.agentId)) {
    const path = pathOf(names, `${folder}/workspace`, file);
    if (file.leftOut === undefined) yield { path, changedAt: file.changedAt, content: once(file.content) };
    else leftOut.push(`${path.slice(folder.length + 1)}: ${file.leftOut}\n`);
  }
  if (leftOut.length > 0) yield { path: `${folder}/left-out.txt`, changedAt, content: once(leftOut.join("")) };
  // Deleted meanwhile, its folder would be missing in silence.
  const still = await findAssistant(deps.sql, { userId: head.userId, id: assistant.id });
  if (!still) throw new Error("an assistant was deleted during the export");
}

function pathOf(names: ReturnType<typeof createFileNames>, root: string, file: WorkspaceFile): string {
  return file.path.reduce((folder, name) => `${folder}/${names.nameOf(folder, name)}`, root);
}

/** `{"name": [row, …], …}`, a row per line. */
async function* renderLists(
  deps: FileDeps,
  userId: string,
  parts: Record<
    string,
    (sql: Deps["sql"], page: { userId: string; after: Place; limit: number }) => Promise<ListedRow[]>
  >,
): Chunks {
  let head = "{\n";
  for (const [name, list] of Object.entries(parts)) {
    yield Buffer.from(`${head}"${name}": [`);
    let lead = "\n";
    for (let after = FIRST; ;) {
      const rows = await list(deps.sql, { userId, after, limit: ROWS });
      if (rows.length > 0) yield Buffer.from(lead + rows.map(({ json }) => json).join(",\n"));
      if (rows.length < ROWS) break;
      after = rows.at(-1)!;
      lead = ",\n";
    }
    head = "\n],\n";
  }
  yield Buffer.from("\n]\n}\n");
}

/** A message per line, as JSON. */
async function* renderMessages(deps: FileDeps, userId: string, assistant: ExportedAssistant): Chunks {
  const pages = readPages(assistant, (page) => listMessageRows(deps.sql, { userId, ...page }));
  for await (const rows of pages) yield Buffer.from(rows.map(({ json }) => `${json}\n`).join(""));
}

/** The conversation for a person to read: Markdown, days and times in their own time zone. */
async function* renderTranscript(deps: FileDeps, head: ExportHead, assistant: ExportedAssistant): Chunks {
  const { userId, timezone } = head;
  const name = (assistant.displayName ?? "Assistant").replace(/\s+/g, " ");
  yield Buffer.from(`# ${name}\n\nTimes are those of ${timezone}.\n`);
  let day = "";
  const pages = readPages(assistant, (page) => listSpokenMessages(deps.sql, { userId, timezone, ...page }));
  for await (const rows of pages) {
    let text = "";
    for (const message of rows) {
      if (message.day !== day) text += `\n## ${message.day}\n`;
      day = message.day;
      text += renderSpoken(message, name);
    }
    yield Buffer.from(text);
  }
}

const ENDINGS = { complete: "", stopped: " (stopped)", error: " (failed)" } as const;

// Quoted, line by line: nothing that was said can pass for somebody else's words.
function renderSpoken({ role, content, finish, time }: SpokenMessage, name: string): string {
  const speaker = role === "user" ? "You" : name;
  const quoted = content.split(/\r\n|\r|\n/).map((line) => (line === "" ? ">" : `> ${line}`));
  return `\n**${speaker}**, ${time}${ENDINGS[finish ?? "complete"]}\n\n${quoted.join("\n")}\n`;
}

/** A conversation as far as it went when the export began, in pages. Its numbers have no gaps: one is a fault. */
async function* readPages<T extends { seq: number }>(
  { id, lastSeq }: ExportedAssistant,
  read: (page: { assistantId: string; afterSeq: number; lastSeq: number; limit: number }) => Promise<T[]>,
): AsyncGenerator<T[]> {
  for (let afterSeq = 0; afterSeq < lastSeq;) {
    const rows = await read({ assistantId: id, afterSeq, lastSeq, limit: MESSAGES });
    const expected = Math.min(MESSAGES, lastSeq - afterSeq);
    if (rows.length !== expected || rows.at(-1)!.seq !== afterSeq + expected)
      throw new Error("messages went missing during the export");
    yield rows;
    afterSeq += expected;
  }
}

async function* once(content: string | Buffer): Chunks {
  if (content.length > 0) yield Buffer.from(content);
}

function pretty(value: object): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}
