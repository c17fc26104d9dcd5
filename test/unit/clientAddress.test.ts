import { describe, expect, test } from "bun:test";
import { addressBlock, coarseAddress, clientAddress } from "../../src/lib/clientAddress.ts";

const PEER = "10.0.0.9";

describe("whose address counts", () => {
  const cases: [string, string | null, number, string][] = [
    ["no proxy of ours: the header is the client's own words", "203.0.113.7", 0, PEER],
    ["one proxy: what it added, not what the client wrote", "6.6.6.6, 203.0.113.7", 1, "203.0.113.7"],
    ["two proxies: what the outer one added", "6.6.6.6, 203.0.113.7, 10.0.0.1", 2, "203.0.113.7"],
    ["exactly as many entries as proxies", "203.0.113.7, 10.0.0.1", 2, "203.0.113.7"],
    ["fewer entries than proxies", "203.0.113.7", 2, PEER],
    ["no header", null, 1, PEER],
    ["an empty header", "", 1, PEER],
    ["no address there", "203.0.113.7, unknown", 1, PEER],
    ["an empty entry there", "203.0.113.7,", 1, PEER],
    ["an obfuscated name (RFC 7239)", "_hidden", 1, PEER],
    ["a name", "localhost", 1, PEER],
    ["a number that URL would read as IPv4", "2130706433", 1, PEER],
    ["an octal spelling", "0177.0.0.1", 1, PEER],
    ["too large a part", "256.0.0.1", 1, PEER],
    ["a very long header", `${"6.6.6.6, ".repeat(5000)}203.0.113.7`, 1, "203.0.113.7"],
  ];
  for (const [name, header, proxies, expected] of cases) {
    test(name, () => expect(clientAddress(PEER, header, proxies)).toBe(expected));
  }
  test("no peer and no header", () => expect(clientAddress(null, null, 1)).toBeNull());
  test("the peer's address is normalised, too", () =>
    expect(clientAddress("::ffff:127.0.0.1", null, 0)).toBe("127.0.0.1"));
});

describe("one spelling per address", () => {
  const cases: [string, string | null][] = [
    ["203.0.113.7:4711", "203.0.113.7"],
    ["[2001:db8::1]:443", "2001:db8::1"],
    ["[2001:db8::1]", "2001:db8::1"],
    ['"[2001:db8::1]:443"', "2001:db8::1"],
    ["2001:0DB8:0000:0000:0000:0000:0000:0001", "2001:db8::1"],
    ["2001:DB8::A", "2001:db8::a"],
    ["fe80::1%eth0", "fe80::1"],
    ["::ffff:203.0.113.7", "203.0.113.7"],
    ["::FFFF:cb00:7107", "203.0.113.7"],
    ["[::ffff:203.0.113.7]:443", "203.0.113.7"],
    ["::1", "::1"],
    ["  203.0.113.7  ", "203.0.113.7"],
    ["203.0.113.7:99999999", null],
    ["2001:db8::1::2", null],
    ["[2001:db8::1", null],
  ];
  for (const [text, expected] of cases) test(text, () => expect(clientAddress(null, text, 1)).toBe(expected));
});

test("throttles count IPv4 by address and IPv6 by /64", () => {
  expect(addressBlock("203.0.113.7")).toBe("203.0.113.7");
  expect(addressBlock("2001:db8:1:2:3:4:5:6")).toBe("2001:db8:1:2::/64");
  expect(addressBlock("2001:db8:1:2::9")).toBe("2001:db8:1:2::/64");
  expect(addressBlock("2001:db8::1")).toBe("2001:db8:0:0::/64");
  expect(addressBlock("::1")).toBe("0:0:0:0::/64");
  expect(addressBlock("2001:db8:1:2::")).toBe("2001:db8:1:2::/64");
  expect(addressBlock("1::2:3:4:5:6:7")).toBe("1:0:2:3::/64");
});

test("a mail shows only the beginning of an address", () => {
  expect(["203.0.113.7", "2001:db8:0:1::1"].map(coarseAddress)).toEqual(["203.0.113.x", "2001:db8:0:…"]);
});
