#!/bin/bash
# Puts a backup of src/jobs/backup.ts back: see docs/backups.md. Every step may be killed; the same command again goes on.
set -euo pipefail
shopt -s nullglob
umask 077
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'TEXT'
Restores a backup: the database, the gateway's files and, where asked for, the secrets.

  restore.sh --list                     what there is, here and in the second place
  restore.sh --dry-run                  checks the newest backup and says what would be done
  restore.sh --yes                      restores the newest backup of BACKUP_DIR
  restore.sh --yes --before TIME        the newest one begun before TIME ("2026-11-20", "2026-11-20 14:30 UTC")
  restore.sh --yes --from FOLDER        this one
  restore.sh --yes --restic [SNAPSHOT]  from the second place: "latest", or an id that --list shows (with --before: the
                                        newest one before TIME)
  restore.sh --yes --drop-old           removes what earlier restores have put aside

  --identity FILE  also restores the secrets (/etc/reef), with this age identity. DATABASE_URL, REDIS_URL and
                   BACKUP_POSTGRES_CONTAINER stay those of this server. Without it the secrets of this server stay as they are
  --no-services    starts and stops nothing (there is no systemd here): you have stopped Reef, and will start it

A moment between two backups can't be restored: that needs WAL archiving (PITR) at the service that brings Postgres.
The old database stays as NAME_before_TIME and the old folder as FOLDER.before-TIME, until --drop-old.

Settings come from the environment, else from /etc/reef: DATABASE_URL, OPENCLAW_GATEWAY_DIR, GATEWAY_ID, BACKUP_DIR,
RESTIC_*, BACKUP_POSTGRES_CONTAINER. Where the login of DATABASE_URL may not make databases, the superuser of Postgres'
container does it, or the one that DATABASE_ADMIN_URL names.
Exit code: 0 done, 1 failed (nothing was replaced, unless it says so), 2 wrong use, 3 restored, but not all invariants hold.
TEXT
}

say() { printf 'restore: %s\n' "$*"; }
die() { printf 'restore: %s\n' "$1" >&2; exit "${2:-1}"; }

mode=restore from='' before='' restic='' identity='' yes=no dry=no services=yes
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --list) mode=list ;;
    --drop-old) mode=drop ;;
    --dry-run) dry=yes ;;
    --yes) yes=yes ;;
    --no-services) services=no ;;
    --from | --before | --identity)
      [ $# -gt 1 ] || die "$1 needs a value; see --help" 2
      printf -v "${1#--}" '%s' "$2"
      shift ;;
    --restic)
      restic=latest
      case ${2-} in '' | -*) ;; *) restic=$2; shift ;; esac ;;
    *) die "what is $1? See --help" 2 ;;
  esac
  shift
done

# --- settings -------------------------------------------------------------------------------------------------------------

