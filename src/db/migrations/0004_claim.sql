-- Claims queued turns of a gateway: the oldest of each awake, active assistant of an active user that has none running, as
-- many as the gateway has places, fewest running turns of a user first. When the working set is full, no message goes before the older
-- one of a sleeper: a long backlog would keep its place for ever.
-- A function, so that lock and claim are one exchange, planned once per connection; each statement in it sees what was
-- committed before it began, which one statement with the lock in it would not. `may_wait` false: nothing is claimed
-- while somebody else has the lock.
create function claim_turns(
  gateway text, owner uuid, lease_ms integer, max_runs integer, full_set integer, wait_ms integer, may_wait boolean
) returns table (
  id uuid, assistant_id uuid, user_id uuid, gateway_id text, seq bigint, status text, stop_requested boolean, error_code text,
  attempts integer, age_ms integer, agent_id text, display_name text, content text
) language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
begin
  if may_wait then
    perform pg_advisory_xact_lock(hashtext('reef:queue'), hashtext(gateway));
  elsif not pg_try_advisory_xact_lock(hashtext('reef:queue'), hashtext(gateway)) then
    return;
  end if;
  return query
  with running as (
    select user_id, count(*) as n from turns
    where gateway_id = gateway and status in ('dispatched', 'streaming') group by user_id
  ), sleepers as (
    select min(q.queued_at) as since from turns q
    join assistants a on a.id = q.assistant_id and a.status = 'active' and a.state = 'asleep'
    where q.gateway_id = gateway and q.status = 'queued' and not q.stop_requested
      and (select count(*) from assistants s where s.gateway_id = gateway and s.state in ('waking', 'awake')) >= full_set
  ), heads as (
    select distinct on (q.assistant_id) q.id, q.user_id, q.queued_at
    from turns q join assistants a on a.id = q.assistant_id join users u on u.id = q.user_id and u.status = 'active'
    where q.gateway_id = gateway and q.status = 'queued' and not q.stop_requested
      and q.queued_at >= now() - make_interval(secs => wait_ms / 1000.0)
      and a.state = 'awake' and a.status = 'active'
      and q.queued_at <= coalesce((select since from sleepers), q.queued_at)
      and not exists (select 1 from turns r where r.assistant_id = q.assistant_id and r.status in ('dispatched', 'streaming'))
    order by q.assistant_id, q.seq
  ), chosen as (
    select h.id from heads h left join running r on r.user_id = h.user_id
    order by coalesce(r.n, 0) + row_number() over (partition by h.user_id order by h.queued_at), h.queued_at
    limit greatest(0, max_runs - (select coalesce(sum(n), 0) from running))
  )
  update turns t set status = 'dispatched', attempts = attempts + 1, dispatched_at = now(), lease_owner = owner,
    lease_until = now() + make_interval(secs => lease_ms / 1000.0)
  from chosen where t.id = chosen.id and t.status = 'queued' and not t.stop_requested
  returning t.id, t.assistant_id, t.user_id, t.gateway_id, t.seq, t.status, t.stop_requested, t.error_code, t.attempts, 0,
    (select a.agent_id from assistants a where a.id = t.assistant_id),
    (select a.display_name from assistants a where a.id = t.assistant_id),
    (select m.content from messages m where m.turn_id = t.id and m.role = 'user');
end
$$;
