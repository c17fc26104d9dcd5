import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { makeUser, type Answer, type TestUser } from "../factories.ts";
import { until } from "../harness.ts";
import {
  costOf,
  dayOf,
  expectFree,
  expectSound,
  fixture,
  FIXTURES,
  hearBytes,
  readAnswer,
  send,
  startVoiceTown,
  usePlan,
  useUp,
  type Sent,
  type VoiceTown,
} from "./voiceTown.ts";

let town: VoiceTown;
let user: TestUser;
beforeAll(async () => void (town = await startVoiceTown()));
afterAll(() => town.stop());
beforeEach(async () => {
  town.reset();
  user = await makeUser(town.reef);
});

const NAMES = Object.keys(FIXTURES);
const SPOKEN = NAMES.filter((name) => FIXTURES[name]!.text !== "");
const SILENT = NAMES.filter((name) => name.startsWith("silence"));
const calls = () => town.openai.audio.transcriptionCalls;
const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString("base64");
const hear = (bytes: Uint8Array, headers?: Record<string, string>) => hearBytes(town.reef, user, bytes, headers);
const post = async (body: Sent, headers: Record<string, string> = {}) =>
  readAnswer(await send(town.reef, user, "transcribe", body, headers));
const inJson = (body: unknown, headers: Record<string, string> = {}) =>
  post(typeof body === "string" ? body : JSON.stringify(body), { "content-type": "application/json", ...headers });
function inForm(bytes: Uint8Array, name = "note.bin", type = "text/plain"): Promise<Answer> {
  const form = new FormData();
  form.set("file", new File([bytes as Uint8Array<ArrayBuffer>], name, { type }));
  return post(form);
}

describe("every form, every recording; type, name and format lie", () => {
  for (const name of SPOKEN) {
    test(name, async () => {
      const { text, seconds, sha256 } = FIXTURES[name]!;
      const bytes = fixture(name);
      const answers = [
        await hear(bytes, { "content-type": "audio/x-lie; codecs=none" }),
        await hear(bytes, { "content-type": "application/octet-stream" }),
        await inForm(bytes),
        await inJson({ audio: base64(bytes), format: "a lie" }),
      ];
      for (const answer of answers)
        expect([answer.status, answer.body]).toEqual([200, { text, duration_seconds: seconds }]);
      expect(calls().map((call) => call.sha256)).toEqual(Array(4).fill(sha256));
      const each = Math.max(1, Math.ceil(seconds));
      expect(await dayOf(town.reef, user)).toEqual({
        used: { input: 4 * each, output: 0, characters: 0 },
        ledger: Array(4).fill(`voice_input_seconds committed ${each}`),
      });
      const { headers } = answers.at(-1)!;
      expect([headers.get("x-ratelimit-plan"), headers.get("x-ratelimit-voice-remaining")]).toEqual([
        "free",
        String(120 - 4 * each),
      ]);
    });
  }
});

describe("silence", () => {
  for (const name of SILENT) {
    test(`${name}: empty, free, and the provider is not asked`, async () => {
      const { status, body } = await hear(fixture(name));
      expect([status, body]).toEqual([200, { text: "", duration_seconds: expect.any(Number) }]);
      expect(Math.abs(body.duration_seconds - FIXTURES[name]!.seconds)).toBeLessThan(0.15);
      expect(calls()).toEqual([]);
      await expectFree(town.reef, user);
    });
  }

  test("noise in which the provider hears nobody, or doubts whom it heard, is free, though it costs us", async () => {
    expect((await hear(fixture("noise.wav"))).body.text).toBe("");
    town.openai.audio.hear = () => [{ text: "Thank you.", noSpeechProb: 0.9, avgLogprob: -1.5 }];
    expect((await hear(fixture("noise.mp3"))).body.text).toBe("");
    const before = await costOf(town.reef, user);
    expect((await hear(fixture("speech.wav"))).body.text).toBe("");
    await expectFree(town.reef, user);
    expect((await costOf(town.reef, user)) - before).toBeCloseTo(FIXTURES["speech.wav"]!.seconds * 100, -1);
  });

  test("a quiet voice is no silence", async () => {
    for (const name of ["quiet.wav", "quiet.ogg"])
      expect((await hear(fixture(name))).body.text).toBe(FIXTURES[name]!.text);
  });
});

