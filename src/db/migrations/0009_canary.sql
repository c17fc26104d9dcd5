-- The isolation canary: a pair of the operator's own agents on each gateway (src/services/canary.ts). They have no rows
-- anywhere else: they are nobody's, so nothing is ever charged, mailed, counted or shown.
alter table gateways
  -- The pair is configured until then; null or past: it sleeps.
  add column canary_until timestamptz,
  -- What the last run that told something was about: a hash of the configuration without agents, and the version.
  add column canary_of text,
  add column canary_green_at timestamptz,
  -- What succeeded that must not, by name.
  add column canary_leaks text[] not null default '{}';

-- The canary's provider costs nothing, and what it says is a script: no person's assistant may have it.
alter table plan_limits add constraint plan_limits_not_canary check (chat_model not like 'canary/%');
alter table assistants add constraint assistants_not_canary check (model not like 'canary/%');
