import type { Queryable } from "./connect.ts";

export type BillingCycle = "monthly" | "yearly";

/** A plan as it is shown and sold. */
export interface PlanForSale {
  plan: string;
  assistants: number;
  textMessages: number;
  voiceInputSeconds: number;
  voiceOutputSeconds: number;
  ttsCharacters: number;
  ttsModel: string;
  voices: string[];
  priceMonthMicroUsd: number;
  priceYearMicroUsd: number;
  /** Whether both of its prices are known at Stripe, in the mode that was asked for. */
  priced: boolean;
}

/** A price at Stripe. */
export interface StripePrice {
  priceId: string;
  plan: string;
  cycle: BillingCycle;
  livemode: boolean;
  productId: string;
  amountMicroUsd: number;
}

const columns = (sql: Queryable) => sql`price_id, plan, cycle, livemode, product_id, amount_micro_usd`;

/** All plans, the smallest first. `livemode` null: nothing is sold. */
export async function listPlans(sql: Queryable, livemode: boolean | null): Promise<PlanForSale[]> {
  return sql<PlanForSale[]>`
    select plan, assistants, text_messages, voice_input_seconds, voice_output_seconds, tts_characters, tts_model, voices,
      price_month_micro_usd, price_year_micro_usd,
      (select count(*) from stripe_prices s
        where s.plan = p.plan and s.current and s.livemode = ${livemode}::boolean) = 2 as priced
    from plan_limits p order by rank`;
}

/** The price at which a plan is sold now; null where the plan was never synced. */
export async function findCurrentPrice(
  sql: Queryable,
  input: { plan: string; cycle: BillingCycle; livemode: boolean },
): Promise<StripePrice | null> {
  const [row] = await sql<StripePrice[]>`
    select ${columns(sql)} from stripe_prices
    where plan = ${input.plan} and cycle = ${input.cycle} and livemode = ${input.livemode} and current`;
  return row ?? null;
}

/** Every price that was ever sold in a mode. */
export async function listPrices(sql: Queryable, livemode: boolean): Promise<(StripePrice & { current: boolean })[]> {
  return sql<(StripePrice & { current: boolean })[]>`
    select ${columns(sql)}, current from stripe_prices where livemode = ${livemode} order by plan, cycle, created_at`;
}

/** Keeps a price; as the one that is sold, the one before stays known. Call it in a transaction. */
export async function savePrice(sql: Queryable, price: StripePrice & { current: boolean }): Promise<void> {
  const { plan, cycle, livemode, priceId, productId, amountMicroUsd, current } = price;
  if (current)
    await sql`
      update stripe_prices set current = false
      where plan = ${plan} and cycle = ${cycle} and livemode = ${livemode} and current and price_id <> ${priceId}`;
  await sql`
    insert into stripe_prices (price_id, plan, cycle, livemode, product_id, amount_micro_usd, current)
    values (${priceId}, ${plan}, ${cycle}, ${livemode}, ${productId}, ${amountMicroUsd}, ${current})
    on conflict (price_id) do update set current = excluded.current`;
}

/** The portal's settings at Stripe; null where they were never synced. */
export async function findPortal(sql: Queryable, livemode: boolean): Promise<string | null> {
  const [row] = await sql<{ configurationId: string }[]>`
    select configuration_id from stripe_portals where livemode = ${livemode}`;
  return row?.configurationId ?? null;
}

export async function savePortal(sql: Queryable, input: { livemode: boolean; configurationId: string }): Promise<void> {
  await sql`
    insert into stripe_portals (livemode, configuration_id) values (${input.livemode}, ${input.configurationId})
    on conflict (livemode) do update set configuration_id = excluded.configuration_id`;
}
