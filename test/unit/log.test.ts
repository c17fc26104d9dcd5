import { expect, test } from "bun:test";
import { join } from "node:path";

const log = join(import.meta.dir, "../../src/lib/log.ts");
const script = `
  const { createLog } = await import(${JSON.stringify(log)});
  const log = createLog("info");
  for (let i = 0; i < 5000; i += 1) log.info({ i }, "a line that nobody can keep");
  await Bun.sleep(50);
  log.info("still here");
  process.exitCode = 7;`;

test("a full disk under the log drops lines, says so once, and the process goes on", async () => {
  const run = async (redirect: string) => {
    const child = Bun.spawn(["sh", "-c", `exec "$0" --no-env-file -e "$1" ${redirect}`, process.execPath, script], {
      env: {},
      stderr: "pipe",
    });
    return { said: await new Response(child.stderr).text(), code: await child.exited };
  };
  const { said, code } = await run(">/dev/full");
  expect(said).toBe("The log can't be written (ENOSPC): lines are lost.\n");
  expect(code).toBe(7);
  // Where both go to the same disk the sentence is lost, too.
  expect((await run(">/dev/full 2>&1")).code).toBe(7);
});
