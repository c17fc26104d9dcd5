import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { freePort, lastLines, spawnChild, waitUntil } from "../../scripts/services/process.ts";
import { tool } from "../tools.ts";

const DEPLOY = resolve(import.meta.dir, "../../deploy/nginx");

/** A real nginx with the site of deploy/nginx, on ports and in a folder of its own. */
export interface Edge {
  url: string;
  httpUrl: string;
  port: number;
  /** Its certificate, which is its own authority. */
  ca: string;
  folder: string;
  /** Created, it switches the maintenance page on. */
  maintenanceFile: string;
  /** Holds the files `going-N`. */
  goingDir: string;
  /** All that it has logged, as text. */
  logs(): { access: string; errors: string };
  stop(): Promise<void>;
}

interface Options {
  /** Ports of the two API processes. */
  processes: [number, number];
  /** Further changes to the site, e.g. limits that a test can reach. */
  replace?: [string, string][];
}

/** Starts it; as whoever we are, nothing outside its folder is touched. */
export async function startNginx(options: Options): Promise<Edge> {
  const nginx = await tool("nginx");
  const folder = mkdtempSync(join(tmpdir(), `reef-test-${process.pid}-nginx-`));
  const [port, httpPort] = [freePort(), freePort()];
  for (const name of ["temp", "going", "letsencrypt/.well-known/acme-challenge"])
    mkdirSync(join(folder, name), { recursive: true });
  await makeCertificate(folder);
  writeFileSync(join(folder, "reef.conf"), renderSite("reef.conf", folder, { ...options, port, httpPort }));
  writeFileSync(join(folder, "reef-http.conf"), renderSite("reef-http.conf", folder, { ...options, port, httpPort }));
  writeFileSync(join(folder, "nginx.conf"), renderMain(folder));
  const errors = join(folder, "errors.log");
  const child = spawnChild({
    command: [nginx.path, "-e", errors, "-p", folder, "-c", join(folder, "nginx.conf")],
    env: nginx.env,
    deathSignal: "TERM",
    logFile: join(folder, "output.log"),
  });
  const up = await waitUntil(child, 10_000, () =>
    fetch(`http://127.0.0.1:${httpPort}/`, { redirect: "manual" }).then(() => true),
  );
  if (!up)
    throw new Error(`nginx did not start:\n${lastLines(join(folder, "output.log"), 20)}\n${lastLines(errors, 20)}`);
  const read = (name: string) => readFileSync(join(folder, name), "utf8");
  return {
    url: `https://127.0.0.1:${port}`,
    httpUrl: `http://127.0.0.1:${httpPort}`,
    port,
    ca: read("fullchain.pem"),
    folder,
    maintenanceFile: join(folder, "maintenance"),
    goingDir: join(folder, "going"),
    logs: () => ({ access: read("access.log"), errors: read("errors.log") + read("output.log") }),
    async stop() {
      await child.stop("SIGTERM", 5_000);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

async function makeCertificate(folder: string): Promise<void> {
  const openssl = await tool("openssl");
  const settings = join(folder, "openssl.cnf");
  writeFileSync(settings, "[req]\ndistinguished_name = name\n[name]\n");
  const args = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  const names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-config", settings];
  const files = ["-keyout", join(folder, "privkey.pem"), "-out", join(folder, "fullchain.pem")];
  const { status, stderr } = spawnSync(openssl.path, [...args, ...names, ...files], {
    env: openssl.env,
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`no certificate: ${stderr}`);
}

/** The template as setup.sh puts it in place, with our ports and folders for the server's. */
function renderSite(name: string, folder: string, options: Options & { port: number; httpPort: number }): string {
  const changes: [string, string][] = [
    ["    listen [::]:443 ssl http2;\n", ""],
    ["    listen [::]:80;\n", ""],
    ["listen 443", `listen 127.0.0.1:${options.port}`],
    ["listen 80;", `listen 127.0.0.1:${options.httpPort};`],
    ["/etc/letsencrypt/live/__DOMAIN__", folder],
    ["/var/www/letsencrypt", join(folder, "letsencrypt")],
    ["syslog:server=unix:/dev/log,tag=nginx,nohostname reef", `${join(folder, "access.log")} reef`],
    ["syslog:server=unix:/dev/log,tag=nginx,nohostname", join(folder, "errors.log")],
    ["127.0.0.1:3001", `127.0.0.1:${options.processes[0]}`],
    ["127.0.0.1:3002", `127.0.0.1:${options.processes[1]}`],
    ["/run/reef-edge", join(folder, "going")],
    ["/opt/reef/maintenance", join(folder, "maintenance")],
    ["/opt/reef/current/deploy/nginx", DEPLOY],
    ["__DOMAIN__", "127.0.0.1"],
    ...(options.replace ?? []),
  ];
  return changes.reduce((text, [from, to]) => text.replaceAll(from, to), readFileSync(join(DEPLOY, name), "utf8"));
}

function renderMain(folder: string): string {
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((kind) => `${kind}_temp_path ${join(folder, "temp", kind)};`)
    .join("\n  ");
  return `${process.getuid?.() === 0 ? "user root root;\n" : ""}daemon off;
worker_processes 2;
pid ${join(folder, "nginx.pid")};
error_log ${join(folder, "errors.log")} notice;
events { worker_connections 1024; }
http {
  types { text/html html; }
  ${temporary}
  include ${join(folder, "reef.conf")};
  include ${join(folder, "reef-http.conf")};
}
`;
}
