import {
  bad,
  NEEDS_ROOT,
  NOT_INSTALLED,
  ok,
  onHost,
  skip,
  type Check,
  type Repair,
  type Result,
  type Scene,
} from "./check.ts";

/** A row of the table in docs/server.md. `each`: everything in that folder. */
interface Place {
  id: string;
  path: string;
  each?: RegExp;
  owner: string;
  mode: number;
  /** Made by `--fix` where it is missing. */
  isFolder?: boolean;
  mayBeMissing?: boolean;
}

const PLACES: readonly Place[] = [
  { id: "releases", path: "/opt/reef/releases", owner: "root", mode: 0o755 },
  { id: "openclaw", path: "/opt/reef/openclaw", owner: "root", mode: 0o755 },
  { id: "reef_env", path: "/etc/reef/reef.env", owner: "root", mode: 0o600 },
  { id: "api_env", path: "/etc/reef/api", each: /\.env$/, owner: "root", mode: 0o600 },
  { id: "gateway_env", path: "/etc/reef/gateways", each: /\.env$/, owner: "root", mode: 0o600 },
  { id: "backup_env", path: "/etc/reef/backup.env", owner: "root", mode: 0o600 },
  { id: "gateway_folder", path: "/var/lib/reef-gateway", each: /^[a-z0-9]/, owner: "reef-gateway", mode: 0o700 },
  { id: "backups", path: "/var/backups/reef", owner: "root", mode: 0o700, isFolder: true },
  {
    id: "restart_wishes",
    path: "/run/reef/restart-gateway",
    owner: "reef",
    mode: 0o700,
    isFolder: true,
    // The health check's unit makes it, at its first run.
    mayBeMissing: true,
  },
  { id: "command", path: "/usr/local/bin/reef", owner: "root", mode: 0o755 },
];
const octal = (mode: number) => `0${mode.toString(8)}`;

async function checkPlace(scene: Scene, place: Place): Promise<Result> {
  const { host } = scene;
  if (!scene.place.isInstalled) return skip(NOT_INSTALLED);
  const paths = place.each ? await listEach(scene, place) : [place.path];
  if (paths === null) return host.isRoot ? missing(scene, place) : skip(NEEDS_ROOT);
  if (paths.length === 0) return bad(`nothing in ${place.path}`, "sudo scripts/setup.sh makes it");
  const wrong = (await Promise.all(paths.map((path) => judge(scene, place, path)))).filter((one) => one !== null);
  if (wrong.some((one) => one === "unseen")) return host.isRoot ? missing(scene, place) : skip(NEEDS_ROOT);
  const found = wrong.filter((one) => one !== "unseen");
  if (found.length === 0)
    return ok(
      `${paths.length === 1 ? paths[0] : `${paths.length} in ${place.path}`}: ${place.owner} ${octal(place.mode)}`,
    );
  const commands = found.map(({ path }) => `chown ${place.owner}: ${path} && chmod ${octal(place.mode)} ${path}`);
  return bad(found.map(({ says }) => says).join("; "), commands.join("; "), {
    does: commands.join("; "),
    apply: async () => {
      for (const { path } of found) await put(scene, place, path);
    },
  });
}

async function listEach({ host }: Scene, { path, each }: Place): Promise<string[] | null> {
  const names = await host.list(path);
  return names && names.filter((name) => each!.test(name)).map((name) => `${path}/${name}`);
}

async function judge({ host }: Scene, { owner, mode }: Place, path: string) {
  const found = await host.stand(path);
  if (found === null) return "unseen" as const;
  if (found.owner === owner && found.mode === mode) return null;
  return { path, says: `${path} is ${found.owner} ${octal(found.mode)}, not ${owner} ${octal(mode)}` };
}

async function put({ host }: Scene, { owner, mode }: Place, path: string): Promise<void> {
  if ((await host.stand(path))?.owner !== owner) await host.setOwner(path, owner);
  await host.setMode(path, mode);
}

function missing(scene: Scene, place: Place): Result {
  if (place.mayBeMissing) return ok(`${place.path} is not there yet`);
  const fix = place.isFolder
    ? `install -d -o ${place.owner} -m ${octal(place.mode)} ${place.path}`
    : "sudo scripts/setup.sh makes it";
  const make: Repair = {
    does: fix,
    apply: async () => {
      await scene.host.makeFolder(place.path, place.mode);
      await put(scene, place, place.path);
    },
  };
  return bad(`${place.path} is missing`, fix, place.isFolder ? make : undefined);
}

const NO_SHELL = /\/(nologin|false)$/;

async function checkUser({ host, place }: Scene, name: string): Promise<Result> {
  if (!place.isInstalled) return skip(NOT_INSTALLED);
  const user = (await host.users()).find((one) => one.name === name);
  if (!user) return bad(`there is no user ${name}`, "sudo scripts/setup.sh makes it");
  if (user.uid === 0) return bad(`${name} is root`, `userdel ${name}; sudo scripts/setup.sh makes it anew`);
  if (NO_SHELL.test(user.shell)) return ok(`no shell (${user.shell})`);
  return bad(`${name} has a shell (${user.shell})`, `usermod --shell /usr/sbin/nologin ${name}`);
}

export const PERMISSIONS: readonly Check[] = [
  ...PLACES.map((place) => onHost(`permissions.${place.id}`, (scene) => checkPlace(scene, place))),
  onHost("permissions.user_reef", (scene) => checkUser(scene, "reef")),
  onHost("permissions.user_reef_gateway", (scene) => checkUser(scene, "reef-gateway")),
];
