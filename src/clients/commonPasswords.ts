import { readFile } from "node:fs/promises";
import { join } from "node:path";

const FILE = join(import.meta.dir, "../../templates/common-passwords.txt");

/**
 * Whether a password is one of the bundled common ones (18,000 of eight characters and more, the list of zxcvbn-ts), also
 * in other case and with digits or signs behind it. Read at the first use; kept as one text of 170 KB, not as a set.
 */
export function createCommonPasswords(): (password: string) => Promise<boolean> {
  let list: Promise<string> | undefined;
  return async (password) => {
    list ??= readFile(FILE, "utf8").then((read) => `\n${read}`);
    const text = await list.catch((error: unknown) => {
      // Read again next time, or one failure would refuse everybody for ever.
      list = undefined;
      throw error;
    });
    const plain = password.normalize("NFKC").toLowerCase();
    return [plain, plain.replace(/[^\p{L}]+$/u, "")].some((word) => word !== "" && text.includes(`\n${word}\n`));
  };
}
