import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { resolve } from "node:path";
import { startFakeOpenAi, type FakeOpenAi } from "../fakes/openai.ts";
import { startMachine, whyNoMachine, type Machine } from "./machine.ts";

/*
 * setup.sh on a bare Debian with a real systemd, beside a Postgres and a Redis that another service brings in Docker (a
 * stand-in for its command, and ports that lead to the real ones of this test run). Needs the network, for packages.
 */

const root = resolve(import.meta.dir, "../..");
const DOMAIN = "reef.test";
const POSTGRES_PORT = 15432;
const REDIS_PORT = 16379;
const MODEL_PORT = 18400;
const MINUTES = 60_000;
const KEY = "sk-of-this-test-0123456789";

const why = whyNoMachine();
if (why !== null) console.error(why);

const postgresUrl = new URL(process.env["TEST_DATABASE_URL"] ?? "postgres://none:none@127.0.0.1:1/none");
const redisUrl = new URL(process.env["TEST_REDIS_URL"] ?? "redis://127.0.0.1:1");

/** What Docker says of the two containers; nothing else is asked of it. */
const dockerCommand = `#!/bin/sh
case "$1 $*" in
  ps*) printf 'other-db-1 postgres:18-alpine\\nother-cache-1 redis:7\\nother-web-1 nginx:1\\n' ;;
  "port port other-db-1 5432/tcp") echo 127.0.0.1:${POSTGRES_PORT} ;;
  "port port other-cache-1 6379/tcp") echo 127.0.0.1:${REDIS_PORT} ;;
  inspect*Cmd*other-cache-1) printf 'redis-server\\n--requirepass\\n${redisUrl.password}\\n' ;;
  inspect*Env*other-db-1) printf 'PATH=/bin\\nPOSTGRES_USER=${postgresUrl.username}\\nPOSTGRES_PASSWORD=${postgresUrl.password}\\n' ;;
  *) exit 1 ;;
esac
`;

/** The state of folders: names, modes, owners, links, sizes, and when each was written last. */
const stateOf = (folders: string) =>
  `find ${folders} -xdev -not -path '/var/lib/systemd/*' -not -path '/var/lib/fail2ban*' -not -path '/root/.npm*' ` +
  "-not -path '/root/reef*' -printf '%p %m %u %g %l %s %T@\\n' | LC_ALL=C sort";
const PROGRAMS_AND_SETTINGS = "/etc /opt /usr /var/www /var/backups";

function changed(before: string, after: string): string[] {
  const [old, now] = [new Set(before.split("\n")), new Set(after.split("\n"))];
  return [...old].filter((line) => !now.has(line)).concat([...now].filter((line) => !old.has(line)));
}

