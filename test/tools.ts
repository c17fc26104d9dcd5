import { findProgram, type Program, type ProgramSpec } from "../scripts/services/debian.ts";

/** Programs that only tests of the operation need: the installed one, or the distribution's, unpacked into the cache. */
const SPECS = {
  nginx: {
    title: "nginx",
    names: ["nginx"],
    folder: "nginx",
    file: "usr/sbin/nginx",
    packages: ["nginx", "nginx-core", "nginx-common", "libpcre2-8-0"],
    bare: ["libssl3", "libssl3t64", "zlib1g", "libcrypt1"],
    advice: "install nginx",
    versionArgs: ["-v"],
  },
  openssl: {
    title: "OpenSSL",
    names: ["openssl"],
    folder: "openssl",
    file: "usr/bin/openssl",
    packages: ["openssl"],
    bare: ["libssl3", "libssl3t64"],
    advice: "install openssl",
    versionArgs: ["version"],
  },
  promtool: {
    title: "promtool",
    names: ["promtool"],
    folder: "prometheus",
    file: "usr/bin/promtool",
    packages: ["prometheus", "promtool"],
    advice: "install prometheus",
  },
  prometheus: {
    title: "Prometheus",
    names: ["prometheus"],
    folder: "prometheus",
    file: "usr/bin/prometheus",
    packages: ["prometheus", "promtool"],
    advice: "install prometheus",
  },
  shellcheck: {
    title: "shellcheck",
    names: ["shellcheck"],
    folder: "shellcheck",
    file: "usr/bin/shellcheck",
    packages: ["shellcheck", "libgmp10", "libffi8"],
    advice: "install shellcheck",
  },
  age: {
    title: "age",
    names: ["age"],
    folder: "age",
    file: "usr/bin/age",
    packages: ["age"],
    advice: "install age",
  },
  restic: {
    title: "restic",
    names: ["restic"],
    folder: "restic",
    file: "usr/bin/restic",
    packages: ["restic"],
    advice: "install restic",
    versionArgs: ["version"],
  },
  "systemd-analyze": {
    title: "systemd-analyze",
    names: ["systemd-analyze"],
    folder: "systemd",
    file: "usr/bin/systemd-analyze",
    packages: [
      "systemd",
      "libsystemd-shared",
      "libseccomp2",
      "libkmod2",
      "libapparmor1",
      "libip4tc2",
      "libcryptsetup12",
    ],
    bare: "libmount1 libblkid1 libacl1 libcap2 libcap-ng0 libaudit1 libpam0g libselinux1 libpcre2-8-0 libgcrypt20 libgpg-error0 libssl3 libssl3t64 libzstd1 liblz4-1 liblzma5 libcrypt1".split(
      " ",
    ),
    advice: "install systemd",
  },
  debootstrap: {
    title: "debootstrap",
    names: ["debootstrap"],
    folder: "debootstrap",
    file: "usr/sbin/debootstrap",
    packages: ["debootstrap", "debian-archive-keyring"],
    folders: { DEBOOTSTRAP_DIR: "usr/share/debootstrap" },
    advice: "install debootstrap",
  },
} satisfies Record<string, ProgramSpec>;

/** Finds a program, or fetches it once. Rejects with a sentence that says what to install. */
export function tool(name: keyof typeof SPECS): Promise<Program> {
  return findProgram(SPECS[name], () => undefined);
}
