import { sleep } from "../lib/retry.ts";

const help = `Waits until the OpenClaw gateway on a port of this machine takes chats (/readyz). The last step of reef-gateway@'s start.

  scripts/bun src/jobs/awaitGateway.ts PORT [PID]

PID: the gateway's process; when it is no more, nothing is waited for. It waits for ever: systemd ends it in time.
Exit code: 0 it serves, 1 the process has ended, 2 no port given.`;

const PAUSE_MS = 200;
const ASK_MS = 2_000;
const PROGRESS_MS = 5_000;

async function main([port, pid]: string[]): Promise<number> {
  if (port === "--help" || port === "-h") {
    console.log(help);
    return 0;
  }
  if (!/^\d+$/.test(port ?? "")) {
    console.error("await-gateway: which port? See --help.");
    return 2;
  }
  const beganAt = performance.now();
  let toldAt = beganAt;
  while (!(await isServing(Number(port)))) {
    const now = performance.now();
    if (pid !== undefined && !isAlive(Number(pid))) {
      console.error("await-gateway: the gateway has ended before it served");
      return 1;
    }
    if (now - toldAt >= PROGRESS_MS) {
      console.log(`await-gateway: the gateway is starting (${Math.round((now - beganAt) / 1000)} s)`);
      toldAt = now;
    }
    await sleep(PAUSE_MS);
  }
  console.log(`await-gateway: the gateway serves, after ${Math.round((performance.now() - beganAt) / 1000)} s`);
  return 0;
}

async function isServing(port: number): Promise<boolean> {
  try {
    const answer = await fetch(`http://127.0.0.1:${port}/readyz`, { signal: AbortSignal.timeout(ASK_MS) });
    await answer.body?.cancel();
    return answer.ok;
  } catch {
    return false;
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

process.exit(await main(process.argv.slice(2)));
