#!/usr/bin/env bash
# Puts a release beside the old one and replaces the API processes one after the other. See --help and docs/deploying.md.
#
# What is true is read from the world, not remembered: which release a process runs is its working directory. So each step may
# be done twice, and whoever comes after a deploy that was killed only has to make the world match one release.
set -euo pipefail
umask 022

ROOT=${REEF_ROOT:-}
REEF=$ROOT/opt/reef
RELEASES=$REEF/releases
ETC=$ROOT/etc/reef
UNITS=$ROOT/etc/systemd/system
# nginx sends nothing to process N while there is a file going-N (deploy/nginx/reef.conf).
EDGE=$ROOT/run/reef-edge
# "from to" of a deploy that has not ended.
STATE=$REEF/deploying
READY_SECONDS=${REEF_READY_SECONDS:-90}
# Longer than nginx needs from choosing a process to being connected.
SETTLE_SECONDS=${REEF_SETTLE_SECONDS:-1}
# How long a gateway that is away may be one that is just being restarted.
GATEWAY_SECONDS=${REEF_GATEWAY_SECONDS:-60}
NEEDED_MB=${REEF_NEEDED_MB:-2500}

usage() {
  cat <<'END'
Deploys a release of Reef with no failed request, and returns to the one before by itself when the new one does not serve.

  deploy.sh FOLDER                a copy of the source
  deploy.sh FILE.tar.gz           the source packed
  deploy.sh REPOSITORY#REF        a branch, tag or commit of a git repository (a URL or a folder)
  deploy.sh --resume              goes on with a deploy that was killed; without one: makes all processes run what is current
  deploy.sh --back                returns to the release before (of a deploy that was killed: the one it began from)
  deploy.sh --restart             starts every process anew, one after the other: after a change in /etc/reef (reef restart)
  deploy.sh --status              which release is current, and what each process runs

  --gateway        also takes OpenClaw to what the release names, with --back as well, and restarts the gateways: each first
                   lets its answers end, for up to 330 seconds, in which its assistants answer nobody new
  --keep N         releases that are kept (5)
  --dry-run        says what would be done; changes nothing

Before anything changes the new code checks the settings and the migrations. A migration marked "-- breaking" is refused.
Exit code: 0 done; 1 failed, and the release before serves (or nothing was changed); 2 failed, and somebody has to look;
64 wrong options; 75 another deploy is at work.
END
}

say() { printf 'deploy: %s\n' "$*"; }
# The last line of a failed run.
end() {
  local code=$1
  shift
  printf 'deploy: FAILED: %s\n' "$*" >&2
  exit "$code"
}

# The one way to the service manager.
service() { systemctl "$@"; }

# ---- What is ----

current() { basename "$(readlink "$REEF/current" 2>/dev/null)" 2>/dev/null || true; }
previous() { basename "$(readlink "$REEF/previous" 2>/dev/null)" 2>/dev/null || true; }
processes() {
  local file
  for file in "$ETC"/api/*.env; do
    [ -e "$file" ] && basename "$file" .env
  done
}
gateways() {
  local file
  for file in "$ETC"/gateways/*.env; do
    [ -e "$file" ] && basename "$file" .env
  done
}

# The release that a unit's main process runs; nothing when there is none.
release_of() {
  local pid
  pid=$(service show "$1" --property=MainPID --value) || return 0
  [ "${pid:-0}" -gt 0 ] 2>/dev/null || return 0
  basename "$(readlink "/proc/$pid/cwd" 2>/dev/null)" 2>/dev/null || true
}

# What process $1 answers, on its own port, when it is asked whether a chat would work.
ask_ready() {
  local port
  port=$(sed -n 's/^PORT="\{0,1\}\([0-9]*\).*/\1/p' "$ETC/api/$1.env" | tail -n 1)
  [ -n "$port" ] || return 1
  timeout 5 bash -c "exec 3<>/dev/tcp/127.0.0.1/$port &&
    printf 'GET /readyz HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3 && cat <&3" 2>/dev/null
}
# "ready"; "away" when it waits for its gateway, and for nothing else; "" otherwise
state_of() {
  local answer pattern='"waiting_for":\["gateway [^"]*"\]'
  answer=$(ask_ready "$1") || return 0
  if [[ ${answer%%$'\r'*} == *" 200 "* ]]; then
    echo ready
  elif [[ $answer =~ $pattern ]]; then
    echo away
  fi
}
is_ready() { [ "$(state_of "$1")" = ready ]; }
# Nobody is ready, and somebody for want of the gateway only. A deploy or a return may be what brings the gateway back, so
# it must not wait for it: a process counts as up that waits for nothing else.
gateway_away=""
find_gateway_away() {
  local states n deadline=$((SECONDS + GATEWAY_SECONDS))
  gateway_away=""
  while :; do
    states=" $(for n in $(processes); do state_of "$n"; done | tr '\n' ' ')"
    [[ $states == *away* && $states != *ready* ]] || { gateway_away="" && return; }
    # One that is just being restarted is back in a moment.
    [ "$SECONDS" -lt "$deadline" ] || break
    [ -n "$gateway_away" ] || say "the gateway is away: waiting up to $GATEWAY_SECONDS s for it"
    gateway_away=perhaps
    sleep 1
  done
  say "the gateway is away: a process that waits for nothing else counts as ready"
  gateway_away=yes
}
is_up() {
  case $(state_of "$1") in
    ready) ;;
    away) [ -n "$gateway_away" ] ;;
    *) return 1 ;;
  esac
}

