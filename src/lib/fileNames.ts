const NAME_LIMIT_BYTES = 120;
/** Control characters, line ends, and what turns the direction of text around or can't be seen. */
// oxlint-disable-next-line no-control-regex, no-misleading-character-class
const UNSEEN = /[\p{Cc}\p{Zl}\p{Zp}\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/gu;
/** Folder signs and what Windows takes in no name. */
const FORBIDDEN = /[/\\<>:"|?*]/g;
const DEVICE = /^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)/i;

/** A name that every system can unpack, made from any text: one path segment, never `.` or `..`, at most 120 bytes. */
export function toFileName(text: string, fallback: string): string {
  const clean = trim(text.toWellFormed().normalize("NFC").replace(UNSEEN, "").replace(FORBIDDEN, "_"));
  const name = clean === "" ? fallback : clean;
  return shorten(DEVICE.test(name) ? `_${name}` : name, NAME_LIMIT_BYTES);
}

/**
 * Names for a tree of files, the same each time for the same original, and different for different ones: also on
 * systems to which `A` and `a` are one. `nameOf(folder, original)` takes the folder's own, given name.
 */
export function createFileNames(): { nameOf(folder: string, original: string): string } {
  const given = new Map<string, string>();
  const taken = new Set<string>();
  return {
    nameOf(folder, original) {
      const key = `${folder}\u0000${original}`;
      const known = given.get(key);
      if (known !== undefined) return known;
      const wanted = toFileName(original, "_");
      const [stem, extension] = split(wanted);
      let name = wanted;
      for (let n = 2; taken.has(keyOf(folder, name)); n++) name = `${stem} (${n})${extension}`;
      taken.add(keyOf(folder, name));
      given.set(key, name);
      return name;
    },
  };
}

const keyOf = (folder: string, name: string) => `${folder}/${name}`.toLowerCase().toUpperCase().normalize("NFC");

// Windows drops points and blanks at the end; a name of points alone would lead out of its folder.
function trim(name: string): string {
  return name.trim().replace(/[.\s]+$/u, "");
}

/** Cuts the stem, so that the extension stays; never inside a character. */
function shorten(name: string, limitBytes: number): string {
  if (Buffer.byteLength(name) <= limitBytes) return name;
  const [stem, extension] = split(name);
  const room = limitBytes - Buffer.byteLength(extension);
  const cut = new TextDecoder("utf-8", { ignoreBOM: true }).decode(Buffer.from(stem).subarray(0, room), {
    stream: true,
  });
  return (trim(cut) || "_") + extension;
}

function split(name: string): [stem: string, extension: string] {
  const at = name.lastIndexOf(".");
  return at > 0 && name.length - at <= 11 ? [name.slice(0, at), name.slice(at)] : [name, ""];
}
