import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findRestorer } from "../../src/clients/postgresTools.ts";

const path = process.env["PATH"];
let bin: string;
beforeAll(() => {
  bin = mkdtempSync(join(tmpdir(), `reef-test-${process.pid}-restorers-`));
  process.env["PATH"] = `${bin}:${path}`;
});
afterAll(() => {
  process.env["PATH"] = path;
  rmSync(bin, { recursive: true, force: true });
});

test("a pg_restore that is older than the dump's server is not tried: it would call a good backup bad", async () => {
  const restorer = (version: string) =>
    writeFileSync(join(bin, "pg_restore"), `#!/bin/sh\necho 'pg_restore (PostgreSQL) ${version}'\n`, { mode: 0o755 });
  restorer("90.2");
  expect(await findRestorer(900_001)).toBe("pg_restore");
  expect(await findRestorer(890_004)).toBe("pg_restore");
  expect(findRestorer(910_000)).rejects.toThrow(
    "only pg_restore 90 here, the dump is of Postgres 91: install postgresql-client-91",
  );
});
