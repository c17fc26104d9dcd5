import { lookup } from "node:dns/promises";
import { connect, isIP } from "node:net";
import { networkInterfaces } from "node:os";
import { connect as connectTls } from "node:tls";
import type { Host } from "./host.ts";

/** A port that somebody listens on. */
export interface Listener {
  address: string;
  port: number;
}

/** What a TLS server shows. `fault` null: the chain leads to a root we trust and the certificate is of that name. */
export interface ShownCertificate {
  validTo: Date;
  issuer: string;
  fault: string | null;
}

const CONNECT_MS = 3_000;

/** Addresses of this machine that others may reach. */
export function ownAddresses(): string[] {
  return Object.values(networkInterfaces())
    .flatMap((entries) => entries ?? [])
    .filter(({ internal, address }) => !internal && !address.startsWith("fe80"))
    .map(({ address }) => address);
}

/** What a name resolves to; none when it does not. */
export async function resolveName(name: string): Promise<string[]> {
  const found = await lookup(name, { all: true }).catch(() => []);
  return [...new Set(found.map(({ address }) => address))];
}

/** Every TCP port that is listened on, as the kernel lists them; null where it does not tell. */
export async function listListeners(host: Pick<Host, "read">): Promise<Listener[] | null> {
  const tables = await Promise.all([host.read("/proc/net/tcp"), host.read("/proc/net/tcp6")]);
  if (tables.every((table) => table === null)) return null;
  return tables.flatMap((table) => (table ?? "").split("\n").flatMap(parseListener));
}

const LISTEN = "0A";

function parseListener(line: string): Listener[] {
  const [, local = "", , state] = line.trim().split(/\s+/);
  const [address = "", port = ""] = local.split(":");
  if (state !== LISTEN || port === "") return [];
  return [{ address: readAddress(address), port: Number.parseInt(port, 16) }];
}

/** The kernel writes each 32 bits as this machine has them in memory: the lowest byte first. */
function readAddress(hex: string): string {
  const bytes = (hex.match(/.{8}/g) ?? []).flatMap((word) => word.match(/../g)!.reverse());
  const numbers = bytes.map((byte) => Number.parseInt(byte, 16));
  if (numbers.length === 4) return numbers.join(".");
  const mapped = numbers.slice(0, 10).every((n) => n === 0) && numbers[10] === 255 && numbers[11] === 255;
  if (mapped) return numbers.slice(12).join(".");
  const groups = (bytes.join("").match(/.{4}/g) ?? []).map((group) => Number.parseInt(group, 16).toString(16));
  return URL.parse(`http://[${groups.join(":")}]/`)?.hostname.slice(1, -1) ?? hex;
}

/** Whether an address is this machine's alone. */
export function isLoopback(address: string): boolean {
  return /^(127\.[\d.]+|::1|\[::1\]|localhost)$/.test(address);
}

/** Whether somebody takes a TCP connection there. */
export function takesConnections(address: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: address, port, timeout: CONNECT_MS });
    const end = (taken: boolean) => {
      socket.destroy();
      resolve(taken);
    };
    socket.once("connect", () => end(true));
    socket.once("error", () => end(false));
    socket.once("timeout", () => end(false));
  });
}

/** The certificate that a server shows for a name; null when nobody speaks TLS there. `ca`: a root of one's own. */
export function readCertificate(server: {
  address: string;
  port: number;
  name: string;
  ca?: string;
}): Promise<ShownCertificate | null> {
  const { address, port, name, ca } = server;
  return new Promise((resolve) => {
    // It is to be looked at, however bad it is; nothing is sent.
    const named = isIP(name) === 0 ? { servername: name } : {};
    const socket = connectTls({ host: address, port, ...named, rejectUnauthorized: false, ...(ca ? { ca } : {}) });
    const end = (shown: ShownCertificate | null) => {
      socket.destroy();
      resolve(shown);
    };
    socket.setTimeout(CONNECT_MS, () => end(null));
    socket.once("error", () => end(null));
    socket.once("secureConnect", () => {
      const { valid_to, issuer } = socket.getPeerCertificate();
      const { authorizationError } = socket;
      const fault = socket.authorized ? null : (authorizationError?.message ?? String(authorizationError));
      end({ validTo: new Date(valid_to), issuer: String(issuer?.O ?? issuer?.CN ?? "unknown"), fault });
    });
  });
}