describe("what is charged", () => {
  test("what the provider reports, less and more; the rest and never more than the limit", async () => {
    const report = async (duration: unknown) => {
      town.openai.audio.hear = () => [{ text: "so long", duration }];
      return (await hear(fixture("speech.wav"))).body.duration_seconds as number;
    };
    expect([await report(0.4), (await dayOf(town.reef, user)).used.input]).toEqual([0.4, 1]);
    expect([await report(30.2), (await dayOf(town.reef, user)).used.input]).toEqual([30.2, 32]);
    // What it does not say, or says in a way that can't be, is what was measured.
    expect([await report(null), (await dayOf(town.reef, user)).used.input]).toEqual([2.235, 35]);
    expect([await report("nonsense"), (await dayOf(town.reef, user)).used.input]).toEqual([2.235, 38]);
    expect([await report(-5), (await dayOf(town.reef, user)).used.input]).toEqual([2.235, 41]);
    await report(1e300);
    expect((await dayOf(town.reef, user)).used.input).toBe(120);
    const refused = await hear(fixture("speech.wav"));
    expect([refused.status, refused.body.code]).toEqual([429, "voice_limit_reached"]);
  });

  test("one second over the rest: refused before anything is sent, and the plan that has more is named", async () => {
    await useUp(town.reef, user, { input: 118 });
    const refused = await hear(fixture("speech.wav"));
    expect([refused.status, refused.body]).toEqual([
      429,
      {
        error: "Today's voice is used up.",
        code: "voice_limit_reached",
        request_id: expect.any(String),
        kind: "voice_input_seconds",
        limit: 120,
        used: 118,
        reset_at: expect.stringMatching(/T00:00:00.000Z$/),
        retry_after: expect.any(Number),
        upgrade_to: "pro",
      },
    ]);
    expect(refused.headers.get("retry-after")).toBe(String(refused.body.retry_after));
    expect(refused.headers.get("x-ratelimit-voice-remaining")).toBe("2");
    expect(calls()).toEqual([]);
    // 1.855 s: the last two seconds.
    expect((await hear(fixture("speech.flac"))).status).toBe(200);
    expect((await hear(fixture("speech.flac"))).body).toMatchObject({ code: "voice_limit_reached", used: 120 });
    await usePlan(town.reef, user, "pro");
    await until("the plan is known", async () => (await hear(fixture("speech.flac"))).status === 200);
  });

  test("an hour of silence costs nothing: it does not fit the day, and is refused as it is", async () => {
    // Silence of 8-bit samples at 4 kHz; 14.4 MB.
    const wav = makeWav({ seconds: 3600, rate: 4000 });
    const refused = await hear(wav);
    expect([refused.status, refused.body.code]).toEqual([429, "voice_limit_reached"]);
    await usePlan(town.reef, user, "premium");
    const heard = await until("the plan is known", async () => {
      const answer = await hear(wav);
      return answer.status === 200 ? answer : null;
    });
    expect([heard.status, heard.body]).toEqual([200, { text: "", duration_seconds: 3600 }]);
    expect(calls()).toEqual([]);
    await expectFree(town.reef, user);
  });

  test("forty at once at a limit of ten: ten are heard, ledger = counter", async () => {
    await useUp(town.reef, user, { input: 100 });
    const answers = await Promise.all(Array.from({ length: 40 }, () => hear(fixture("speech.flac"))));
    expect(answers.filter(({ status }) => status === 200).length).toBe(10);
    expect(answers.filter(({ body }) => body.code === "voice_limit_reached").length).toBe(30);
    expect(calls().length).toBe(10);
    expect((await dayOf(town.reef, user)).used.input).toBe(120);
  });
});

