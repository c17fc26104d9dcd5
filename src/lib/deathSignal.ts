/** Runs the program only while its parent is still $0: who was adopted meanwhile waits for a death that is past. */
const IF_PARENT_LIVES = '[ "$PPID" = "$0" ] && exec "$@"';

/**
 * The words to put before a program and its arguments, so that the kernel sends it `signal` when we die, however we
 * die (prctl(2), PR_SET_PDEATHSIG), and so that it is never begun when we died before the kernel was asked.
 * `privileges` are further flags of setpriv(1), such as another user.
 */
export function dyingWithUs(signal: "INT" | "TERM" | "KILL", privileges: readonly string[] = []): string[] {
  // setpriv sets the death signal last: a change of user would clear it.
  return [
    "setpriv",
    `--pdeathsig=${signal}`,
    ...privileges,
    "--",
    "/bin/sh",
    "-c",
    IF_PARENT_LIVES,
    String(process.pid),
  ];
}
