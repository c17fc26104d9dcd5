import {
  closeSync,
  constants,
  existsSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import type { FakeRow } from "./gatewayTypes.ts";

export interface StoredSession {
  key: string;
  sessionId: string;
  createdAt: number;
  updatedAt: number;
  status: "idle" | "running" | "done" | "failed" | "killed";
  activeRunId?: string;
  nextSeq: number;
  rows: FakeRow[];
}

type Database = { fd: number; sessions: Record<string, StoredSession> };
export type NewRow = Omit<FakeRow, "__openclaw" | "timestamp"> & {
  runId?: string;
  kind?: string;
  id?: string;
  seq?: number;
};

/** `agent:<id>:<suffix>` → `<id>`; null for any other text. */
export function agentOf(sessionKey: string): string | null {
  return /^agent:([^:]+):.+$/.exec(sessionKey)?.[1] ?? null;
}

/** What the gateway says about the conversations of an agent that `agents.delete` removed. */
export function unavailable(agentId: string): string {
  return `OpenClaw agent database is unavailable while agent ${agentId} is deleted.`;
}

/**
 * The agents' databases, one file each under `state/agents/<id>/agent`, kept open from the first use as SQLite does: a
 * file removed under a running gateway lives on in the process and is lost at its end.
 */
export class GatewayStore {
  private readonly open = new Map<string, Database>();
  private readonly deleted: Set<string>;

  constructor(private readonly stateDir: string) {
    const file = this.sharedFile();
    this.deleted = new Set(existsSync(file) ? (JSON.parse(readFileSync(file, "utf8")) as string[]) : []);
  }

  databaseFile(agentId: string): string {
    return join(this.stateDir, "agents", agentId, "agent", "openclaw-agent.sqlite");
  }

  isDeleted(agentId: string): boolean {
    return this.deleted.has(agentId);
  }

  markDeleted(agentId: string): void {
    this.deleted.add(agentId);
    mkdirSync(dirname(this.sharedFile()), { recursive: true });
    writeFileSync(this.sharedFile(), JSON.stringify([...this.deleted]));
    this.closeAgent(agentId);
  }

  find(sessionKey: string): StoredSession | undefined {
    const agentId = agentOf(sessionKey);
    if (!agentId || (!this.open.has(agentId) && !existsSync(this.databaseFile(agentId)))) return undefined;
    return this.database(agentId).sessions[sessionKey];
  }

  /** The session, made when it is new. Throws for a key that names no agent. */
  obtain(sessionKey: string): StoredSession {
    const agentId = agentOf(sessionKey);
    if (!agentId) throw new Error(`${sessionKey} is not a session key`);
    const { sessions } = this.database(agentId);
    const now = Date.now();
    const fresh = { key: sessionKey, sessionId: crypto.randomUUID(), createdAt: now, updatedAt: now, nextSeq: 1 };
    return (sessions[sessionKey] ??= { ...fresh, status: "idle", rows: [] });
  }

  sessionsOf(agentId: string): StoredSession[] {
    if (!this.open.has(agentId) && !existsSync(this.databaseFile(agentId))) return [];
    return Object.values(this.database(agentId).sessions);
  }

  append(session: StoredSession, row: NewRow): FakeRow {
    const { runId, kind, id, seq, ...fields } = row;
    const now = Date.now();
    const rowSeq = seq ?? session.nextSeq++;
    const stored: FakeRow = {
      ...fields,
      timestamp: now,
      __openclaw: {
        ...(runId === undefined ? {} : { runId }),
        ...(kind === undefined ? {} : { kind }),
        id: id ?? crypto.randomUUID(),
        ...(row.idempotencyKey === undefined ? {} : { idempotencyKey: row.idempotencyKey }),
        recordTimestampMs: now,
        transcriptPosition: { source: session.sessionId, rawSeq: rowSeq },
        seq: rowSeq,
      },
    };
    session.rows.push(stored);
    this.save(session);
    return stored;
  }

  save(session: StoredSession): void {
    session.updatedAt = Date.now();
    this.write(agentOf(session.key)!);
  }

  remove(sessionKey: string): boolean {
    const session = this.find(sessionKey);
    if (!session) return false;
    const agentId = agentOf(sessionKey)!;
    delete this.database(agentId).sessions[sessionKey];
    this.write(agentId);
    return true;
  }

  closeAgent(agentId: string): void {
    const database = this.open.get(agentId);
    if (!database) return;
    closeSync(database.fd);
    this.open.delete(agentId);
  }

  close(): void {
    for (const agentId of this.open.keys()) this.closeAgent(agentId);
  }

  private sharedFile(): string {
    return join(this.stateDir, "state", "openclaw.sqlite");
  }

  private database(agentId: string): Database {
    const known = this.open.get(agentId);
    if (known) return known;
    if (this.isDeleted(agentId)) throw new Error(unavailable(agentId));
    const file = this.databaseFile(agentId);
    mkdirSync(dirname(file), { recursive: true });
    const fd = openSync(file, constants.O_RDWR | constants.O_CREAT, 0o600);
    const text = readFileSync(fd, "utf8");
    const database: Database = { fd, sessions: text ? (JSON.parse(text) as Record<string, StoredSession>) : {} };
    this.open.set(agentId, database);
    return database;
  }

  private write(agentId: string): void {
    if (this.isDeleted(agentId)) throw new Error(unavailable(agentId));
    const database = this.open.get(agentId);
    if (!database) return;
    ftruncateSync(database.fd, 0);
    writeSync(database.fd, JSON.stringify(database.sessions), 0);
  }
}
