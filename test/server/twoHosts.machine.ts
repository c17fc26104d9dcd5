import { expect, test } from "bun:test";
import { resolve } from "node:path";

const root = resolve(import.meta.dir, "../..");

/*
 * Two hosts and a third with Postgres and Redis, as network namespaces: `npm run bench -- hosts` fails by itself when a
 * message that was acknowledged is not answered once, or an export lacks the files of the other host.
 */
test.skipIf(process.getuid?.() !== 0)(
  "two hosts, one of them cut off (skipped: only root makes network namespaces)",
  async () => {
    const command = [
      process.execPath,
      "--no-env-file",
      "bench/run.ts",
      "hosts",
      "--turns",
      "10",
      "--cut",
      "6",
      "--real",
      "4",
    ];
    const child = Bun.spawn(command, { cwd: root, stdout: "pipe", stderr: "pipe" });
    const [out, said] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    expect([await child.exited, said.includes("not answered")]).toEqual([0, false]);
    for (const way of ["socket on one, gateway on two", "socket on two, gateway on one"]) expect(out).toContain(way);
    expect(out).toContain("an export through host one has the files that lie on host two");
    const [, meanwhile] = /on host one (\d+) turns meanwhile/.exec(out) ?? [];
    expect(Number(meanwhile)).toBeGreaterThan(3);
    expect(out).toMatch(/6 acknowledged for host two were answered once each/);
    expect(out).toContain("the real gateway on host two, 4 turns through host one");
  },
  600_000,
);
