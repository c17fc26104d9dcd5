import { join } from "node:path";
import { z } from "zod";
import { ProgramError, runProgram } from "../clients/programs.ts";
import type { HeldLock } from "../db/locks.ts";
import type { JobResult } from "./jobs.ts";

const ROOT = join(import.meta.dir, "../..");

const seconds = z.number().optional();
/** What a drill saw, as it is kept in BACKUP_DIR/receipts. What it did not come to is absent. */
export const receiptSchema = z.object({
  backup: z.string(),
  at: z.string(),
  ok: z.boolean(),
  /** "failed": the backup is bad. "unknown": it could not be tried to the end. */
  proof: z.enum(["verified", "failed", "unknown"]),
  /** By step; `untilServing`: from the start until the restored Reef takes messages. */
  seconds: z.object({
    sums: seconds,
    database: seconds,
    files: seconds,
    start: seconds,
    untilServing: seconds,
    invariants: seconds,
    conversation: seconds,
    total: seconds,
  }),
  rows: z.object({ tables: z.number(), total: z.number(), wrong: z.array(z.string()) }).optional(),
  workspaces: z.object({ total: z.number(), compared: z.number(), wrong: z.array(z.string()) }).optional(),
  erasedAgain: z.object({ users: z.number(), assistants: z.number(), left: z.number() }).optional(),
  invariants: z.object({ checked: z.number(), broken: z.array(z.string()) }).optional(),
  /** Null: nobody could be talked to. */
  conversation: z
    .object({
      assistantId: z.string(),
      answered: z.boolean(),
      history: z.boolean().nullable(),
      memory: z.boolean().nullable(),
    })
    .nullable()
    .optional(),
  /** In our own words: it goes to rows and webhooks. */
  fault: z.string().nullable(),
  /** What others said of it, who may quote somebody's row: it stays in this file. */
  said: z.string().optional(),
});
export type Receipt = z.infer<typeof receiptSchema>;

/** Restores the newest backup beside the living system (scripts/drill.ts, a process of its own) and tells how it went. */
export async function verifyNewestBackup(_deps: object, lock: HeldLock): Promise<JobResult> {
  const drill = { program: join(ROOT, "scripts/bun"), args: [join(ROOT, "scripts/drill.ts")], signal: lock.signal };
  const output = await runProgram({ ...drill, failed: "output" }).catch((error: unknown) => {
    if (error instanceof ProgramError) throw new Error(`the drill did not run: ${error.message}`);
    throw error;
  });
  const line = output.trim().split("\n").at(-1) ?? "";
  const receipt = receiptSchema.parse(JSON.parse(line));
  const { untilServing = null, total = null } = receipt.seconds;
  const details = {
    backup: receipt.backup,
    proof: receipt.proof,
    seconds: total,
    secondsUntilServing: untilServing,
    rows: receipt.rows?.total ?? null,
    workspaces: receipt.workspaces?.compared ?? null,
    conversation: receipt.conversation?.answered ?? null,
    fault: receipt.fault,
  };
  const more = receipt.said === undefined ? "" : " (the receipt says more)";
  if (!receipt.ok)
    return { ok: false, summary: `${receipt.backup} (${receipt.proof}): ${receipt.fault}${more}`, details };
  return {
    ok: true,
    summary: `${receipt.backup} serves again after ${untilServing} s; ${receipt.rows?.total} rows`,
    details,
  };
}
