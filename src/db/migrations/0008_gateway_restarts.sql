-- One row is a restart of a gateway that the health check asked for: what its budget is counted by.
create table gateway_restarts (
  id uuid primary key,
  gateway_id text not null,
  host text not null,
  reason text not null,
  asked_at timestamptz not null default now()
);
create index gateway_restarts_newest on gateway_restarts (gateway_id, asked_at desc);
