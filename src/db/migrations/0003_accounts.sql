-- A provider's subject and whose account it opens: one of a provider per account. `provider_token` (Apple's refresh token, encrypted by the application)
-- is what a later revocation needs.
create table identities (
  provider text not null check (provider in ('apple', 'google')),
  subject text not null,
  user_id uuid not null references users (id) on delete cascade,
  email citext,
  provider_token bytea,
  created_at timestamptz not null default now(),
  primary key (provider, subject)
);
create unique index identities_user on identities (user_id, provider);

-- At most one living token of a kind per user: a new one takes the place of the older. `token_hash` is SHA-256.
create table one_time_tokens (
  id uuid primary key,
  user_id uuid not null references users (id) on delete cascade,
  kind text not null check (kind in ('verify_email', 'reset_password')),
  token_hash bytea not null,
  expires_at timestamptz not null,
  used_at timestamptz,
  created_at timestamptz not null default now(),
  unique (user_id, kind)
);

-- How many tokens of the session's current generation were handed out again (see services/sessions.ts).
alter table refresh_tokens add column branch integer not null default 0;

-- Mails to send. What was sent is deleted; `params` hold ids and names, never a token. `user_id` is null for the last
-- mail to somebody whose rows are gone.
create table outbox (
  id uuid primary key,
  user_id uuid references users (id) on delete cascade,
  template text not null,
  recipient citext not null,
  params jsonb not null default '{}',
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default now(),
  last_error text,
  dead_at timestamptz,
  created_at timestamptz not null default now()
);
create index outbox_due on outbox (next_attempt_at) where dead_at is null;

-- Operators' tokens: made on the server by a command, stored as SHA-256.
create table operator_tokens (
  id uuid primary key,
  name text not null unique,
  token_hash bytea not null unique,
  created_at timestamptz not null default now(),
  last_used_at timestamptz,
  revoked_at timestamptz
);

-- How far the deletion of an account has come (see services/deletion.ts). No foreign key: it outlives the user's row.
-- `recipient`, `provider_tokens` and `turn_ids` (whose texts Redis may keep) are there for the steps to come and are gone
-- at its end. `next_attempt_at` is also the lease of the process that works at it.
create table account_deletions (
  user_id uuid primary key,
  step text not null default 'subscription'
    check (step in ('subscription', 'provider', 'agents', 'rows', 'redis', 'mail', 'done')),
  recipient citext,
  provider_tokens jsonb not null default '[]',
  turn_ids uuid[] not null default '{}',
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default now(),
  last_error text,
  requested_at timestamptz not null default now(),
  finished_at timestamptz
);
create index account_deletions_due on account_deletions (next_attempt_at) where finished_at is null;

-- Exports begun within the last hour: one at a time (`lease_until` is renewed while it is written) and a few per hour.
create table exports (
  id uuid primary key,
  user_id uuid not null references users (id) on delete cascade,
  started_at timestamptz not null default now(),
  lease_until timestamptz not null
);
create index exports_user on exports (user_id);

alter table subscriptions add column stripe_customer_id text unique, add column stripe_subscription_id text unique;

-- The voice's limits are spent by the voice routes; here they can be shown.
alter table daily_usage
  add column voice_input_seconds integer not null default 0 check (voice_input_seconds >= 0),
  add column voice_output_seconds integer not null default 0 check (voice_output_seconds >= 0),
  add column tts_characters integer not null default 0 check (tts_characters >= 0);

create index audit_log_at on audit_log (at desc);
create index refresh_tokens_devices on refresh_tokens (user_id, created_at desc);

-- Kept answers older than a day are forgotten.
create index idempotency_keys_age on idempotency_keys (created_at);

-- What a foreign key asks when a user or an assistant goes; without them it reads whole tables.
create index assistants_owner on assistants (user_id);
create index messages_user on messages (user_id);
create index turns_user on turns (user_id);
create index turns_assistant on turns (assistant_id);
create index outbox_user on outbox (user_id);
