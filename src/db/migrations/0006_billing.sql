-- What Stripe calls a plan's prices. Old ones stay: a running subscription may still have one.
create table stripe_prices (
  price_id text primary key,
  plan text not null references plan_limits (plan) on delete restrict,
  cycle text not null check (cycle in ('monthly', 'yearly')),
  livemode boolean not null,
  product_id text not null,
  amount_micro_usd bigint not null,
  -- Sold now; one of each plan, cycle and mode.
  current boolean not null default true,
  created_at timestamptz not null default now()
);
create unique index stripe_prices_current on stripe_prices (plan, cycle, livemode) where current;

-- A person is one customer at Stripe, for ever. `fetch_started` and `fetch_stored` number what was fetched of them: what was
-- asked for earlier never replaces what was asked for later.
create table stripe_customers (
  user_id uuid primary key references users (id) on delete cascade,
  customer_id text not null unique,
  fetch_started bigint not null default 0,
  fetch_stored bigint not null default 0,
  fetched_at timestamptz,
  -- When a fetch was last begun: what is looked at often is fetched no more often than is useful.
  asked_at timestamptz,
  -- Stripe says that this customer was deleted there. It is over for good: the next checkout makes another one, whose id takes
  -- the place of this one (and then this is null again). The numbers of the fetches go on.
  gone_at timestamptz,
  -- The one checkout that is open, so that two clicks are one subscription.
  checkout_session_id text,
  checkout_url text,
  checkout_price_id text,
  checkout_expires_at timestamptz,
  -- When the person was last sent to Stripe's pages: they may have changed something there that we have not heard of.
  link_given_at timestamptz,
  created_at timestamptz not null default now()
);
insert into stripe_customers (user_id, customer_id)
  select user_id, stripe_customer_id from subscriptions where stripe_customer_id is not null;

-- Who deals with Stripe for a person (a checkout, a change, their leaving): one at a time in all processes, and no transaction
-- is open meanwhile.
create table stripe_leases (
  user_id uuid primary key references users (id) on delete cascade,
  token uuid not null,
  until timestamptz not null
);

-- What people may do on Stripe's portal, as `stripe sync-prices` has set it up; one of each mode.
create table stripe_portals (
  livemode boolean primary key,
  configuration_id text not null
);

-- An entitlement by source: what somebody pays for, and what an operator gave them, do not overwrite each other.
drop trigger subscriptions_tell on subscriptions;
alter table subscriptions
  drop constraint subscriptions_pkey,
  add primary key (user_id, source),
  drop column stripe_customer_id,
  add column billing_cycle text check (billing_cycle in ('monthly', 'yearly')),
  add column current_period_start timestamptz,
  add column cancel_at_period_end boolean not null default false,
  add column cancel_at timestamptz,
  -- Past due: until when the plan is kept; null for as long as Stripe tries.
  add column grace_until timestamptz,
  add column past_due_since timestamptz,
  add column price_id text,
  -- What is owed and where it can be paid.
  add column due_micro_usd bigint,
  add column pay_url text,
  add column created_at timestamptz not null default now(),
  drop constraint subscriptions_source_check,
  add constraint subscriptions_source_check check (source in ('stripe', 'grant', 'apple', 'google')),
  add constraint subscriptions_status_check check (status in
    ('incomplete', 'incomplete_expired', 'trialing', 'active', 'past_due', 'unpaid', 'paused', 'canceled'));
create trigger subscriptions_tell after insert or update or delete on subscriptions
  for each row execute function tell_plan_change();

-- Whether an entitlement counts now. What is paid for ends when Stripe says so, not by our clock; a gift ends by its date.
create function entitles(s subscriptions, moment timestamptz) returns boolean language sql immutable as $$
  select case
    when s.source = 'grant' then s.status = 'active' and (s.current_period_end is null or s.current_period_end > moment)
    when s.status = 'past_due' then s.grace_until is null or s.grace_until > moment
    else s.status in ('active', 'trialing') end
$$;

-- The plan a person has now: the largest that is paid for or given; else free.
create or replace function plan_of(person uuid) returns text language sql stable as $$
  select coalesce((
    select s.plan from subscriptions s join plan_limits p on p.plan = s.plan
    where s.user_id = person and entitles(s, now()) order by p.rank desc limit 1), 'free')
$$;

-- What ends by our clock: looked for every few seconds.
create index subscriptions_gifts on subscriptions (current_period_end) where source = 'grant' and status = 'active';
create index subscriptions_grace on subscriptions (grace_until) where status = 'past_due';

-- The plan that a person was last told of and whose limits their assistants were fitted to.
alter table users add column applied_plan text not null default 'free' references plan_limits (plan) on delete restrict;
update users set applied_plan = plan_of(id);

-- Paused because the plan has no room for it; comes back with the plan.
alter table assistants add column paused_by_plan boolean not null default false;

-- What Stripe has told us: an inbox. A hint that something about a customer changed; never what.
create table stripe_events (
  id text primary key,
  type text not null,
  customer_id text,
  -- What leads to the customer where the event does not name one.
  object_id text,
  created_at timestamptz not null,
  received_at timestamptz not null default now(),
  processed_at timestamptz,
  outcome text,
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default now(),
  last_error text
);
create index stripe_events_due on stripe_events (next_attempt_at) where processed_at is null;
create index stripe_events_age on stripe_events (received_at);
create index stripe_events_waiting on stripe_events (received_at) where processed_at is null;
