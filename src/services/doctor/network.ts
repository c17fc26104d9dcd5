import {
  isLoopback,
  listListeners,
  readCertificate,
  resolveName,
  takesConnections,
} from "../../clients/hostNetwork.ts";
import { bad, ok, onHost, skip, warn, type Check, type Result, type Scene } from "./check.ts";

const DAY_MS = 86_400_000;
const DAYS = { warn: 14, bad: 3 };
/** Ports of ours, and of what we stand on: nobody else may reach them. */
export const INNER_PORTS: readonly number[] = [18789, 18790, 3001, 3002, 5432, 6379];
const OUTER = [80, 443];
const NO_DOMAIN = "no domain: neither nginx's server_name nor an https APP_URL names one";
const PRIVATE = /^(10\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.|100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.|f[cd])/;

async function checkDns({ place, outside }: Scene): Promise<Result> {
  if (place.domain === null) return skip(NO_DOMAIN);
  const found = await resolveName(place.domain);
  const own = outside.addresses;
  const fix = `an A record of ${place.domain} with this server's address`;
  if (found.length === 0) return bad(`${place.domain} does not resolve`, fix);
  const strange = found.filter((address) => !own.includes(address) && !isLoopback(address));
  if (strange.length === 0) return ok(`${place.domain} is ${found.join(", ")}`);
  // Behind an address translation a machine does not know its public address.
  if (own.every((address) => PRIVATE.test(address)))
    return warn(
      `${place.domain} is ${found.join(", ")}; this machine knows only private addresses`,
      "compare with the provider's console",
    );
  return bad(`${place.domain} is ${strange.join(", ")}, which is not this machine`, fix);
}

async function checkCertificate({ host, place, tls }: Scene): Promise<Result> {
  if (place.domain === null) return skip(NO_DOMAIN);
  if (!place.hasNginx) return skip("no nginx here: TLS ends elsewhere");
  const shown = await readCertificate({ ...tls, name: place.domain });
  if (shown === null) return bad(`nobody speaks TLS on port ${tls.port}`, "systemctl status nginx; nginx -t");
  const days = Math.floor((shown.validTo.getTime() - Date.now()) / DAY_MS);
  const renew = { does: "certbot renew", apply: () => renewCertificate(host) };
  const found = `of ${shown.issuer}, ${days} day(s) left`;
  if (shown.fault !== null && days >= 0)
    return bad(
      `${found}; clients refuse it: ${shown.fault}`,
      "sudo scripts/setup.sh --email ADDRESS asks for one; certbot renew where there is one already",
    );
  if (days < DAYS.bad) return bad(found, "certbot renew && systemctl reload nginx", renew);
  if (days < DAYS.warn) return warn(found, "certbot renew --dry-run says why it was not renewed", renew);
  return ok(found);
}

async function renewCertificate(host: Scene["host"]): Promise<void> {
  const ran = await host.run(["certbot", "renew", "--non-interactive"], { ms: 150_000 });
  if (ran?.code !== 0) throw new Error(ran ? "certbot renew failed: journalctl -u certbot" : "there is no certbot");
  await host.run(["systemctl", "reload", "nginx"]);
}

async function readSshPorts({ host }: Scene): Promise<number[]> {
  const folder = "/etc/ssh/sshd_config.d";
  const files = ["/etc/ssh/sshd_config", ...((await host.list(folder)) ?? []).map((name) => `${folder}/${name}`)];
  const texts = await Promise.all(files.map((file) => host.read(file)));
  const ports = texts.flatMap((text) =>
    [...(text ?? "").matchAll(/^\s*Port\s+(\d+)/gim)].map(([, port]) => Number(port)),
  );
  return ports.length > 0 ? ports : [22];
}

async function checkListeners(scene: Scene): Promise<Result> {
  if (!scene.place.isInstalled) return skip("a trial: the machine is somebody's own");
  const listeners = await listListeners(scene.host);
  if (listeners === null) return skip("the kernel does not list its ports here");
  const outside = [...new Set(listeners.filter(({ address }) => !isLoopback(address)).map(({ port }) => port))];
  const inner = outside.filter((port) => scene.outside.innerPorts.includes(port));
  if (inner.length > 0)
    return bad(`open to others: ${inner.join(", ")}`, "bind them to 127.0.0.1 (Docker: -p 127.0.0.1:5432:5432)");
  const allowed = [...OUTER, ...(await readSshPorts(scene))];
  const more = outside.filter((port) => !allowed.includes(port)).toSorted((a, b) => a - b);
  if (more.length === 0) return ok(`only ${outside.toSorted((a, b) => a - b).join(", ") || "nothing"} listen outside`);
  return warn(
    `${more.join(", ")} listen outside, too`,
    "if nobody needs them: bind them to 127.0.0.1, or ufw deny PORT",
  );
}

async function checkReachable({ place, outside }: Scene): Promise<Result> {
  if (!place.isInstalled) return skip("a trial: the machine is somebody's own");
  const { addresses, innerPorts } = outside;
  const asked = addresses.flatMap((address) => innerPorts.map((port) => ({ address, port })));
  const taken = await Promise.all(
    asked.map(async (one) => ((await takesConnections(one.address, one.port)) ? one : null)),
  );
  const open = taken.filter((one) => one !== null).map(({ address, port }) => `${address}:${port}`);
  if (open.length === 0) return ok(`${innerPorts.join(", ")} take no connection from ${addresses.length} address(es)`);
  return bad(
    `${open.join(", ")} take connections`,
    "bind them to 127.0.0.1; a firewall does not stop Docker's published ports",
  );
}

async function checkFront({ place, tls }: Scene): Promise<Result> {
  if (place.domain === null) return skip(NO_DOMAIN);
  if (!place.hasNginx) return skip("no nginx here");
  const { host } = Object.assign(new URL(`https://${place.domain}`), { port: tls.port });
  const url = `https://${host}/health`;
  const signal = AbortSignal.timeout(8_000);
  const options = { signal, redirect: "manual" as const, ...(tls.ca ? { tls: { ca: tls.ca } } : {}) };
  const answer = await fetch(url, options).catch((error: unknown) => (error as { code?: unknown }).code);
  const fix = "systemctl status nginx reef-api@1; nginx -t";
  if (!(answer instanceof Response)) {
    const why = typeof answer === "string" ? ` (${answer})` : "";
    return bad(`${url} does not answer from here${why}`, fix);
  }
  await answer.body?.cancel();
  return answer.ok ? ok(`${url} answers 200`) : bad(`${url} answers ${answer.status}`, fix);
}

export const NETWORK: readonly Check[] = [
  onHost("network.dns", checkDns),
  onHost("network.certificate", checkCertificate, { limitMs: 180_000 }),
  onHost("network.listeners", checkListeners),
  onHost("network.reachable", checkReachable),
  onHost("network.front", checkFront),
];
