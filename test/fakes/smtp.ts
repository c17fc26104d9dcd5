import type { AddressInfo } from "node:net";
import { SMTPServer } from "smtp-server";

/** A mail as the server took it, decoded as far as tests look. */
export interface TakenMail {
  to: string;
  raw: string;
  messageId: string;
  subject: string;
  /** The plain part. */
  text: string;
  html: string;
}

/**
 * What the server does with the next mails: takes them; refuses the address for good (550) or for now (451); drops the
 * connection before or after it took the mail; says nothing any more, before it took the mail or after.
 */
type Behaviour = "take" | "refuse" | "later" | "drop" | "takeAndDrop" | "hang" | "takeAndHang";

export interface FakeSmtp {
  url: string;
  mails: TakenMail[];
  /** How many deliveries were begun (RCPT). */
  begun(): number;
  behave(behaviour: Behaviour): void;
  /** The newest mail to this address. */
  to(recipient: string, subject?: RegExp): TakenMail | undefined;
  close(): Promise<void>;
}

/** A real SMTP server on a socket of its own; `secure` with TLS from the first byte (and a certificate nobody signed). */
export async function startFakeSmtp({ port = 0, secure = false } = {}): Promise<FakeSmtp> {
  const mails: TakenMail[] = [];
  let begun = 0;
  let behaviour: Behaviour = "take";
  const refusal = (code: number) =>
    Object.assign(new Error("5.1.1 that address <somebody@example.org> is not known"), { responseCode: code });

  const server = new SMTPServer({
    secure,
    authOptional: true,
    disabledCommands: ["STARTTLS"],
    logger: false,
    closeTimeout: 100,
    onRcptTo(_address, session, done) {
      begun += 1;
      if (behaviour === "hang") return;
      if (behaviour === "drop") return cut(session.id);
      if (behaviour === "refuse") return done(refusal(550));
      if (behaviour === "later") return done(refusal(451));
      done();
    },
    onData(stream, session, done) {
      const pieces: Buffer[] = [];
      stream.on("data", (piece: Buffer) => pieces.push(piece));
      stream.on("end", () => {
        const taken = parse(Buffer.concat(pieces).toString("utf8"), session.envelope.rcptTo[0]?.address ?? "");
        mails.push(taken);
        if (behaviour === "takeAndDrop") return cut(session.id);
        if (behaviour !== "takeAndHang") done();
      });
    },
  });
  const cut = (id?: string) => {
    for (const connection of server.connections)
      if (id === undefined || connection.id === id) connection._socket.destroy();
  };
  server.on("error", () => undefined);
  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  const { port: listening } = server.server.address() as AddressInfo;
  return {
    url: `${secure ? "smtps" : "smtp"}://127.0.0.1:${listening}`,
    mails,
    begun: () => begun,
    behave: (next) => void (behaviour = next),
    to: (recipient, subject = /./) => mails.findLast((mail) => mail.to === recipient && subject.test(mail.subject)),
    async close() {
      cut();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

function parse(raw: string, to: string): TakenMail {
  const [head = ""] = raw.split("\r\n\r\n", 1);
  const headers = head.replace(/\r\n[ \t]+/g, " ");
  const header = (name: string) => new RegExp(`^${name}: (.*)$`, "im").exec(headers)?.[1]?.trim() ?? "";
  const boundary = /boundary="([^"]+)"/.exec(headers)?.[1] ?? "";
  const part = (type: string) => {
    const found = raw.split(`--${boundary}`).find((piece) => piece.includes(`Content-Type: ${type}`)) ?? "";
    const [partHead = "", ...body] = found.replace(/^\r\n/, "").split("\r\n\r\n");
    const encoding = /Content-Transfer-Encoding: (\S+)/i.exec(partHead)?.[1] ?? "7bit";
    return decode(body.join("\r\n\r\n"), encoding).replaceAll("\r\n", "\n");
  };
  return {
    to,
    raw,
    messageId: header("Message-ID"),
    subject: header("Subject"),
    text: part("text/plain"),
    html: part("text/html"),
  };
}

function decode(body: string, encoding: string): string {
  if (encoding === "base64") return Buffer.from(body, "base64").toString("utf8");
  if (encoding !== "quoted-printable") return body;
  const bytes = body.replace(/=\r\n/g, "").replace(/=([0-9A-F]{2})/g, (_, hex: string) => {
    return String.fromCharCode(Number.parseInt(hex, 16));
  });
  return Buffer.from(bytes, "latin1").toString("utf8");
}
