import { createRemoteWorkspaces } from "../src/clients/remoteWorkspaces.ts";
import { createWorkspaces, type Workspaces } from "../src/clients/workspaces.ts";
import { createLog } from "../src/lib/log.ts";
import { defineBench } from "./bench.ts";
import { median, now, percentile, printTable, short } from "./measure.ts";
import { startProgram } from "./systems/program.ts";
import { gatewayFolder } from "./systems/reef.ts";

const TOKEN = "bench-files-token";
const WARM_UP = 50;

export const files = defineBench({
  summary: "what each turn does to the assistant's folder (guard), in the process and through the files process",
  options: { calls: { value: 1_000, help: "calls each way, alternating" } },
  async run(services, options) {
    const dir = gatewayFolder(services);
    const program = await startProgram(services, {
      name: "files",
      runtime: "bun",
      file: "src/files.ts",
      env: { OPENCLAW_GATEWAY_DIR: dir, GATEWAY_FILES_TOKEN: TOKEN, LOG_LEVEL: "warn" },
      portName: "GATEWAY_FILES_PORT",
    });
    const ways: [string, Workspaces, number[]][] = [
      ["in the process", createWorkspaces(dir, createLog("silent")), []],
      ["files process", createRemoteWorkspaces({ url: program.url, token: TOKEN, dir }), []],
    ];
    const settings = { agentId: "agent_bench", displayName: "Coral" };
    await ways[0]![1].prepare(settings);
    for (let i = 0; i < options.calls + WARM_UP; i++) {
      if (i % 200 === 0) services.say(`call ${Math.max(0, i - WARM_UP)} of ${options.calls}, each way`);
      for (const [, workspaces, took] of i % 2 === 0 ? ways : ways.toReversed()) {
        const began = now();
        await workspaces.guard(settings);
        if (i >= WARM_UP) took.push(now() - began);
      }
    }
    const figures = ways.map(([name, , took]) => [name, short(percentile(took, 50)), short(percentile(took, 95))]);
    console.log(`\nguard, ${options.calls} calls each way, alternating; ms`);
    printTable(["", "p50", "p95"], figures);
    const [inside, outside] = [ways[0]![2], ways[1]![2]];
    console.log(`added, median of pairs: ${short(median(outside.map((ms, i) => ms - inside[i]!)))} ms`);
  },
});
