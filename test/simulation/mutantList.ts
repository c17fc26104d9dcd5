/** A fault that somebody could make in `src/`: exact texts and what stands there instead. */
export interface Mutant {
  name: string;
  file: string;
  changes: [from: string, to: string][];
}

export const mutants: Mutant[] = [
  {
    name: "ack before commit",
    file: "services/conversations.ts",
    changes: [
      [
        "return deps.sql.begin(async (sql) => {\n    // Statements",
        "const early = Promise.withResolvers<Accepted | Refused | AppError>();\n  const work = async (sql: Queryable) => {\n    // Statements",
      ],
      [
        "repeated: false, usage, claimed };\n  });",
        "repeated: false, usage, claimed };\n  };\n" +
          "  deps.sql.begin(async (sql) => {\n    const outcome = await work(sql);\n    early.resolve(outcome);\n  }).catch(early.reject);\n" +
          "  return early.promise;",
      ],
    ],
  },
  {
    name: "no lease: taken over before it ran out",
    file: "db/turns.ts",
    changes: [
      [
        "and status in ('dispatched', 'streaming') and lease_until < now()\n",
        "and status in ('dispatched', 'streaming')\n",
      ],
    ],
  },
  {
    name: "no lease: never renewed",
    file: "db/turns.ts",
    changes: [
      [
        "update turns set lease_until = now() + make_interval(secs => ${input.leaseMs / 1000})\n    where id in",
        "update turns set lease_until = lease_until\n    where id in",
      ],
    ],
  },
  {
    name: "finish twice: the update is not conditional",
    file: "db/turns.ts",
    changes: [
      [
        " and (\n      (${input.owner}::uuid is null and status = 'queued')\n      or (lease_owner = ${input.owner} and status in ('dispatched', 'streaming')))`;",
        "`;",
      ],
    ],
  },
  {
    name: "finish without the owner's fence",
    file: "db/turns.ts",
    changes: [["or (lease_owner = ${input.owner} and status in", "or (status in"]],
  },
  {
    name: "offset off by one, to devices",
    file: "services/chatRooms.ts",
    changes: [["peer.turn.offset = turn.text.length;", "peer.turn.offset = turn.text.length - 1;"]],
  },
  {
    name: "offset off by one, between processes",
    file: "services/chatBus.ts",
    changes: [["text: text.slice(offset), retrying }", "text: text.slice(offset + 1), retrying }"]],
  },
  {
    name: "a stop neither waits for the attempt to send nor keeps it from sending",
    file: "services/turnRun.ts",
    changes: [
      [
        'await this.attempting;\n    const told = await this.run.abort(this.complete);\n    return { status: "stopped"',
        'const told = await this.run.abort(this.complete);\n    return { status: "stopped"',
      ],
      [
        "if (this.isOver()) return;\n      const status = await this.trace.sending(() => this.run.send());",
        "const status = await this.trace.sending(() => this.run.send());",
      ],
    ],
  },
  {
    name: "lost refresh: what changes during a read is not read",
    file: "services/chatHub.ts",
    changes: [["while (room.stale && this.rooms.get", "if (room.stale && this.rooms.get"]],
  },
  {
    name: "the reservation of a failed turn is not released",
    file: "services/conversations.ts",
    changes: [['status: charged ? "committed" : "released"', 'status: "committed"']],
  },
  {
    name: "sent again without a look into the history",
    file: "services/turnRun.ts",
    changes: [["if (this.turn.attempts > 1 || !this.complete) {", "if (this.turn.attempts > 100) {"]],
  },
  {
    name: "who stood still aborts what is another's",
    file: "services/turnRun.ts",
    changes: [["return held?.length === 1;", "return held !== null;"]],
  },
  {
    name: "a duplicate is accepted again",
    file: "services/conversations.ts",
    changes: [["if (earlier) return", "if (earlier && earlier.seq < 0) return"]],
  },
  {
    name: "the quota is read, then written",
    file: "db/usage.ts",
    changes: [
      ["(excluded.text_messages = 0 or d.text_messages + excluded.text_messages <= ${limits.textMessages})", "true"],
    ],
  },
  {
    name: "a late device gets the running answer from where it is",
    file: "services/chatRooms.ts",
    changes: [["peer.turn = { id: turn.id, offset: 0 };", "peer.turn = { id: turn.id, offset: turn.text.length };"]],
  },
];