serves() { [ "$(release_of "reef-api@$1")" = "$2" ] && is_up "$1"; }

# Whether a process other than $1 can take its requests.
has_other() {
  local n
  for n in $(processes); do
    [ "$n" != "$1" ] && is_up "$n" && return 0
  done
  return 1
}

# ---- A release ----

# The source of an archive or of git, in the empty folder $2.
unpack_source() {
  local source=$1 folder=$2 repository inner
  if [[ $source == *"#"* ]]; then
    # git would take a relative path from the new folder.
    repository=${source%#*}
    [ ! -d "$repository" ] || repository=$(realpath "$repository")
    git init --quiet "$folder" &&
      git -C "$folder" fetch --quiet --depth 1 -- "$repository" "${source##*#}" &&
      git -C "$folder" -c advice.detachedHead=false checkout --quiet FETCH_HEAD
    return
  fi
  tar -C "$folder" --no-same-owner -xf "$source" || return 1
  inner=$(find "$folder" -mindepth 1 -maxdepth 1)
  # Packed with the folder around it.
  if [ ! -e "$folder/package.json" ] && [ -d "$inner" ]; then
    mv "$inner" "$folder.inner" && rmdir "$folder" && mv "$folder.inner" "$folder"
  fi
}

# Makes releases/<version> of $source and sets `target`. It says by itself what it waits for.
prepare() {
  local free folder=$source
  mkdir -p "$RELEASES"
  rm -rf "$RELEASES"/.new-* "$RELEASES"/.source-*
  free=$(df -Pm "$RELEASES" | awk 'NR == 2 { print $4 }')
  [ "$free" -ge "$NEEDED_MB" ] || end 1 "$RELEASES has $free MB left, a release needs $NEEDED_MB: free some space. Nothing was changed."
  if [ ! -d "$source" ]; then
    [[ $source != *"#"* ]] || command -v git >/dev/null ||
      end 1 "git is missing: apt-get install git, or give a folder or an archive. Nothing was changed."
    unpacked=$(mktemp -d "$RELEASES/.source-XXXXXX")
    folder=$unpacked
    unpack_source "$source" "$folder" || end 1 "the source could not be read from $source. Nothing was changed."
  fi
  [ -x "$folder/scripts/placeRelease.sh" ] || end 1 "there is no Reef in $source. Nothing was changed."
  say "placing the release of $source"
  target=$("$folder/scripts/placeRelease.sh" --root "$REEF") || end 1 "the release could not be placed (above). Nothing was changed."
}

# The new code, with the server's settings, as the user that will run it.
run_job() {
  local release=$RELEASES/$1
  shift
  systemd-run --quiet --wait --pipe --collect --uid=reef --gid=reef --property="EnvironmentFile=$ETC/reef.env" \
    --property="WorkingDirectory=$release" "$release/node_modules/@oven/bun-linux-x64/bin/bun" --no-env-file "$@"
}

check_release() {
  local code=0
  [ -d "$RELEASES/$1" ] || end 1 "the release $1 is not here any more: deploy it from its source."
  run_job "$1" src/jobs/migrate.ts --check || code=$?
  case $code in
    0) ;;
    3) end 1 "$1 holds a breaking migration, which the processes that still run would not survive; docs/deploying.md says how. Nothing was changed." ;;
    78) end 1 "the settings in $ETC/reef.env are not valid for $1 (above). Nothing was changed." ;;
    *) end 1 "$1 can't run on this database (above). Nothing was changed." ;;
  esac
}

