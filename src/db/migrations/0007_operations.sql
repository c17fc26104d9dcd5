-- One row is one run of a timer's job: what the doctor, /metrics and an operator read of it.
create table job_runs (
  id uuid primary key,
  job text not null,
  host text not null,
  started_at timestamptz not null default now(),
  finished_at timestamptz,
  outcome text not null default 'running' check (outcome in ('running', 'ok', 'failed', 'skipped')),
  summary text,
  details jsonb not null default '{}'
);
create index job_runs_newest on job_runs (job, started_at desc);

-- One row is something an operator has to know, from its first sight until it is over. `sent_at` null: nobody was told yet.
create table alarms (
  key text primary key,
  severity text not null check (severity in ('warning', 'critical')),
  summary text not null,
  host text not null,
  count bigint not null default 1,
  first_at timestamptz not null default now(),
  last_at timestamptz not null default now(),
  sent_at timestamptz,
  resolved_at timestamptz,
  resolution_sent_at timestamptz
);
create index alarms_open on alarms (last_at) where resolved_at is null;

alter table gateways
  -- Why no new assistant is placed here; null: they are.
  add column placement_stopped_reason text,
  -- Where its folder is served to processes on other hosts (src/files.ts); null: only where it lies.
  add column files_url text,
  add column canary_result text check (canary_result in ('ok', 'leak', 'failed')),
  add column canary_at timestamptz;
