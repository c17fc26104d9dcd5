/** `systemctl` and `systemd-run` for a rehearsal: hands its words to the ServiceManager of the test and says what that says. */
const answer = await fetch(process.env["STAND_IN_URL"]!, {
  method: "POST",
  body: JSON.stringify(process.argv.slice(2)),
});
const { code, output } = (await answer.json()) as { code: number; output: string };
if (output !== "") console.log(output);
process.exit(code);

export {};