names_read=()
# Lines of systemd's EnvironmentFile; what is set already wins.
read_env_file() {
  local line name value
  [ -r "$1" ] || return 0
  while IFS= read -r line || [ -n "$line" ]; do
    [[ $line =~ ^[[:space:]]*([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]] || continue
    name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    case $value in
      \'*\') value=${value:1:-1} ;;
      # As setup.sh writes it, and systemd reads it.
      \"*\") value=$(printf '%s' "${value:1:-1}" | sed 's/\\\(["\\$`]\)/\1/g') ;;
    esac
    [ -z "${!name-}" ] || continue
    export "$name=$value"
    names_read+=("$name")
  done <"$1"
}
etc=${BACKUP_SECRETS_DIR:-/etc/reef}
read_settings() {
  read_env_file "$etc/reef.env"
  read_env_file "$etc/backup.env"
  : "${GATEWAY_ID:=main}" "${BACKUP_DIR:=/var/backups/reef}"
  read_env_file "$etc/gateways/$GATEWAY_ID.env"
}
# A run that was killed between the two moves of restore_secrets has left none: then the old ones are those of this server.
aside=("$etc".before-*)
if [ ! -e "$etc" ] && [ ${#aside[@]} -gt 0 ]; then mv -T "${aside[-1]}" "$etc"; fi
read_settings
export GATEWAY_ID BACKUP_DIR RESTIC_CACHE_DIR="$BACKUP_DIR/.restic-cache"
[ -n "${DATABASE_URL-}" ] || die "DATABASE_URL is missing: run as root on the server, or give the settings. See --help" 2
[ -n "${OPENCLAW_GATEWAY_DIR-}" ] || die "OPENCLAW_GATEWAY_DIR is missing. See --help" 2
gateway=${OPENCLAW_GATEWAY_DIR%/}
# To the millisecond: a run that was killed may have used this very second.
stamp=$(date -u +%Y%m%dT%H%M%S%3N)

decode() { printf '%b' "${1//%/\\x}"; }
# libpq reads these; in an argument everybody could list the password.
use_url() {
  [[ $1 =~ ^postgres(ql)?://(([^:@/]*)(:([^@/]*))?@)?(\[[^]]*\]|[^:/?]*)(:([0-9]+))?(/([^?]*))? ]] || die "DATABASE_URL is not valid"
  export PGHOST PGPORT PGUSER PGPASSWORD
  PGUSER=$(decode "${BASH_REMATCH[3]}") PGPASSWORD=$(decode "${BASH_REMATCH[5]}") PGPORT=${BASH_REMATCH[8]:-5432}
  PGHOST=${BASH_REMATCH[6]//[\[\]]/} database_of_url=$(decode "${BASH_REMATCH[10]}")
}
use_url "$DATABASE_URL"
database=$database_of_url owner=$PGUSER restoring=${database_of_url}_restoring
# Postgres cuts longer names off, and two could become one.
[ $((${#database} + ${#stamp} + 8)) -le 63 ] || die "the database's name is too long to be put aside as NAME_before_TIME"

# The program of this major that is here, else the one in Postgres' container. $1: name, $2: major or "any".
pg_program() {
  local found
  for found in "/usr/lib/postgresql/$2/bin/$1" "$(command -v "$1" || true)"; do
    [ -x "$found" ] || continue
    [ "$2" = any ] || [ "$("$found" --version | sed -n 's/.*(PostgreSQL) \([0-9]*\).*/\1/p')" -ge "$2" ] || continue
    printf '%s' "$found"
    return
  done
}
find_container() {
  if [ -n "${BACKUP_POSTGRES_CONTAINER-}" ]; then
    printf '%s' "$BACKUP_POSTGRES_CONTAINER"
  else
    docker ps --filter "publish=$PGPORT" --format '{{.Names}}' 2>/dev/null | sed -n 1p
  fi
}
run_pg() {
  local program='' name=$1 container
  [ -n "${BACKUP_POSTGRES_CONTAINER-}" ] || program=$(pg_program "$1" "$2")
  shift 2
  if [ -n "$program" ]; then "$program" "$@"; return; fi
  container=$(find_container)
  [ -n "$container" ] || die "$name is not installed: install postgresql-client, or set BACKUP_POSTGRES_CONTAINER"
  docker exec --interactive --env PGUSER --env PGPASSWORD "$container" "$name" "$@"
}
# Statements come on standard input; :"name" and :'name' are quoted by psql. Arguments: further --set.
psql_options=(--no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 --dbname=postgres
  --set=database="$database" --set=restoring="$restoring" --set=owner="$owner" --set=aside="${database}_before_$stamp")
admin=own
# shellcheck disable=SC2016 # POSTGRES_USER is the container's own
as_admin() {
  case $admin in
    own) run_pg psql any "${psql_options[@]}" "$@" ;;
    given) (use_url "$DATABASE_ADMIN_URL" && run_pg psql any "${psql_options[@]}" "$@") ;;
    *) docker exec --interactive "$admin" sh -c 'exec psql --username="${POSTGRES_USER:-postgres}" "$@"' sh "${psql_options[@]}" "$@" ;;
  esac
}
find_admin() {
  local may="select rolcreatedb or rolsuper from pg_roles where rolname = current_user"
  if [ -n "${DATABASE_ADMIN_URL-}" ]; then admin=given; fi
  major=$(as_admin <<<"select current_setting('server_version_num')::int / 10000") || die "Postgres does not answer"
  [ "$(as_admin <<<"$may")" = t ] && return
  admin=$(find_container || true)
  [ -n "$admin" ] && [ "$(as_admin <<<"$may")" = t ] && return
  die "this login may not make databases: give DATABASE_ADMIN_URL, e.g. that of the user postgres"
}

# --- which backup ---------------------------------------------------------------------------------------------------------

name_pattern='^[0-9]{8}T[0-9]{6}Z-[a-z0-9]{8}$'
local_backups() {
  local path
  for path in "$BACKUP_DIR"/*/SHA256SUMS; do
    path=$(basename "$(dirname "$path")")
    [[ $path =~ $name_pattern ]] && printf '%s\n' "$path"
  done | sort -r
  return 0
}
# The first line whose time (as in the names of backups) is before $before.
newest_before() {
  local limit line
  if [ -z "$before" ]; then sed -n 1p; return; fi
  limit=$(date -u -d "$before" +%Y%m%dT%H%M%SZ) || die "--before: $before is no time" 2
  while read -r line; do
    if [[ ${line%%-*} < $limit ]]; then printf '%s\n' "$line"; fi
  done | sed -n 1p
}
# "time-id of the snapshot" for each one, newest first. $1: "own", those with this gateway's files (several hosts may share the
# place), or "all".
restic_backups() {
  # shellcheck disable=SC2016 # it is a program
  restic snapshots --quiet --json --tag "reef$([ "$1" = all ] || printf ',gateway-%s' "$GATEWAY_ID")" |
    "$root/scripts/bun" -e 'for (const s of (await Bun.stdin.json()).sort((a, b) => (a.time < b.time ? 1 : -1)))
      console.log(`${s.time.replace(/[-:]|\.\d+/g, "")}-${s.short_id}`)'
}

list() {
  local name proof
  say "in $BACKUP_DIR:"
  for name in $(local_backups); do
    proof='not drilled'
    [ -e "$BACKUP_DIR/receipts/$name.json" ] && proof=$(sed -n 's/.*"proof": "\([a-z]*\)".*/\1/p' "$BACKUP_DIR/receipts/$name.json")
    printf '  %s  %s  %s\n' "$name" "$(du -sh "$BACKUP_DIR/$name" | cut -f 1)" "$proof"
  done
  [ -n "${RESTIC_REPOSITORY-}" ] || return 0
  say "in the second place (time-snapshot), with the files of gateway $GATEWAY_ID:"
  restic_backups own | sed 's/^/  /'
}

# A backup of the second place becomes one of BACKUP_DIR; the newest list of the erased comes with it.
fetch() {
  local target=$BACKUP_DIR/fetched.partial snapshot=$restic found newest own
  [ -n "${RESTIC_REPOSITORY-}" ] || die "RESTIC_REPOSITORY is not set"
  newest=$(restic_backups all | sed -n 1p)
  [ -n "$newest" ] || die "the second place has no backup"
  own=$(restic_backups own)
  if [ -n "$before" ]; then snapshot=$(newest_before <<<"$own"); snapshot=${snapshot#*-}; fi
  if [ "$snapshot" = latest ]; then
    [ -n "$own" ] || die "the second place has no backup with the files of gateway $GATEWAY_ID"
    snapshot=$(sed -n 1p <<<"$own")
    snapshot=${snapshot#*-}
  fi
  [ -n "$snapshot" ] || die "the second place has no backup before $before"
  rm -rf "$target"
  mkdir -p "$target"
  say "fetching snapshot $snapshot from the second place"
  restic restore --quiet "${newest#*-}" --include erased.json --target "$target/list" >/dev/null
  restic restore --quiet "$snapshot" --target "$target/all" >/dev/null
  found=$(find "$target/list" -name erased.json -not -path '*Z-*' | sed -n 1p)
  [ -z "$found" ] || mv "$found" "$BACKUP_DIR/erased-second.json"
  found=$(dirname "$(find "$target/all" -name SHA256SUMS | sed -n 1p)")
  [[ $(basename "$found") =~ $name_pattern ]] || die "snapshot $snapshot holds no backup of Reef"
  from=$BACKUP_DIR/$(basename "$found")
  [ -e "$from/SHA256SUMS" ] || { rm -rf "$from"; mv "$found" "$from"; }
  rm -rf "$target"
}

choose() {
  if [ -n "$restic" ] && [ -z "$from" ]; then
    if [ "$dry" = yes ]; then say "would fetch the backup from the second place; a dry run stops here"; exit 0; fi
    fetch
  fi
  if [ -z "$from" ]; then
    from=$(local_backups | newest_before)
    [ -n "$from" ] || die "$BACKUP_DIR has no backup${before:+ before $before}; --list shows what there is"
    from=$BACKUP_DIR/$from
  fi
  from=${from%/}
  [ -e "$from/manifest.json" ] || die "$from is no backup: manifest.json is missing"
}

check() {
  say "checking $from"
  (cd "$from" && sha256sum --check --strict --quiet SHA256SUMS) || die "$from is damaged (above): take another (--list)"
  schema=$(sed -n 's/^  "schema": "\(.*\)",$/\1/p' "$from/manifest.json")
  [ -f "$root/src/db/migrations/$schema" ] || die "the backup is of a newer release (it has $schema): deploy that one first"
  [ -e "$from/gateways/$GATEWAY_ID/state.tar" ] || die "the backup has no gateway $GATEWAY_ID"
  # Found out at the swap it would leave the restored database beside the old files.
  ! mountpoint -q "$gateway" || die "$gateway is a mount point and can't be put aside: mount its volume one folder above"
  if [ -n "$identity" ]; then
    [ -e "$from/secrets.tar.age" ] || die "the backup has no secrets"
    age --decrypt --identity "$identity" "$from/secrets.tar.age" | tar --list >/dev/null || die "this identity does not open the secrets"
  fi
  find_admin
}

# --- services -------------------------------------------------------------------------------------------------------------

instances() {
  local path
  for path in "$etc/$1"/*.env; do printf '%s@%s.service ' "$2" "$(basename "$path" .env)"; done
}
stop_services() {
  [ "$services" = yes ] || return 0
  command -v systemctl >/dev/null || die "there is no systemd here: stop Reef and use --no-services"
  # A deploy, or setup.sh, would start the API in the middle of it.
  if [ -d /opt/reef ]; then
    exec 8>>/opt/reef/deploy.lock
    flock -w 10 8 || die "a deploy is at work: try again when it has ended"
  fi
  say "stopping the timers, the API, the gateway"
  stopped=yes
  systemctl stop 'reef-*.timer'
  local job
  for job in backup verify-backup check-health sleep-inactive remove-expired reconcile-billing run-canary prune-logs; do
    systemctl stop "reef-$job.service" 2>/dev/null || true
  done
  # A wish to restart the gateway that is being fulfilled would start it again.
  systemctl stop 'reef-restart-gateway@*'
  systemctl stop 'reef-api@*.service'
  systemctl stop 'reef-files@*.service' 'reef-gateway@*.service'
  systemctl stop reef.target
}
start_services() {
  [ "$services" = yes ] || { say "start the gateway, then the API; then npm run verify"; return; }
  say "starting the gateway, the API, the timers"
  # shellcheck disable=SC2046 # one word for each unit
  systemctl start $(instances gateways reef-gateway) $(instances gateways reef-files)
  # shellcheck disable=SC2046
  systemctl start $(instances api reef-api)
  systemctl start reef.target
  stopped=no
  say "verifying"
  "$root/scripts/bun" "$root/src/jobs/verify.ts" || exit 3
}

# --- the steps ------------------------------------------------------------------------------------------------------------

load_database() {
  say "loading the database into $restoring"
  as_admin <<'SQL' >/dev/null
select pg_terminate_backend(pid) from pg_stat_activity where datname = :'restoring';
drop database if exists :"restoring";
create database :"restoring" owner :"owner" template template0 encoding 'UTF8';
revoke all on database :"restoring" from public;
SQL
  run_pg pg_restore "$major" --exit-on-error --no-owner --no-privileges --no-password --dbname="$restoring" <"$from/database.dump"
}
unpack_files() {
  say "unpacking the gateway's files into $gateway.restoring"
  rm -rf "$gateway.restoring"
  mkdir -p "$gateway.restoring/home"
  local part
  for part in workspaces state; do
    tar --extract --no-same-owner --file="$from/gateways/$GATEWAY_ID/$part.tar" --directory="$gateway.restoring"
  done
}
swap() {
  local like=$gateway
  [ -e "$gateway" ] || like=$(dirname "$gateway")
  chown -R --reference="$like" "$gateway.restoring"
  say "swapping"
  local old
  old=$(as_admin <<<"select 1 from pg_database where datname = :'database'")
  # Both names in one transaction: there is never no database, nor two.
  as_admin --set=old="${old:-0}" <<'SQL' >/dev/null
select :old = 1 as old \gset
\if :old
alter database :"database" with allow_connections false;
select pg_terminate_backend(pid) from pg_stat_activity where datname = :'database';
\endif
begin;
\if :old
alter database :"database" rename to :"aside";
\endif
alter database :"restoring" rename to :"database";
commit;
\if :old
alter database :"aside" with allow_connections true;
\endif
SQL
  [ ! -e "$gateway" ] || mv "$gateway" "$gateway.before-$stamp"
  mv "$gateway.restoring" "$gateway"
  sync
}
restore_secrets() {
  [ -n "$identity" ] || return 0
  say "restoring the secrets into $etc"
  rm -rf "$etc.restoring"
  mkdir -p "$etc.restoring"
  age --decrypt --identity "$identity" "$from/secrets.tar.age" | tar --extract --no-same-owner --directory="$etc.restoring"
  chmod 0700 "$etc.restoring"
  local file line
  # This server's own services have logins of their own.
  while IFS= read -r -d '' file; do
    for line in DATABASE_URL REDIS_URL BACKUP_POSTGRES_CONTAINER; do
      grep -q "^$line=" "$file" || continue
      grep -v "^$line=" "$file" >"$file.new" || true
      { grep -h "^$line=" "$etc/${file#"$etc.restoring/"}" 2>/dev/null || [ -z "${!line-}" ] || printf '%s=%s\n' "$line" "${!line}"; } >>"$file.new"
      mv "$file.new" "$file"
    done
  done < <(find "$etc.restoring" -name '*.env' -print0)
  [ ! -e "$etc" ] || mv "$etc" "$etc.before-$stamp"
  mv -T "$etc.restoring" "$etc"
  # What follows works with what is in force now.
  [ ${#names_read[@]} -eq 0 ] || unset "${names_read[@]}"
  read_settings
}
drop_old() {
  local name path
  find_admin
  for name in $(as_admin <<<"select datname from pg_database where starts_with(datname, :'database' || '_before_') and datname ~ '_before_[0-9]{8}T[0-9]{9}$'"); do
    say "dropping the database $name"
    as_admin --set=old="$name" <<<'drop database :"old";' >/dev/null
  done
  for path in "$gateway".before-* "$etc".before-*; do
    say "removing $path"
    rm -rf "$path"
  done
}

case $mode in
  list) list; exit 0 ;;
  drop)
    [ "$yes" = yes ] || die "--drop-old removes for good what restores have put aside: say --yes" 2
    drop_old
    exit 0 ;;
esac
mkdir -p "$BACKUP_DIR"
exec 9>"$BACKUP_DIR/.restore.lock"
flock -w 10 9 || die "a restore is at work already"
choose
mkdir -p "$BACKUP_DIR/in-use"
mark="$BACKUP_DIR/in-use/$(basename "$from").$$"
: >"$mark"
stopped=no
at_exit() {
  rm -f "$mark"
  [ $stopped = no ] || say "Reef stands still: the same command again does all of it (before the swap also: systemctl start reef.target)" >&2
}
trap at_exit EXIT
check
say "$(basename "$from"), schema $schema → database $database (Postgres $major), folder $gateway${identity:+, secrets $etc}"
if [ "$dry" = yes ]; then say "a dry run: nothing was changed"; exit 0; fi
[ "$yes" = yes ] || die "this replaces the database and the gateway's files by those of the backup: say --yes (or --dry-run)" 2
began=$SECONDS
# What takes long goes first, while the old one still serves.
load_database
unpack_files
stop_services
# A run that was killed while it swapped may have left it closed.
as_admin <<'SQL' >/dev/null
select format('alter database %I with allow_connections true', datname) from pg_database where datname = :'database' \gexec
SQL
"$root/scripts/bun" "$root/src/jobs/finishRestore.ts" --database "$restoring" --gateway-dir "$gateway.restoring"
swap
restore_secrets
say "restored in $((SECONDS - began)) s; the old ones: ${database}_before_$stamp, $gateway.before-$stamp (--drop-old removes them)"
start_services
