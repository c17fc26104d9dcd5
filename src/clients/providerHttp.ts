const LIMIT_BYTES = 256 * 1024;

/** How long a provider may take to answer, its body included. */
export const PROVIDER_TIMEOUT_MS = 5_000;

/**
 * Asks an identity provider; bounded in time (headers and body together) and in size, since a person waits for it and a
 * broken server must not fill our memory. Follows no redirect. Throws when there is no whole answer.
 */
export async function askProvider(
  url: string,
  init: Pick<RequestInit, "method" | "headers" | "body">,
  signal: AbortSignal = AbortSignal.timeout(PROVIDER_TIMEOUT_MS),
): Promise<{ status: number; text: string }> {
  const response = await fetch(url, { ...init, redirect: "manual", signal });
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of response.body ?? []) {
    bytes += chunk.length;
    if (bytes > LIMIT_BYTES) throw new Error(`the provider's answer is longer than ${LIMIT_BYTES} bytes`);
    chunks.push(chunk);
  }
  signal.throwIfAborted();
  return { status: response.status, text: Buffer.concat(chunks).toString("utf8") };
}
