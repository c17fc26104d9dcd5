import { expect, test } from "bun:test";
import { coarseNetworkOf, networkOf } from "../../src/lib/network.ts";

test("an IPv4 address is its own network, also when IPv6 wraps it", () => {
  expect(["203.0.113.7", "::ffff:203.0.113.7", "::FFFF:cb00:7107"].map(networkOf)).toEqual(
    Array(3).fill("203.0.113.7"),
  );
});

test("of an IPv6 address the first 64 bits count, however it is written", () => {
  const same = ["2001:db8:0:1::1", "2001:DB8::1:ffff:0:0:2", "2001:0db8:0000:0001:aaaa:bbbb:cccc:dddd"];
  expect(same.map(networkOf)).toEqual(Array(3).fill("2001:db8:0:1::/64"));
  expect(networkOf("2001:db8:0:2::1")).toBe("2001:db8:0:2::/64");
  expect(["::1", "::", "fe80::1%eth0"].map(networkOf)).toEqual(["0:0:0:0::/64", "0:0:0:0::/64", "fe80:0:0:0::/64"]);
});

test("what is no address has no network", () => {
  for (const bad of [null, "", "unknown", "1.2.3", "999.1.1.1", "[::1]", "::1]@evil", "1.2.3.4, 5.6.7.8"])
    expect([networkOf(bad), coarseNetworkOf(bad)]).toEqual([null, null]);
});

test("a mail shows only the beginning", () => {
  expect(["203.0.113.7", "2001:db8:0:1::1"].map(coarseNetworkOf)).toEqual(["203.0.113.x", "2001:db8:0:…"]);
});
