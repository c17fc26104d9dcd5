import type { Host } from "../../clients/host.ts";
import type { Config } from "../../config.ts";

/** What kind of machine this is; what does not apply to it is skipped with its reason. */
export interface Place {
  /** Not production: `npm start`, or a test. */
  isTrial: boolean;
  hasSystemd: boolean;
  /** Whether scripts/setup.sh has been here. */
  isInstalled: boolean;
  hasNginx: boolean;
  /** The name that clients call; null when neither nginx nor APP_URL tells. */
  domain: string | null;
  /** Each API process of this machine by its own address. */
  api: { name: string; url: string }[];
}

const SITES = ["/etc/nginx/sites-enabled", "/etc/nginx/conf.d"];
const INSTANCE = /\breef-api@(\d+)\.service\b/g;

/** Looks at what is there. `config` null: the settings can't be read. */
export async function findPlace(host: Host, config: Config | null): Promise<Place> {
  const hasSystemd = await host.hasSystemd();
  const [installed, sites] = await Promise.all([host.stand("/opt/reef/current"), readSites(host)]);
  return {
    isTrial: config !== null && config.NODE_ENV !== "production",
    hasSystemd,
    isInstalled: installed !== null,
    hasNginx: sites.length > 0,
    domain: findServerName(sites) ?? domainOf(config?.APP_URL),
    api: await listApi(host, config, hasSystemd),
  };
}

/** nginx's files that speak of us. */
async function readSites(host: Host): Promise<string[]> {
  const texts: string[] = [];
  for (const folder of SITES)
    for (const name of (await host.list(folder)) ?? []) {
      const text = await host.read(`${folder}/${name}`);
      if (text !== null && /\breef\b/.test(name + text)) texts.push(text);
    }
  return texts;
}

function findServerName(sites: string[]): string | null {
  const names = sites.flatMap((text) => [...text.matchAll(/^\s*server_name\s+([^;]+);/gm)]);
  const all = names.flatMap(([, list = ""]) => list.trim().split(/\s+/));
  return all.find((name) => /^[a-z0-9-]+(\.[a-z0-9-]+)+$/i.test(name)) ?? null;
}

function domainOf(appUrl: string | undefined): string | null {
  const url = URL.parse(appUrl ?? "");
  return url?.protocol === "https:" ? url.hostname : null;
}

async function listApi(host: Host, config: Config | null, hasSystemd: boolean): Promise<Place["api"]> {
  const units = hasSystemd
    ? await host.run(["systemctl", "list-units", "--all", "--plain", "--no-legend", "reef-api@*"])
    : null;
  const numbers = [...new Set([...(units?.out ?? "").matchAll(INSTANCE)].map(([, n]) => Number(n)))];
  if (numbers.length > 0) return numbers.map((n) => ({ name: `reef-api@${n}`, url: `http://127.0.0.1:${3000 + n}` }));
  if (!config || config.PORT === 0) return [];
  const reached = ["0.0.0.0", "::"].includes(config.HOST) ? "127.0.0.1" : config.HOST;
  const address = reached.includes(":") ? `[${reached}]` : reached;
  return [{ name: "the application", url: `http://${address}:${config.PORT}` }];
}
