import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { appendFileSync } from "node:fs";
import { startFake, startRealGateway, type CellGateway } from "./gateways.ts";
import { runCell } from "./runCell.ts";
import { startServers, type Servers } from "./servers.ts";
import { FULL, SHORT } from "./strikes.ts";
import { FAULTS, findCell, isAboutGateway, PARTS, QUICK, TABLE } from "./table.ts";
import { MOMENTS } from "./moments.ts";

/*
 * Without FAULT_CELLS this is the quick half. scripts/faults.ts gives the ids of the cells to run in full, one a line,
 * and a file that takes a line of JSON for each.
 */
const given = process.env["FAULT_CELLS"]?.split("\n").filter(Boolean);
const report = process.env["FAULT_REPORT"];
const cells = (given ?? QUICK).map(findCell);
const full = given !== undefined;

let servers: Servers;
const gateways = new Map<"real" | "fake", CellGateway>();
beforeAll(async () => {
  servers = await startServers();
});
afterAll(async () => {
  for (const gateway of gateways.values()) await gateway.stop();
  await servers.stop();
});

async function gatewayFor(kind: "real" | "fake"): Promise<CellGateway> {
  const known = gateways.get(kind);
  if (known) return known;
  const started = kind === "real" ? await startRealGateway(servers.folder) : await startFake(servers.folder);
  gateways.set(kind, started);
  return started;
}

describe("a fault", () => {
  for (const cell of cells) {
    test(
      cell.id,
      async () => {
        const gateway = await gatewayFor(full && isAboutGateway(cell) ? "real" : "fake");
        const startedAt = Date.now();
        const outcome = await runCell(cell, { servers, gateway, lengths: full ? FULL : SHORT }).catch((error) => {
          note(cell.id, { outcome: "failing", seconds: 0 }, startedAt);
          console.error(`To run it alone: npm run test:faults -- --cell "${cell.id}"`);
          throw error;
        });
        note(cell.id, outcome, startedAt);
      },
      300_000,
    );
  }
});

function note(id: string, outcome: { outcome: string; seconds: number }, startedAt: number): void {
  const tookSeconds = (Date.now() - startedAt) / 1000;
  if (full)
    console.log(`${id}: ${outcome.outcome} ${outcome.seconds.toFixed(1)} (the cell took ${tookSeconds.toFixed(1)})`);
  if (report) appendFileSync(report, `${JSON.stringify({ id, ...outcome, tookSeconds })}\n`);
}

test("every combination is run, or named with the reason why not", () => {
  expect(TABLE.length).toBe(PARTS.length * FAULTS.length * MOMENTS.length);
  for (const cell of TABLE) expect(cell.skip === null || cell.skip.reason.length > 10).toBe(true);
  for (const id of QUICK) expect(findCell(id).skip).toBeNull();
});
