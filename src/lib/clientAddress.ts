import { isIP } from "node:net";

/**
 * The address that a request came from. Each of `trustedProxies` proxies of ours adds its peer to the right end of
 * X-Forwarded-For, so the entry of the outermost is that many places from the right; whatever stands left of it was
 * written by the client. A header that is missing, too short or no address there says nothing: the peer's address.
 */
export function clientAddress(
  peer: string | null,
  forwardedFor: string | null | undefined,
  trustedProxies: number,
): string | null {
  const entries = trustedProxies > 0 ? (forwardedFor ?? "").split(",") : [];
  const forwarded = entries.length >= trustedProxies ? entries.at(-trustedProxies) : undefined;
  return (forwarded === undefined ? null : parseAddress(forwarded)) ?? parseAddress(peer ?? "");
}

/** What throttles count by, and what a device is known by: a whole IPv6 /64 is one customer's, who could take another address of it for each try. */
export function addressBlock(address: string): string {
  if (isIP(address) !== 6) return address;
  const [head = "", tail] = address.split("::");
  const left = head.split(":").filter((group) => group !== "");
  const right = (tail ?? "").split(":").filter((group) => group !== "");
  const zeros = tail === undefined ? 0 : 8 - left.length - right.length;
  return `${[...left, ...Array<string>(zeros).fill("0"), ...right].slice(0, 4).join(":")}::/64`;
}

/** An address as a mail shows it: enough to recognise one's own, too little to find a house. */
export function coarseAddress(address: string): string {
  if (isIP(address) !== 6) return `${address.split(".").slice(0, 3).join(".")}.x`;
  return `${addressBlock(address).split(":").slice(0, 3).join(":")}:…`;
}

/** One spelling per address: without quotes, brackets, port and zone; IPv4 in IPv6 as IPv4; RFC 5952. Null for no address. */
function parseAddress(text: string): string | null {
  const bare = text
    .trim()
    .replace(/^"(.*)"$/, "$1")
    .replace(/^\[([^\]]*)\](:\d{1,5})?$/, "$1")
    .replace(/^(\d+\.\d+\.\d+\.\d+):\d{1,5}$/, "$1")
    .replace(/%.*$/, "");
  const kind = isIP(bare);
  if (kind !== 6) return kind === 4 ? bare : null;
  const canonical = URL.parse(`http://[${bare}]/`)?.hostname.slice(1, -1) ?? null;
  const mapped = /^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(canonical ?? "");
  if (!mapped) return canonical;
  const [high, low] = [Number.parseInt(mapped[1]!, 16), Number.parseInt(mapped[2]!, 16)];
  return [high >> 8, high & 255, low >> 8, low & 255].join(".");
}