# ---- Changing over ----

# The units of release $1. Timers that the other release, $2, does not have begin; those that only it has end: they would
# fail for ever, for want of their job. Reloaded each time: one that died in between has written, and not reloaded.
install_units() {
  local file name changed="" new=() gone=()
  for file in "$RELEASES/$1"/systemd/*.{service,timer,path,slice,target}; do
    [ -e "$file" ] || continue
    name=$(basename "$file")
    [ "${name%.timer}" = "$name" ] || [ -e "$RELEASES/$2/systemd/$name" ] || new+=("$name")
    cmp -s "$file" "$UNITS/$name" && continue
    install -m 644 "$file" "$UNITS/$name" || return 1
    changed="$changed $name"
  done
  for file in "$RELEASES/$2"/systemd/*.timer; do
    name=$(basename "$file")
    [ ! -e "$file" ] || [ -e "$RELEASES/$1/systemd/$name" ] || gone+=("$name")
  done
  [ -z "$changed" ] || say "units changed:$changed"
  service daemon-reload || return 1
  [ ${#new[@]} -eq 0 ] || service enable --now "${new[@]}" || return 1
  [ ${#gone[@]} -eq 0 ] || service disable --now "${gone[@]}" || true
}

# A link that always leads somewhere.
point() { ln -sfn "$2" "$REEF/$1.new" && mv -fT "$REEF/$1.new" "$REEF/$1"; }

await_serving() {
  local n=$1 release=$2 deadline=$((SECONDS + READY_SECONDS)) told=$SECONDS state
  until serves "$n" "$release"; do
    state=$(service show "reef-api@$n" --property=SubState --value)
    case $state in failed | auto-restart*) say "process $n ended (journalctl -u reef-api@$n says why)" && return 1 ;; esac
    [ "$SECONDS" -lt "$deadline" ] || { say "process $n is not ready after $READY_SECONDS s" && return 1; }
    [ $((SECONDS - told)) -lt 5 ] || { say "waiting for process $n" && told=$SECONDS; }
    sleep 0.2
  done
}

# Process $1 runs release $2 afterwards, or false: then nginx still sends it nothing.
replace() {
  local n=$1 release=$2
  has_other "$n" || say "no other process is ready: requests get 503 until process $n is"
  mkdir -p "$EDGE"
  : >"$EDGE/going-$n"
  sleep "$SETTLE_SECONDS"
  service stop "reef-api@$n" || return 1
  # An earlier failure must not be taken for one of this start; a unit that has none is no fault.
  service reset-failed "reef-api@$n" 2>/dev/null || true
  service --no-block start "reef-api@$n" || return 1
  await_serving "$n" "$release" || return 1
  rm -f "$EDGE/going-$n"
  say "process $n runs $release"
}

# The gateway's folder is served by the release's code, too.
replace_files() {
  local id
  for id in $(gateways); do
    service is-active --quiet "reef-files@$id" || continue
    [ "$(release_of "reef-files@$id")" = "$1" ] || service restart "reef-files@$id" || return 1
  done
}

# All processes run release $1 afterwards. First those that serve nobody: they are no loss, and may be needed.
roll() {
  local n late=()
  replace_files "$1" || return 1
  for n in $(processes); do
    if serves "$n" "$1"; then
      rm -f "$EDGE/going-$n"
    elif is_up "$n"; then
      late+=("$n")
    else
      replace "$n" "$1" || return 1
    fi
  done
  for n in "${late[@]}"; do
    if [ "$(processes | wc -l)" -gt 1 ] && ! has_other "$n"; then
      say "no other process is ready any more: process $n stays"
      return 1
    fi
    replace "$n" "$1" || return 1
  done
}

# Every process begins anew on the release that is current. What it does not come to the end of --resume mends.
restart_all() {
  local n
  [ ! -s "$STATE" ] || end 1 "a deploy has not ended: deploy.sh --resume goes on, deploy.sh --back returns. Nothing was changed."
  find_gateway_away
  for n in $(processes); do
    replace "$n" "$target" || end 2 "process $n does not serve: see journalctl -u reef-api@$n; the others were left as they are."
  done
}

change_over() { install_units "$1" "$2" && point current "releases/$1" && roll "$1"; }

# Makes everything run `target`; if that fails, `from` again.
change() {
  run_job "$target" src/jobs/migrate.ts || end 1 "the migrations of $target failed (above); every process runs what it ran."
  printf '%s %s\n' "$from" "$target" >"$STATE"
  find_gateway_away
  if change_over "$target" "${from:-$target}"; then
    [ "$from" = "$target" ] || [ -z "$from" ] || point previous "releases/$from"
    rm -f "$STATE"
    return
  fi
  if [ -z "$from" ] || [ "$from" = "$target" ] || [ ! -d "$RELEASES/$from" ]; then
    end 2 "$target does not serve, and there is no release to return to: see journalctl -u 'reef-api@*'."
  fi
  printf '%s %s\n' "$from" "$from" >"$STATE"
  say "$target does not serve: returning to $from"
  find_gateway_away
  change_over "$from" "$target" || end 2 "neither $target nor $from serves: see journalctl -u 'reef-api@*', then deploy.sh --resume or --back."
  rm -f "$STATE"
  end 1 "$target did not become ready; every process runs $from again."
}

# Releases beyond the newest $keep go, never one that is linked or runs.
prune() {
  local used name n kept=0
  used=" $(current) $(previous) $(for n in $(processes); do release_of "reef-api@$n"; done | tr '\n' ' ') "
  # A gateway stands in the folder that was current when it started, and no deploy starts it again.
  used+="$(for n in $(gateways); do release_of "reef-gateway@$n"; done | tr '\n' ' ') "
  for name in $(cd "$RELEASES" && ls -1t); do
    kept=$((kept + 1))
    if [ "$kept" -le "$keep" ] || [[ $used == *" $name "* ]]; then continue; fi
    say "removing $name"
    # Half removed it must not be taken for a release, if it is deployed once more.
    mv "$RELEASES/$name" "$RELEASES/.new-$name"
    rm -rf "$RELEASES/.new-$name"
  done
}

# ---- The gateway ----

wanted_openclaw() {
  sed -n 's/^ *"openclaw": "\(.*\)".*/\1/p' "$RELEASES/$1/deploy/openclaw/package.json" 2>/dev/null || true
}
current_openclaw() { basename "$(readlink "$REEF/openclaw/current" 2>/dev/null)" 2>/dev/null || true; }