describe.skipIf(why !== null)("setup.sh on a bare server", () => {
  let machine: Machine;
  let model: FakeOpenAi;
  const setup = (options: string) =>
    machine.exec(`/root/reef/scripts/setup.sh ${options}`, { timeoutMs: 18 * MINUTES });
  const chat = (say: string) =>
    machine.exec(
      `cd /root && NODE_EXTRA_CA_CERTS=/etc/ssl/reef/${DOMAIN}/fullchain.pem REEF_DATA_DIR=/root/reef-chat ` +
        `/opt/reef/current/scripts/bun /opt/reef/current/scripts/chat.ts --url https://${DOMAIN} ` +
        `--email somebody@example.com --password 'a long enough one 71' --say '${say}'`,
      { timeoutMs: 4 * MINUTES },
    );

  beforeAll(async () => {
    model = await startFakeOpenAi();
    const ports = {
      [POSTGRES_PORT]: Number(postgresUrl.port),
      [REDIS_PORT]: Number(redisUrl.port),
      [MODEL_PORT]: Number(new URL(model.url).port),
    };
    machine = await startMachine({ name: "setup", ports });
    await machine.run("cat > /usr/local/bin/docker && chmod 755 /usr/local/bin/docker", { input: dockerCommand });
    await machine.copyIn(root, "/root/reef", { tracked: true });
    const answers = `OPENAI_API_KEY=${KEY}\nOPENAI_BASE_URL=http://127.0.0.1:${MODEL_PORT}/v1\nDATABASE_ROLE=reef_app\nDATABASE_NAME=reef_app\n`;
    await machine.run("umask 077; cat > /root/reef-answers.env", { input: answers });
    await machine.run(`echo '127.0.0.1 ${DOMAIN}' >> /etc/hosts`);
  }, 5 * MINUTES);

  afterAll(async () => {
    await machine?.stop();
    await model?.close();
  }, 5 * MINUTES);

  test("a dry run says what it would do, and changes nothing", async () => {
    const everything = stateOf(`${PROGRAMS_AND_SETTINGS} /var/lib /root`);
    const before = await machine.run(everything);
    const { code, stdout, stderr } = await setup(`--dry-run --domain ${DOMAIN} --answers /root/reef-answers.env`);
    expect(stderr).toBe("");
    expect(code).toBe(0);
    expect(stdout).toContain("would    apt-get install age systemd-timesyncd");
    expect(stdout).toContain("would    user reef-gateway, without a shell");
    expect(stdout).toContain("would    /etc/reef/reef.env");
    expect(stdout).toContain("would    everything else shut (ufw)");
    expect(stdout).toContain("missing  SMTP_URL: no mail goes out");
    expect(stdout).not.toContain(KEY);
    // Not toBe: a difference of these would be printed whole.
    expect(changed(before, await machine.run(everything))).toEqual([]);
  });

  test("what it is told is looked at before anything is done", async () => {
    expect(await setup("--no-such-option")).toMatchObject({ code: 2 });
    await machine.run("echo A=1 > /root/reef-open.env; chmod 644 /root/reef-open.env");
    const open = await setup("--answers /root/reef-open.env");
    expect(open).toMatchObject({ code: 2 });
    expect(open.stderr).toContain("chmod 600");
    await machine.run("echo NO_SUCH_SETTING=geheim > /root/reef-open.env; chmod 600 /root/reef-open.env");
    const unknown = await setup("--answers /root/reef-open.env");
    expect(unknown).toMatchObject({ code: 2 });
    expect(unknown.stderr).toContain("NO_SUCH_SETTING");
    expect(unknown.stderr).not.toContain("geheim");
  });

  test(
    "a real run ends with Reef answering through nginx",
    async () => {
      const { code, stdout, stderr } = await setup(`--domain ${DOMAIN} --answers /root/reef-answers.env`);
      if (![0, 3].includes(code)) throw new Error(`${stdout}\n${stderr}\n${machine.console().slice(-3000)}`);
      for (const secret of [KEY, postgresUrl.password, redisUrl.password]) {
        expect(stdout).not.toContain(secret);
        expect(stderr).not.toContain(secret);
      }
      const answered = await machine.run(
        `curl -fsS --cacert /etc/ssl/reef/${DOMAIN}/fullchain.pem https://${DOMAIN}/readyz`,
      );
      expect(JSON.parse(answered)).toMatchObject({ status: "ok" });
      const limits = await machine.run("cat /proc/$(pgrep -f '[n]ginx: worker' | head -n 1)/limits; nginx -T 2>&1");
      expect(limits).toMatch(/Max open files +16384 /);
      expect(limits).toContain("worker_connections 8192;");
    },
    20 * MINUTES,
  );

  test(
    "a second run changes nothing",
    async () => {
      const before = await machine.run(stateOf(PROGRAMS_AND_SETTINGS));
      const started = await machine.run(
        "systemctl show -p MainPID reef-api@1 reef-api@2 reef-gateway@main reef-files@main",
      );
      const { stdout } = await setup("");
      expect(stdout).toMatch(/setup: \d+ right already, 0 changed/);
      expect((await setup("--dry-run")).stdout).toMatch(/setup: dry run: \d+ right already, 0 to change/);
      expect(changed(before, await machine.run(stateOf(PROGRAMS_AND_SETTINGS)))).toEqual([]);
      expect(
        await machine.run("systemctl show -p MainPID reef-api@1 reef-api@2 reef-gateway@main reef-files@main"),
      ).toBe(started);
    },
    8 * MINUTES,
  );

  test(
    "a certificate is asked for when there is an address for it, and used when it is there",
    async () => {
      // The authority is not reachable from here: certbot is a stand-in that refuses first, and then has one.
      const live = `/etc/letsencrypt/live/${DOMAIN}`;
      const standIn = (body: string) =>
        machine.run("cat > /usr/local/bin/certbot && chmod 755 /usr/local/bin/certbot", {
          input: `#!/bin/sh\necho "$*" > /root/certbot-asked\n${body}\n`,
        });
      const served = () => machine.run("nginx -T 2>/dev/null | grep -o 'ssl_certificate .*'");
      await standIn("echo 'no such name in DNS'; exit 1");
      const refused = await setup("--email ops@example.com");
      expect(refused.stdout).toContain(`missing  a certificate for ${DOMAIN}`);
      expect(refused.stderr).toContain("no such name in DNS");
      expect(refused.code).not.toBe(1);
      expect(await served()).toContain(`/etc/ssl/reef/${DOMAIN}/fullchain.pem`);
      await standIn(`mkdir -p ${live} && cp /etc/ssl/reef/${DOMAIN}/*.pem ${live}/`);
      // The address is remembered.
      expect((await setup("")).stdout).toContain(`changed  certificate for ${DOMAIN}`);
      const asked = await machine.run("cat /root/certbot-asked");
      expect(asked).toContain(`--webroot -w /var/www/letsencrypt -d ${DOMAIN} -m ops@example.com`);
      expect(await served()).toContain(`${live}/fullchain.pem`);
    },
    12 * MINUTES,
  );

  test("secrets are root's, and neither user reads the other's", async () => {
    const files = await machine.run("find /etc/reef -type f -printf '%m %u\\n' | sort -u");
    expect(files).toBe("600 root\n");
    const as = (user: string, command: string) =>
      machine.exec(`setpriv --reuid=${user} --regid=${user} --clear-groups ${command}`);
    for (const user of ["reef", "reef-gateway"]) {
      for (const file of ["reef.env", "gateways/main.env", "backup.env"])
        expect(await as(user, `cat /etc/reef/${file}`)).toMatchObject({ stdout: "" });
      expect((await as(user, "ls /var/backups/reef")).code).not.toBe(0);
    }
    const env = (await machine.run("systemctl show -p MainPID --value reef-api@1")).trim();
    expect(await as("reef-gateway", `cat /proc/${env}/environ`)).toMatchObject({ stdout: "" });
    expect((await as("reef", "ls /var/lib/reef-gateway/main")).code).not.toBe(0);
    expect((await as("reef-gateway", "ls /var/lib/reef")).code).not.toBe(0);
    // The same command as root: the test above can fail.
    expect(await machine.run("cat /etc/reef/reef.env")).toContain(KEY);
    const listed = await machine.run("ps axww -o args");
    for (const line of (await machine.run("grep -E '(TOKEN|SECRET|KEY)=' /etc/reef/reef.env")).trim().split("\n"))
      expect(listed).not.toContain(line.split("=")[1]!);
  });

  test("the gateway runs under its own user with its memory limited", async () => {
    const shown = await machine.run("systemctl show -p User,MainPID,MemoryMax,Slice reef-gateway@main");
    const value = (name: string) => new RegExp(`^${name}=(.*)$`, "m").exec(shown)?.[1] ?? "";
    expect([value("User"), value("Slice"), value("MemoryMax")]).toEqual([
      "reef-gateway",
      "openclaw.slice",
      String(14 * 1024 ** 3),
    ]);
    expect((await machine.run(`ps -o user:20= -p ${value("MainPID")}`)).trim()).toBe("reef-gateway");
    const group = await machine.run(
      `p=$(sed -n 's/^[0-9]*:memory://p; s/^0:://p' /proc/${value("MainPID")}/cgroup | head -1); ` +
        "cat /sys/fs/cgroup/memory$p/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup$p/memory.max",
    );
    expect(Number(group)).toBe(14 * 1024 ** 3);
  });

  test(
    "a chat is answered, through nginx and the gateway",
    async () => {
      const { code, stdout, stderr } = await chat("hello there");
      expect({ code, stderr: code === 0 ? "" : stderr }).toEqual({ code: 0, stderr: "" });
      // The scripted model greets and asks for a name.
      expect(stdout).toMatch(/name/i);
      expect(model.requests.length).toBeGreaterThan(0);
    },
    5 * MINUTES,
  );

  test(
    "a line of a refused sign-in is what fail2ban looks for, and it bans by it",
    async () => {
      const body = `{"email":"nobody@example.com","password":"not the right one"}`;
      const tell = `curl -s -o /dev/null -w '%{http_code}' -H 'content-type: application/json' -H 'X-Forwarded-For: 203.0.113.77'`;
      expect(await machine.run(`${tell} -d '${body}' http://127.0.0.1:3001/api/auth/login`)).toBe("401");
      const line = await machine.run("journalctl -u reef-api@1 -o cat | grep 'sign-in refused' | tail -1");
      expect(line).toContain('"ip":"203.0.113.77"');
      expect(line).not.toContain("nobody");
      const checked = await machine.run(
        "journalctl -u reef-api@1 -o short | grep 'sign-in refused' > /tmp/lines; fail2ban-regex /tmp/lines reef-signin",
      );
      expect(checked).toMatch(/Lines: (\d+) lines, 0 ignored, \1 matched, 0 missed/);
      for (let tries = 0; tries < 45; tries++)
        await machine.run(`${tell} -d '${body}' http://127.0.0.1:3001/api/auth/login`);
      const banned = await machine.run(
        "for n in $(seq 100); do fail2ban-client get reef-signin banip | grep . && break; sleep 0.2; done",
      );
      expect(banned.trim()).toBe("203.0.113.77");
    },
    3 * MINUTES,
  );

  test("only SSH, 80 and 443 are open to the world", async () => {
    const status = await machine.run("ufw status verbose");
    expect(status).toContain("Default: deny (incoming)");
    const open = [...status.matchAll(/^(\d+)\/tcp +ALLOW IN/gm)].map((match) => Number(match[1]));
    expect([...new Set(open)].sort((a, b) => a - b)).toEqual([22, 80, 443]);
    // By the firewall's rules and by where it listens.
    const listening = await machine.run(
      "ss -Hltn | awk '{print $4}' | grep -v '^127\\.\\|^\\[::1\\]' | sed 's/.*://' | sort -un",
    );
    expect(listening.trim().split("\n")).toEqual(["22", "80", "443"]);
  });

  test(
    "the reef command does its jobs with the server's settings",
    async () => {
      expect(await machine.run("reef verify", { timeoutMs: 3 * MINUTES })).toContain("0 violated");
      expect(await machine.run("reef status")).toContain("reef-api@1.service");
      expect(await machine.exec("reef nonsense")).toMatchObject({ code: 64 });
      const refused = await machine.exec("setpriv --reuid=reef --regid=reef --clear-groups reef verify");
      expect(refused).toMatchObject({ code: 64 });
    },
    4 * MINUTES,
  );

  test(
    "the doctor is content but for what this server can't have, and --fix mends what is safe",
    async () => {
      // No mail server, nobody to tell, a certificate of our own making, Docker only by name.
      const lacking = ["settings.mail", "network.certificate", "network.front", "alarms.ways", "versions.pg_dump"];
      const looked = JSON.parse((await machine.exec("reef doctor --json", { timeoutMs: 4 * MINUTES })).stdout) as {
        findings: { id: string; status: string; found: string }[];
      };
      const are = (status: string) => looked.findings.filter((one) => one.status === status);
      expect(are("unchecked")).toEqual([]);
      expect(are("bad").filter(({ id }) => !lacking.includes(id))).toEqual([]);
      expect(are("ok").map(({ id }) => id)).toEqual(
        expect.arrayContaining(["chat.two_at_once", "machine.limits_gateway", "gateway.configuration"]),
      );
      for (const secret of [KEY, postgresUrl.password]) expect(JSON.stringify(looked)).not.toContain(secret);
      await machine.run("chmod 644 /etc/reef/reef.env; systemctl disable --now reef-backup.timer 2>/dev/null");
      const mended = await machine.run("reef doctor --only permissions,jobs --fix");
      expect(mended.match(/fixed: .*/g)?.toSorted()).toEqual([
        "fixed: chown root: /etc/reef/reef.env && chmod 0600 /etc/reef/reef.env",
        "fixed: systemctl enable --now reef-backup.timer",
      ]);
      expect(await machine.run("stat -c %a /etc/reef/reef.env; systemctl is-enabled reef-backup.timer")).toBe(
        "600\nenabled\n",
      );
    },
    6 * MINUTES,
  );

  test(
    "a gateway that stands still is restarted by the health check, and answers again",
    async () => {
      const pid = async () => (await machine.run("systemctl show -p MainPID --value reef-gateway@main")).trim();
      const before = await pid();
      await machine.run(`kill -STOP ${before}`);
      await machine.run("systemctl start reef-check-health.service", { timeoutMs: 5 * MINUTES });
      const said = await machine.run("journalctl -u reef-check-health -o cat | grep '^check-health: ' | tail -1");
      expect(said).toContain("restarted and answers again (restart 1 of 3 this hour)");
      expect(await pid()).not.toBe(before);
      expect(await machine.run("ls /run/reef/restart-gateway")).toBe("");
      expect((await chat("are you well again")).code).toBe(0);
    },
    6 * MINUTES,
  );

  test(
    "reef deploy changes the release and goes back, also by itself, while every request is answered",
    async () => {
      const source = (name: string, change: string) =>
        machine.run(
          `cp -a /root/reef /root/${name} && cd /root/${name} && sed -i 's/"version": ".*"/"version": "${name}"/' package.json && ${change}`,
        );
      const deploy = (what: string) =>
        machine.exec(`reef deploy ${what} 2>&1 | tail -n 40`, { timeoutMs: 8 * MINUTES });
      const runs = async () => (await machine.run("readlink /proc/$(systemctl show -P MainPID reef-api@2)/cwd")).trim();
      const first = await runs();
      const ask = `curl -s -o /dev/null -w '%{http_code}\\n' --cacert /etc/ssl/reef/${DOMAIN}/fullchain.pem https://${DOMAIN}/readyz`;
      await machine.run(`systemd-run --quiet --unit=asking sh -c "while :; do ${ask} >> /tmp/asked; sleep 0.1; done"`);
      await source("next", "touch systemd/reef-of-next.target");
      expect((await deploy("/root/next")).stdout).toMatch(/deploy: done: every process runs next-[0-9a-f]{12}\n$/);
      expect(await runs()).toContain("/next-");
      await source("bad", `sed -i '1i throw new Error("bad");' src/main.ts`);
      const bad = await deploy("/root/bad");
      expect(bad.stdout).toMatch(
        /FAILED: bad-[0-9a-f]{12} did not become ready; every process runs next-[0-9a-f]{12} again\.\n$/,
      );
      expect((await deploy("--back")).stdout).toContain(`done: every process runs ${first.split("/").at(-1)}`);
      expect(await runs()).toBe(first);
      expect(await machine.run("systemctl stop asking; sort /tmp/asked | uniq -c | awk '{ print $2 }'")).toBe("200\n");
      expect(await machine.run("systemctl is-active reef-api@1 reef-api@2 reef-files@main")).toBe("active\n".repeat(3));
    },
    15 * MINUTES,
  );

  test(
    "a reboot brings everything back, and the assistant remembers",
    async () => {
      await machine.reboot();
      await machine.run(
        `for n in $(seq 300); do curl -fsS --cacert /etc/ssl/reef/${DOMAIN}/fullchain.pem https://${DOMAIN}/readyz && exit 0; sleep 0.3; done; exit 1`,
      );
      expect(await machine.run("systemctl is-active reef-api@1 reef-api@2 reef-gateway@main nginx fail2ban")).toBe(
        "active\n".repeat(5),
      );
      expect(await machine.run("ufw status")).toContain("Status: active");
      expect(await machine.run("systemctl list-units --failed --no-legend 'reef-*'")).toBe("");
      const { code } = await chat("and are you there again");
      expect(code).toBe(0);
    },
    8 * MINUTES,
  );
});