describe("bad input costs nothing", () => {
  const refusal = ({ status, body }: Answer) => [status, body.code, body.details?.[0]?.path];
  const UNREADABLE = [400, "unsupported_audio", undefined];

  test("nothing, one byte, a text, a ZIP, an image, a header alone", async () => {
    const zip = Buffer.from("UEsFBgAAAAAAAAAAAAAAAAAAAAAAAA==", "base64");
    const bytes = [
      "",
      "R",
      "RIFF",
      "just some words",
      "ID3",
      "OggS",
      "fLaC",
      "\u0089PNG\r\n\u001a\n",
      "PK\u0003\u0004 not a sound",
      "\0".repeat(5000),
      "\u00ff".repeat(5000),
    ].map((text) => Buffer.from(text, "latin1"));
    for (const sent of [...bytes, zip, fixture("speech.wav").subarray(0, 44)]) {
      expect([sent.length, refusal(await hear(sent))]).toEqual([sent.length, UNREADABLE]);
      expect([sent.length, refusal(await inForm(sent, "voice.wav", "audio/wav"))]).toEqual([sent.length, UNREADABLE]);
    }
    expect(calls()).toEqual([]);
    await expectFree(town.reef, user);
  });

  test("every recording cut anywhere: unreadable, or heard as what is left of it", async () => {
    await usePlan(town.reef, user, "premium");
    for (const name of NAMES.filter((one) => one.startsWith("speech"))) {
      const whole = fixture(name);
      for (const share of [0.001, 0.01, 0.1, 0.5, 0.9]) {
        const { status, body } = await hear(whole.subarray(0, Math.ceil(whole.length * share)));
        expect([name, share, status === 200 || body.code === "unsupported_audio"]).toEqual([name, share, true]);
        if (status === 200) expect(body.duration_seconds).toBeLessThan(FIXTURES[name]!.seconds + 0.2);
      }
    }
  });

  test("a header that claims the world: believed in nothing", async () => {
    town.openai.audio.hear = () => [{ text: "so little", duration: null }];
    const wav = Buffer.from(fixture("speech.wav"));
    wav.writeUInt32LE(0xffffffff, 4);
    wav.writeUInt32LE(0xfffffff0, 40);
    expect((await hear(wav)).body.duration_seconds).toBeCloseTo(2.235, 1);
    const flac = Buffer.from(fixture("speech.flac"));
    // STREAMINFO: 2^36 - 1 samples, eight channels of 32 bits.
    flac.fill(0xff, 21, 26);
    expect((await hear(flac)).status).toBeOneOf([200, 400]);
    expect((await dayOf(town.reef, user)).used.input).toBeLessThanOrEqual(6);
  });

  test("JSON: malformed, no field, a wrong one, bad base64", async () => {
    const good = base64(fixture("speech.flac"));
    expect(refusal(await inJson("{"))).toEqual([400, "invalid_json", undefined]);
    for (const [body, path] of [
      [{}, "audio"],
      [{ audio: "" }, "audio"],
      [{ audio: 5 }, "audio"],
      [{ audio: null }, "audio"],
      [{ audio: "not base64!" }, "audio"],
      [{ audio: good.slice(0, 101) }, "audio"],
      [{ audio: `data:audio/flac;base64,${good}` }, "audio"],
      [{ audio: good, format: 5 }, "format"],
      [{ audio: good, format: "x".repeat(41) }, "format"],
      [{ audio: good, language: "en" }, "language"],
      [{ file: good }, "audio"],
    ] as const)
      expect([path, refusal(await inJson(body))]).toEqual([path, [400, "validation_failed", path]]);
    expect(refusal(await inJson([]))).toEqual([400, "validation_failed", ""]);
    expect(refusal(await inJson({ audio: good }))).toEqual([200, undefined, undefined]);
  });

  test("a form: no part, two files, a field that is none, text instead of a file, no form at all", async () => {
    const file = new File([fixture("speech.flac")], "a.flac");
    const form = (...parts: [string, string | File][]) => {
      const data = new FormData();
      for (const [name, value] of parts) data.append(name, value as File);
      return post(data);
    };
    for (const [parts, path] of [
      [[], "file"],
      [[["audio", file]], "audio"],
      [
        [
          ["file", file],
          ["file", file],
        ],
        "file",
      ],
      [
        [
          ["file", file],
          ["model", "whisper-1"],
        ],
        "model",
      ],
      [[["file", "some text"]], "file"],
      [Array.from({ length: 40 }, (_, n) => [`f${n}`, "x"]), ""],
    ] as [[string, string | File][], string][])
      expect([path, refusal(await form(...parts))]).toEqual([path, [400, "validation_failed", path]]);
    const bare = '--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nabc';
    for (const [type, body] of [
      ["multipart/form-data", bare],
      ["multipart/form-data; boundary=b", bare],
      ["multipart/form-data; boundary=other", `${bare}\r\n--b--\r\n`],
      ["multipart/form-data; boundary=-", "-".repeat(100_000)],
      ["multipart/form-data; boundary=", bare],
      // A boundary within another parameter, behind which is the one that counts, a thousand times.
      ['multipart/form-data; x="; boundary=a"; boundary=b', `${bare}\r\n`.repeat(1000).concat("--b--\r\n")],
    ] as const)
      expect([type, refusal(await post(body, { "content-type": type }))]).toEqual([
        type,
        [400, "validation_failed", ""],
      ]);
    expect(calls()).toEqual([]);
  });

  test("another content type: 415, whose sentence names the three forms", async () => {
    for (const type of [
      "text/plain",
      "video/mp4",
      "application/x-www-form-urlencoded",
      "audio",
      "audio/",
      "application/jsonp",
    ]) {
      const answer = await hear(fixture("speech.wav"), { "content-type": type });
      expect([type, answer.status, answer.body.code]).toEqual([type, 415, "unsupported_media_type"]);
      for (const form of ["JSON", "multipart/form-data", "audio/*"]) expect(answer.body.error).toContain(form);
    }
  });
});