restart_gateway() {
  local pid began=$SECONDS told=$SECONDS
  service restart "reef-gateway@$1" &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    [ $((SECONDS - told)) -lt 10 ] || { say "gateway $1 is being restarted ($((SECONDS - began)) s)" && told=$SECONDS; }
  done
  wait "$pid"
}

restart_gateways() {
  local id n
  for id in $(gateways); do
    say "gateway $id: its answers end first, for up to 330 s"
    restart_gateway "$id" || return 1
  done
  gateway_away=""
  for n in $(processes); do
    await_serving "$n" "$(current)" || return 1
  done
}

upgrade_gateway() {
  local wanted old
  wanted=$(wanted_openclaw "$target")
  old=$(current_openclaw)
  [ -n "$wanted" ] || end 1 "$target does not say which OpenClaw it wants; the API was deployed."
  [ "$wanted" != "$old" ] || { say "OpenClaw $old is what the release wants" && return 0; }
  "$RELEASES/$target/scripts/placeRelease.sh" --openclaw --root "$REEF" >/dev/null ||
    end 1 "OpenClaw $wanted could not be placed (above); $target runs with OpenClaw $old."
  point openclaw/current "$wanted"
  restart_gateways && return 0
  [ -n "$old" ] || end 2 "OpenClaw $wanted does not serve: see journalctl -u 'reef-gateway@*'."
  say "OpenClaw $wanted does not serve: returning to $old"
  point openclaw/current "$old"
  restart_gateways || end 2 "neither OpenClaw $wanted nor $old serves: see journalctl -u 'reef-gateway@*'."
  end 1 "OpenClaw $wanted did not serve; $target runs with OpenClaw $old."
}

# What a deploy does not do by itself.
tell_rest() {
  local wanted what
  wanted=$(wanted_openclaw "$target")
  if [ -n "$wanted" ] && [ "$wanted" != "$(current_openclaw)" ] && [ -z "$gateway" ]; then
    say "note: $target is made for OpenClaw $wanted, $(current_openclaw) runs: deploy.sh --resume --gateway"
  fi
  for what in deploy/nginx deploy/fail2ban systemd/journald-reef.conf scripts/reef; do
    [ -z "$from" ] || diff -rq "$RELEASES/$from/$what" "$RELEASES/$target/$what" >/dev/null 2>&1 ||
      say "note: $what changed: scripts/setup.sh puts it in place"
  done
}

