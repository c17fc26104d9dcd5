import { isIPv4, isIPv6 } from "node:net";

/**
 * The network that an address belongs to, as far as one home or one phone keeps it: an IPv4 address itself, of IPv6 the
 * first 64 bits. Null for what is no address.
 */
export function networkOf(ip: string | null): string | null {
  if (ip === null) return null;
  if (isIPv4(ip)) return ip;
  const groups = groupsOf(ip);
  if (!groups) return null;
  return mappedIpv4(groups) ?? `${groups.slice(0, 4).join(":")}::/64`;
}

/** An address as it is shown in a mail: enough to recognise one's own, too little to find a house. */
export function coarseNetworkOf(ip: string | null): string | null {
  const network = networkOf(ip);
  if (network === null) return null;
  if (isIPv4(network)) return `${network.split(".").slice(0, 3).join(".")}.x`;
  return `${network.split(":").slice(0, 3).join(":")}:…`;
}

/** Eight groups of hexadecimal digits without leading zeros. */
function groupsOf(ip: string): string[] | null {
  const bare = ip.split("%")[0]!;
  if (!isIPv6(bare)) return null;
  // The URL parser writes it in one way, whatever way it came in.
  const [head = "", tail] = new URL(`http://[${bare}]`).hostname.slice(1, -1).split("::");
  const [left, right] = [head, tail ?? ""].map((part) => (part === "" ? [] : part.split(":")));
  return [...left!, ...Array<string>(8 - left!.length - right!.length).fill("0"), ...right!];
}

function mappedIpv4(groups: string[]): string | null {
  if (groups.slice(0, 6).join(":") !== "0:0:0:0:0:ffff") return null;
  const numbers = groups.slice(6).map((group) => Number.parseInt(group, 16));
  return numbers.flatMap((number) => [number >> 8, number & 255]).join(".");
}