describe("Idempotency-Key", () => {
  const withKey = (key: string) => ({ "idempotency-key": key });

  test("bare bytes: the first answer again, charged once; other bytes under it are refused", async () => {
    const first = await hear(fixture("speech.ogg"), withKey("a"));
    const again = await hear(fixture("speech.ogg"), withKey("a"));
    expect([again.status, again.body]).toEqual([first.status, first.body]);
    expect(again.headers.get("x-ratelimit-voice-remaining")).toBe("118");
    // As texts, in which bytes that are no UTF-8 look alike, the two would be the same.
    const other = fixture("speech.ogg");
    other[other.length - 1]! ^= 0x80;
    expect((await hear(other, withKey("a"))).body.code).toBe("idempotency_conflict");
    expect([calls().length, (await dayOf(town.reef, user)).ledger]).toEqual([1, ["voice_input_seconds committed 2"]]);
    expect(calls()[0]!.sha256).toBe(createHash("sha256").update(fixture("speech.ogg")).digest("hex"));
  });

  test("a form: its boundary is another at every try, and the request is still the same", async () => {
    const body = (bytes: Uint8Array) => {
      const form = new FormData();
      form.set("file", new File([bytes as Uint8Array<ArrayBuffer>], "voice.m4a"));
      return form;
    };
    const first = await post(body(fixture("speech.m4a")), withKey("f"));
    const again = await post(body(fixture("speech.m4a")), withKey("f"));
    expect([first.body.text, again.body]).toEqual(["tell me a short joke", first.body]);
    expect((await post(body(fixture("speech.ogg")), withKey("f"))).body.code).toBe("idempotency_conflict");
    expect((await dayOf(town.reef, user)).used.input).toBe(2);
  });

  test("silence and refusals of the audio are kept, a used-up day is not", async () => {
    expect((await hear(fixture("silence.wav"), withKey("s"))).body.text).toBe("");
    expect((await hear(fixture("silence.wav"), withKey("s"))).body.text).toBe("");
    for (let i = 0; i < 2; i++)
      expect((await hear(Buffer.from("none"), withKey("n"))).body.code).toBe("unsupported_audio");
    await useUp(town.reef, user, { input: 120 });
    expect((await hear(fixture("speech.wav"), withKey("l"))).status).toBe(429);
    await town.reef.sql`delete from usage_logs where user_id = ${user.id}`;
    await town.reef.sql`delete from daily_usage where user_id = ${user.id}`;
    await town.reef.deps.redis.flushdb();
    expect((await hear(fixture("speech.wav"), withKey("l"))).status).toBe(200);
  });

  test("two at once: one is heard, the other is told to wait", async () => {
    const { promise, resolve: goOn } = Promise.withResolvers<void>();
    town.openai.audio.hear = async function* ({ known }) {
      await promise;
      yield { text: known.text };
    };
    const first = hear(fixture("speech.wav"), withKey("w"));
    await until("it is listened to", () => calls().length === 1);
    const second = await hear(fixture("speech.wav"), withKey("w"));
    expect([second.status, second.body.code, second.body.retry_after]).toEqual([409, "idempotency_in_progress", 2]);
    goOn();
    expect((await first).body.text).toBe("what is the weather tomorrow");
    expect((await dayOf(town.reef, user)).used.input).toBe(3);
  });

  test("a run that was taken for dead and answers late is not charged, and answers what was answered first", async () => {
    const { promise, resolve: goOn } = Promise.withResolvers<void>();
    town.openai.audio.hear = async function* () {
      const late = calls().length === 1;
      if (late) await promise;
      yield { text: late ? "late" : "first" };
    };
    const late = hear(fixture("speech.wav"), withKey("d"));
    await until("it is listened to", () => calls().length === 1);
    await town.reef.sql`
      update idempotency_keys set claimed_at = now() - interval '1 hour' where user_id = ${user.id} and key = 'd'`;
    expect((await hear(fixture("speech.wav"), withKey("d"))).body.text).toBe("first");
    goOn();
    expect((await late).body.text).toBe("first");
    expect((await dayOf(town.reef, user)).used.input).toBe(3);
    expect((await dayOf(town.reef, user)).ledger.toSorted()).toEqual([
      "voice_input_seconds committed 3",
      "voice_input_seconds released 3",
    ]);
  });
});