tell_gateway() {
  local n
  for n in $(processes); do
    ! is_ready "$n" || return 0
  done
  say "note: the gateway is still away: docs/runbooks/gateway-down.md"
}

# ---- What is asked for ----

show_status() {
  local n
  say "current: $(current), before: $(previous)$([ ! -e "$STATE" ] || printf ', a deploy (from, to) has not ended: %s' "$(cat "$STATE")")"
  for n in $(processes); do
    say "process $n: $(release_of "reef-api@$n") $(is_ready "$n" && echo ready || echo "not ready")"
  done
}

show_plan() {
  show_status
  case $mode in
    restart)
      say "would check settings and migrations, then start process $(processes | tr '\n' ' ')anew, one after the other"
      return
      ;;
    deploy) say "would place a release of $source in $RELEASES" ;;
    *) say "would go to release $target" ;;
  esac
  say "would check settings and migrations with its code, then migrate, install changed units and link current to it"
  say "would replace process $(processes | tr '\n' ' ')one after the other, each up to $READY_SECONDS s, and return to ${from:-nothing} if one does not serve"
  [ -z "$gateway" ] || say "would upgrade OpenClaw and restart gateway $(gateways | tr '\n' ' ')"
}

wrong() {
  printf 'deploy: %s See deploy.sh --help.\n' "$1" >&2
  exit 64
}

read_options() {
  mode="" source="" gateway="" keep=5 dry_run=""
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --resume | --back | --restart | --status)
        [ -z "$mode" ] || wrong "One thing at a time."
        mode=${1#--}
        ;;
      --gateway) gateway=yes ;;
      --dry-run) dry_run=yes ;;
      --keep)
        [ $# -gt 1 ] || wrong "--keep takes a number."
        keep=$2
        shift
        ;;
      -*) wrong "There is no option $1." ;;
      *)
        [ -z "$mode" ] || wrong "One thing at a time."
        mode=deploy source=$1
        ;;
    esac
    shift
  done
  [ -n "$mode" ] || wrong "What is to be deployed?"
  [[ $keep =~ ^[1-9][0-9]*$ ]] || wrong "--keep takes a number."
}

# From where to where; a deploy that was killed began at what served before it.
choose() {
  local begun_from="" begun_to=""
  [ ! -s "$STATE" ] || read -r begun_from begun_to <"$STATE"
  from=${begun_from:-$(current)}
  target=""
  case $mode in
    resume) target=${begun_to:-$(current)} ;;
    restart) target=$(current) ;;
    back)
      target=${begun_from:-$(previous)}
      from=$(current)
      ;;
  esac
  [ "$mode" = deploy ] || [ -n "$target" ] || end 1 "there is no release to go to. Nothing was changed."
}

main() {
  read_options "$@"
  if [ "$mode" = status ]; then
    show_status
    exit 0
  fi
  [ "$(id -u)" -eq 0 ] || [ -n "$ROOT" ] || end 1 "run it as root: sudo reef deploy. Nothing was changed."
  [ -n "$(processes)" ] || end 1 "$ETC/api holds no process: run scripts/setup.sh first. Nothing was changed."
  if [ -n "$dry_run" ]; then
    choose
    show_plan
    exit 0
  fi
  exec 9>>"$REEF/deploy.lock"
  # Whoever can open it can hold it.
  chmod 600 "$REEF/deploy.lock"
  flock --wait 5 9 || { say "another deploy is at work, or what one left behind: try again in a moment" && exit 75; }
  unpacked=""
  trap '[ -z "$unpacked" ] || rm -rf "$unpacked"' EXIT
  trap 'printf "deploy: interrupted: deploy.sh --resume goes on, deploy.sh --back returns\n" >&2; exit 130' INT TERM HUP
  choose
  [ "$mode" != deploy ] || prepare
  check_release "$target"
  if [ "$mode" = restart ]; then
    restart_all
    [ -z "$gateway_away" ] || tell_gateway
    say "done: every process began anew"
    exit 0
  fi
  change
  prune
  [ -z "$gateway" ] || upgrade_gateway
  tell_rest
  [ -z "$gateway_away" ] || tell_gateway
  say "done: every process runs $target"
}

main "$@"
