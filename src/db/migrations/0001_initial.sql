-- Times are timestamptz, ids UUIDv7 made by the application, money in micro-USD.
create extension if not exists citext;

create table plan_limits (
  plan text primary key,
  rank smallint not null unique,
  assistants integer not null,
  text_messages integer not null,
  voice_input_seconds integer not null,
  voice_output_seconds integer not null,
  tts_characters integer not null,
  tts_model text not null,
  voices text[] not null,
  chat_model text not null,
  price_month_micro_usd bigint not null,
  price_year_micro_usd bigint not null
);

insert into plan_limits values
  ('free',    0,  1,   50,  120,  120,   5000, 'tts-1',    '{nova,alloy}', 'openai-custom/gpt-5-nano', 0, 0),
  ('pro',     1,  5,  500, 1800, 1800,  50000, 'tts-1',    '{nova,alloy,echo,fable,onyx,shimmer}', 'openai-custom/gpt-5-nano', 6990000, 69990000),
  ('premium', 2, 20, 2000, 7200, 7200, 200000, 'tts-1-hd', '{nova,alloy,echo,fable,onyx,shimmer}', 'openai-custom/gpt-5-nano', 12990000, 129990000);

create table users (
  id uuid primary key,
  email citext not null unique,
  email_verified boolean not null default false,
  password_hash text,
  name text,
  avatar_url text,
  status text not null default 'active' check (status in ('active', 'suspended', 'deleting')),
  timezone text not null default 'UTC',
  timezone_changed_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

-- One row is a signed-in device. `counter` numbers the current refresh token (see services/sessions.ts).
create table refresh_tokens (
  id uuid primary key,
  user_id uuid not null references users (id) on delete cascade,
  counter integer not null default 0,
  token_hash bytea not null,
  previous_token_hash bytea,
  device_name text,
  ip text,
  created_at timestamptz not null default now(),
  last_used_at timestamptz not null default now(),
  expires_at timestamptz not null,
  revoked_at timestamptz,
  revoked_reason text
);
create index refresh_tokens_user on refresh_tokens (user_id) where revoked_at is null;

create table subscriptions (
  user_id uuid primary key references users (id) on delete cascade,
  plan text not null references plan_limits (plan) on delete restrict,
  status text not null default 'active',
  source text not null default 'grant' check (source in ('stripe', 'grant')),
  current_period_end timestamptz,
  updated_at timestamptz not null default now()
);

-- The plan a person has now: what is not paid for or granted is free.
create function plan_of(person uuid) returns text language sql stable as $$
  select coalesce((select plan from subscriptions where user_id = person and status in ('active', 'trialing', 'past_due')), 'free')
$$;

create table gateways (
  id text primary key,
  status text not null default 'active' check (status in ('active', 'draining', 'down')),
  working_set integer not null,
  version text,
  boot_id text,
  applied_hash text,
  drift_repairs bigint not null default 0,
  last_seen_at timestamptz,
  created_at timestamptz not null default now()
);

create table assistants (
  id uuid primary key,
  user_id uuid not null references users (id) on delete restrict,
  gateway_id text not null references gateways (id) on delete restrict,
  agent_id text not null unique,
  display_name text,
  voice text not null,
  model text not null,
  status text not null default 'active' check (status in ('active', 'paused', 'deleted')),
  state text not null default 'asleep' check (state in ('asleep', 'waking', 'awake', 'failed')),
  state_reason text,
  generation integer not null default 1,
  applied_generation integer not null default 0,
  -- How far the purge of a deleted assistant has come; null while it lives (see services/purge.ts).
  purge_step text check (purge_step in ('stopping', 'erasing', 'purged')),
  last_seq bigint not null default 0,
  message_count bigint not null default 0,
  last_used_at timestamptz not null default now(),
  last_active_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create index assistants_user on assistants (user_id, id) where status <> 'deleted';
create index assistants_working_set on assistants (gateway_id, state, last_used_at desc);
create index assistants_to_purge on assistants (gateway_id) where purge_step in ('stopping', 'erasing');

create table turns (
  id uuid primary key,
  assistant_id uuid not null references assistants (id) on delete cascade,
  user_id uuid not null references users (id) on delete restrict,
  gateway_id text not null references gateways (id) on delete restrict,
  -- The number of the user's message that is being answered: the order of the queue.
  seq bigint not null,
  status text not null default 'queued'
    check (status in ('queued', 'dispatched', 'streaming', 'done', 'failed', 'stopped')),
  stop_requested boolean not null default false,
  attempts integer not null default 0,
  lease_owner uuid,
  lease_until timestamptz,
  error_code text,
  queued_at timestamptz not null default now(),
  dispatched_at timestamptz,
  first_text_at timestamptz,
  finished_at timestamptz,
  input_tokens integer,
  output_tokens integer,
  cost_micro_usd bigint
);
create unique index turns_one_running on turns (assistant_id) where status in ('dispatched', 'streaming');
create index turns_queue on turns (gateway_id, queued_at) where status = 'queued';
create index turns_running on turns (gateway_id, lease_until) where status in ('dispatched', 'streaming');
create index turns_unfinished on turns (assistant_id, seq) where status in ('queued', 'dispatched', 'streaming');

create table messages (
  id uuid primary key,
  assistant_id uuid not null references assistants (id) on delete cascade,
  user_id uuid not null references users (id) on delete restrict,
  turn_id uuid not null references turns (id) on delete cascade,
  seq bigint not null,
  role text not null check (role in ('user', 'assistant')),
  content text not null,
  client_id uuid,
  finish text check (finish in ('complete', 'stopped', 'error')),
  created_at timestamptz not null default now(),
  unique (assistant_id, seq),
  unique (assistant_id, client_id),
  unique (turn_id, role)
);

create table daily_usage (
  user_id uuid not null references users (id) on delete cascade,
  date date not null,
  text_messages integer not null default 0 check (text_messages >= 0),
  primary key (user_id, date)
);

create table usage_logs (
  id uuid primary key,
  user_id uuid not null references users (id) on delete cascade,
  date date not null,
  kind text not null check (kind in ('text_messages')),
  amount integer not null check (amount > 0),
  limit_then integer not null,
  status text not null default 'reserved' check (status in ('reserved', 'committed', 'released')),
  idempotency_key text not null unique,
  input_tokens integer,
  output_tokens integer,
  cost_micro_usd bigint,
  created_at timestamptz not null default now(),
  settled_at timestamptz
);
create index usage_logs_user_day on usage_logs (user_id, date);

create table audit_log (
  id uuid primary key,
  at timestamptz not null default now(),
  actor text not null,
  action text not null,
  subject_user_id uuid,
  ip text,
  request_id text,
  details jsonb not null default '{}'
);
create index audit_log_subject on audit_log (subject_user_id, at desc);

create table idempotency_keys (
  user_id uuid not null references users (id) on delete cascade,
  key text not null,
  request_hash bytea not null,
  status smallint,
  response text,
  claimed_at timestamptz not null default now(),
  created_at timestamptz not null default now(),
  primary key (user_id, key)
);
