import type { Queryable } from "../db/connect.ts";
import { listKnownDevices } from "../db/credentials.ts";
import { addressBlock, coarseAddress } from "../lib/clientAddress.ts";
import { sendMail } from "./mail.ts";

/**
 * Mails a user about a sign-in from a device that we don't know, in the caller's transaction and before the session is
 * stored. Known is a device with the name or from the network of any trusted session of the user, ended ones
 * included; the first session of all is nobody's news.
 */
export async function announceNewDevice(
  sql: Queryable,
  { userId, deviceName, ip }: { userId: string; deviceName: string | null; ip: string | null },
): Promise<void> {
  const devices = await listKnownDevices(sql, userId);
  const network = ip && addressBlock(ip);
  const known = devices.some(
    (device) =>
      device.trusted &&
      ((deviceName !== null && device.deviceName === deviceName) ||
        (network !== null && device.ip !== null && addressBlock(device.ip) === network)),
  );
  if (known || devices.length === 0) return;
  const params = { device_name: deviceName, network: ip && coarseAddress(ip), at: new Date().toISOString() };
  await sendMail(sql, userId, { template: "new-device", params });
}
