-- When a day ends in a time zone: the first instant of a later date there. Where clocks go back across midnight, that date
-- begins twice and Postgres answers the second time; where they go forward at midnight it answers the first instant after.
create function end_of_day(day date, zone text) returns timestamptz language sql stable as $$
  select case when ((t - interval '1 hour') at time zone zone)::date > day then t - interval '1 hour' else t end
  from (select (day + 1)::timestamp at time zone zone as t) midnight
$$;

-- The day that was running when the time zone was last changed. It keeps its end; the new zone counts from then on.
alter table users
  add column kept_day date,
  add column kept_day_ends_at timestamptz;

-- A user's own day at a moment. No date comes twice and none is left out, whatever the zone is changed to, so that days are
-- counted as they pass. After a kept day comes the next date, for as long as the new zone has not come beyond it: longer
-- than a day after a move to the west, shorter after one to the east, and both even out on the way back. A move to the east
-- over 24 hours and more (Honolulu to Kiritimati) comes to the date after the next one: from then on the day is called one date
-- less than the calendar there says, until the next move. Leaving that date out would cost a day on each way back.
create function day_of(person users, moment timestamptz) returns table (date date, reset_at timestamptz) language sql stable as $$
  select case when kept then person.kept_day else here - behind end,
    case when kept then person.kept_day_ends_at else end_of_day(here, person.timezone) end
  from (
    select coalesce(moment < person.kept_day_ends_at, false) as kept,
      greatest((moment at time zone person.timezone)::date, person.kept_day + 1) as here,
      greatest(0, (person.kept_day_ends_at at time zone person.timezone)::date - (person.kept_day + 1)) as behind) x
$$;

-- The number of a day's last change: of two readings of its totals the higher one is the later.
alter table daily_usage add column version integer not null default 1;

-- One reservation may take of several kinds: a row each, under one key. `expires_at`: when it is given back by whoever finds
-- it, because its work can't be going on any more; null where a turn's end settles it.
alter table usage_logs
  drop constraint usage_logs_kind_check,
  add constraint usage_logs_kind_check
    check (kind in ('text_messages', 'voice_input_seconds', 'voice_output_seconds', 'tts_characters')),
  drop constraint usage_logs_idempotency_key_key,
  add constraint usage_logs_key unique (idempotency_key, kind),
  add column plan text,
  add column model text,
  add column expires_at timestamptz;
create index usage_logs_expiry on usage_logs (expires_at) where status = 'reserved' and expires_at is not null;
create index usage_logs_day on usage_logs (date);

-- What users who have left had used and cost, by day and plan: their ledger goes with them, the plans' sums stay true.
create table departed_usage (
  date date not null,
  plan text not null,
  text_messages bigint not null,
  voice_input_seconds bigint not null,
  voice_output_seconds bigint not null,
  tts_characters bigint not null,
  input_tokens bigint not null,
  output_tokens bigint not null,
  cost_micro_usd bigint not null,
  unpriced bigint not null,
  primary key (date, plan)
);

-- Whoever changes a plan, and however: every process hears of it and forgets what it knew. Who leaves has none any more.
create function tell_plan_change() returns trigger language plpgsql as $$
begin
  perform pg_notify('reef', json_build_object('kind', 'plan', 'id', u.id)::text) from users u
    where u.id = coalesce(new.user_id, old.user_id) and u.status <> 'deleting';
  return null;
end
$$;
create trigger subscriptions_tell after insert or update or delete on subscriptions
  for each row execute function tell_plan_change();

create function tell_limits_change() returns trigger language plpgsql as $$
begin
  perform pg_notify('reef', '{"kind":"plan","id":"everyone"}');
  return null;
end
$$;
create trigger plan_limits_tell after insert or update or delete on plan_limits
  for each statement execute function tell_limits_change();
