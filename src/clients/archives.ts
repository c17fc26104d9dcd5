import { rm } from "node:fs/promises";
import { runProgram, type Command } from "./programs.ts";

const PLAIN = ["--sort=name", "--numeric-owner", "--owner=0", "--group=0"];

/** Packs the named folders inside `folder` into the new file `output`, and removes them. Not compressed: restic finds what is the same. */
export async function packFolders(folder: string, names: string[], output: string, signal: AbortSignal): Promise<void> {
  await runProgram({ program: "tar", args: ["--create", ...PLAIN, `--directory=${folder}`, ...names], output, signal });
  for (const name of names) await rm(`${folder}/${name}`, { recursive: true });
}

/** Unpacks a file of `packFolders` into `folder`. */
export async function unpack(file: string, folder: string): Promise<void> {
  await runProgram({
    program: "tar",
    args: ["--extract", `--file=${file}`, `--directory=${folder}`, "--no-same-owner"],
  });
}

/** Encrypts a folder for whoever has one of the recipients' identities; nothing of it touches the disk in clear. */
export async function encryptFolder(
  folder: string,
  input: { recipients: string[]; output: string; signal: AbortSignal },
): Promise<void> {
  const tar: Command = { program: "tar", args: ["--create", `--directory=${folder}`, "."], signal: input.signal };
  const args = input.recipients.flatMap((recipient) => ["--recipient", recipient]);
  await runProgram({ program: "age", args, input: tar, output: input.output, signal: input.signal });
}