test("who is suspended, gone or unknown is heard by nobody", async () => {
  await town.reef.sql`update users set status = 'suspended' where id = ${user.id}`;
  expect((await hear(fixture("speech.wav"))).body.code).toBe("account_suspended");
  const response = await fetch(`${town.reef.url}/api/voice/transcribe`, {
    method: "POST",
    body: fixture("speech.wav"),
  });
  expect(response.status).toBe(401);
  expect(calls()).toEqual([]);
});

test("who is suspended after the token was looked at is not heard", async () => {
  const { heard } = await town.reef.sql.begin(async (tx) => {
    // The day is read, with the user's status, in the transaction that reserves: there the request waits.
    await tx`lock table daily_usage in access exclusive mode`;
    const heard = hear(fixture("speech.wav"));
    await until("the request waits", async () => {
      const [waiting] = await tx`select 1 from pg_locks where not granted and relation = 'daily_usage'::regclass`;
      return waiting;
    });
    await tx`update users set status = 'suspended' where id = ${user.id}`;
    return { heard };
  });
  expect((await heard).body.code).toBe("account_suspended");
  expect(calls()).toEqual([]);
  await expectFree(town.reef, user);
});

for (const table of ["idempotency_keys", "daily_usage"]) {
  test(`who is erased after the token was looked at, before ${table}: 401`, async () => {
    const { heard } = await town.reef.sql.begin(async (tx) => {
      await tx.unsafe(`lock table ${table} in access exclusive mode`);
      const heard = hear(fixture("speech.wav"), table === "daily_usage" ? {} : { "idempotency-key": "gone" });
      await until("the request waits", async () => {
        const [waiting] = await tx`select 1 from pg_locks where not granted and relation = ${table}::regclass`;
        return waiting;
      });
      await tx`delete from users where id = ${user.id}`;
      return { heard };
    });
    const { status, body } = await heard;
    expect([status, body.code]).toEqual([401, "unauthorized"]);
    expect(calls()).toEqual([]);
  });
}

test("HEAD and OPTIONS do nothing, whatever they bring", async () => {
  for (const method of ["HEAD", "OPTIONS", "GET", "PUT"]) {
    const response = await fetch(`${town.reef.url}/api/voice/transcribe`, {
      method,
      headers: { authorization: `Bearer ${user.token}` },
      ...(method === "PUT" ? { body: fixture("speech.ogg") } : {}),
    });
    expect([method, response.status]).toEqual([method, 405]);
  }
  expect(calls()).toEqual([]);
  await expectFree(town.reef, user);
});

test("all of it left the system sound, and nothing that was said in the log", () => expectSound(town));

/** 8-bit silence. */
function makeWav({ seconds, rate }: { seconds: number; rate: number }): Buffer {
  const wav = Buffer.alloc(44 + seconds * rate, 0x80);
  wav.write("RIFF", 0, "latin1");
  wav.writeUInt32LE(wav.length - 8, 4);
  wav.write("WAVEfmt ", 8, "latin1");
  wav.writeUInt32LE(16, 16);
  wav.writeUInt16LE(1, 20);
  wav.writeUInt16LE(1, 22);
  wav.writeUInt32LE(rate, 24);
  wav.writeUInt32LE(rate, 28);
  wav.writeUInt16LE(1, 32);
  wav.writeUInt16LE(8, 34);
  wav.write("data", 36, "latin1");
  wav.writeUInt32LE(wav.length - 44, 40);
  return wav;
}
