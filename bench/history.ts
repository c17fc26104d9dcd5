import { defineBench, type Services } from "./bench.ts";
import type { Sql } from "../src/db/connect.ts";
import { median, percentile, printTable, short } from "./measure.ts";
import { createPeople, type Person } from "./people.ts";
import { openDatabase, startLoadGateway, startReefProgram } from "./systems/reef.ts";

const SHORT = 10;

interface Page {
  name: string;
  query(messages: number, limit: number): string;
}

/** Both directions at the start, in the middle and at the end; the same number of rows from either conversation. */
const PAGES: Page[] = [
  { name: "start, forward", query: (_, limit) => `after_seq=0&limit=${limit}` },
  { name: "start, backward", query: (_, limit) => `before_seq=${limit + 1}&limit=${limit}` },
  { name: "middle, forward", query: (n, limit) => `after_seq=${n / 2}&limit=${limit}` },
  { name: "middle, backward", query: (n, limit) => `before_seq=${n / 2 + 1}&limit=${limit}` },
  { name: "end, forward", query: (n, limit) => `after_seq=${n - limit}&limit=${limit}` },
  { name: "end, backward", query: (_, limit) => `limit=${limit}` },
];

export const history = defineBench({
  summary: "paging in a long conversation against one of ten messages",
  options: {
    messages: { value: 100_000, help: "messages of the long conversation, an even number" },
    limit: { value: 5, help: "messages per page, at most 5: as many as both conversations have on either side" },
    requests: { value: 300, help: "requests per page and conversation, alternating" },
  },
  async run(services, options) {
    const sql = await openDatabase(services);
    const [long, little] = (await createPeople(sql, 2)) as [Person, Person];
    services.say(`writing ${options.messages} messages`);
    await writeConversation(sql, long, options.messages);
    await writeConversation(sql, little, SHORT);
    await sql`analyze`;
    const reef = await startReefProgram(services, await startLoadGateway(services));
    const rows = await measureAll(services, reef.url, { long, little }, options);
    console.log(`${options.messages} messages against ${SHORT}; a page of ${options.limit} over HTTP, ms:`);
    printTable(
      ["", "long p50", "short p50", "ratio p50", "long p95", "short p95", "ratio p95"],
      rows.map((row) => [row.name, ...row.figures.map(short)]),
    );
    console.log(`ratio over all pages: ${short(median(rows.map((row) => row.figures[2]!)))}`);
  },
});

async function measureAll(
  services: Services,
  url: string,
  people: { long: Person; little: Person },
  options: { messages: number; limit: number; requests: number },
): Promise<{ name: string; figures: number[] }[]> {
  const rows: { name: string; figures: number[] }[] = [];
  // The first pass warms up and is not kept.
  for (const page of [PAGES[0]!, ...PAGES]) {
    services.say(`reading: ${page.name}`);
    const times = { long: [] as number[], little: [] as number[] };
    for (let i = 0; i < options.requests; i++) {
      times.long.push(await readPage(url, people.long, page.query(options.messages, options.limit), options.limit));
      times.little.push(await readPage(url, people.little, page.query(SHORT, options.limit), options.limit));
    }
    const of = (p: number) => [percentile(times.long, p), percentile(times.little, p)] as const;
    const [half, most] = [of(50), of(95)];
    rows.push({ name: page.name, figures: [...half, half[0] / half[1], ...most, most[0] / most[1]] });
  }
  return rows.slice(1);
}

async function readPage(url: string, person: Person, query: string, expected: number): Promise<number> {
  const startedAt = performance.now();
  const response = await fetch(`${url}/api/assistants/${person.assistantId}/messages?${query}`, {
    headers: { authorization: `Bearer ${person.token}` },
  });
  const body = (await response.json()) as { items?: unknown[] };
  const ms = performance.now() - startedAt;
  if (body.items?.length !== expected) throw new Error(`${query}: ${response.status}, ${body.items?.length} items`);
  return ms;
}

/** Writes finished turns, a question and an answer each. */
export async function writeConversation(sql: Sql, person: Person, messages: number): Promise<void> {
  await sql`
    insert into turns (id, assistant_id, user_id, gateway_id, seq, status, finished_at)
    select gen_random_uuid(), ${person.assistantId}, ${person.userId}, 'main', 2 * n - 1, 'done', now()
    from generate_series(1, ${messages / 2}::int) n`;
  await sql`
    insert into messages (id, assistant_id, user_id, turn_id, seq, role, content, client_id, finish)
    select gen_random_uuid(), t.assistant_id, t.user_id, t.id, t.seq + answer, r.role, repeat(r.role || ' text ', 12),
      case when answer = 0 then gen_random_uuid() end, 'complete'
    from turns t, (values (0, 'user'), (1, 'assistant')) r (answer, role) where t.assistant_id = ${person.assistantId}`;
  await sql`
    update assistants set last_seq = ${messages}, message_count = ${messages}
    where id = ${person.assistantId} and user_id = ${person.userId}`;
}
