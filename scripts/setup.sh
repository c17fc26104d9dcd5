#!/usr/bin/env bash
# From a bare server to a running Reef. See --help and docs/operations.md.
set -euo pipefail

usage() {
  cat <<'TEXT'
Sets up Reef on this server (Ubuntu 24.04 or Debian 12, x86-64, 4 cores, 32 GB), beside the Postgres and Redis that another
service brings. Run as root from a copy of the source. Safe to run again: what is right already is left alone, secrets are
made once and never replaced.

  scripts/setup.sh --dry-run ...      prints every change it would make, and makes none
  scripts/setup.sh --domain api.example.com --email ops@example.com --answers answers.env

  --domain NAME      where the app reaches Reef: nginx and the certificate are for it
  --email ADDRESS    whom the certificate authority writes to; without it the certificate is one of our own making, which no
                     app accepts
  --answers FILE     lines NAME=value (mode 0600): any setting of .env.example, e.g. OPENAI_API_KEY, STRIPE_SECRET_KEY,
                     STRIPE_WEBHOOK_SECRETS, SMTP_URL, MAIL_FROM, ALARM_WEBHOOK_URL, BACKUP_AGE_RECIPIENTS, RESTIC_*; and
                     DATABASE_ADMIN_URL (a superuser's, used once and not kept), DATABASE_NAME, DATABASE_ROLE, REDIS_URL
                     where Docker does not tell; on a further server GATEWAY_ID, another name than main. What the file names
                     replaces what is set; the rest stays
  --ssh-port N       another port that the firewall must leave open, where sshd does not tell
  --no-firewall      leaves ufw as it is

It finds Postgres and Redis by "docker ps" and their published ports. It asks nothing; what it can't find out and was not
told, it names at the end, with what will not work without it.
Exit code: 0 all is right, 1 a step failed (its words are above; run it again when mended), 2 wrong use, 3 set up, but
"reef doctor" is not content.
TEXT
}

source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
opt=/opt/reef
etc=/etc/reef
gateway=main gateway_dir=/var/lib/reef-gateway/main
gateway_port=18789
files_port=18790
webroot=/var/www/letsencrypt
clients=/usr/lib/postgresql
rsyslog=/etc/rsyslog.d
pgdg_list=/etc/apt/sources.list.d/pgdg.list pgdg_key=/usr/share/postgresql-common/pgdg/apt.postgresql.org.asc

dry_run=false firewall=true domain='' old_domain='' email='' answers_file='' ssh_port=''
step='' rights=0 changes=0
missing=()
changed_units=false changed_settings=false changed_gateway=false changed_site=false changed_jail=false
admin_url='' redis_url='' container=''
declare -A answers=()

# ---- Saying and doing ----

told=false
die() {
  told=true
  printf 'setup: %s\n' "$1" >&2
  exit "${2:-1}"
}
at_exit() {
  [ "$1" -eq 0 ] || $told || printf 'setup: the step "%s" failed; what went before is done, and setup.sh may be run again\n' "$step" >&2
}
trap 'at_exit $?' EXIT
begin() {
  step=$1 owed=''
  printf '%s\n' "$step"
}
right() {
  rights=$((rights + 1))
  printf '  ok       %s\n' "$1"
}
note() { printf '  note     %s\n' "$1"; }
lacks() {
  missing+=("$1")
  printf '  missing  %s\n' "$1"
}
# change WHAT COMMAND...: does it, or says that it would
change() {
  local what=$1
  shift
  changes=$((changes + 1))
  if $dry_run; then
    printf '  would    %s\n' "$what"
  else
    "$@"
    printf '  changed  %s\n' "$what"
  fi
}
# quiet COMMAND...: its words only when it fails; a sign of life every five seconds
quiet() {
  local log pid seconds=0 code=0
  log=$(mktemp)
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  while sleep 0.2 && kill -0 "$pid" 2>/dev/null; do
    seconds=$((seconds + 1))
    [ $((seconds % 25)) -ne 0 ] || printf '  ...      %s (%s s)\n' "$step" $((seconds / 5))
  done
  wait "$pid" || code=$?
  [ "$code" -eq 0 ] || tail -n 30 "$log" >&2
  rm -f "$log"
  return "$code"
}

# owes WHAT: the files written from now on call for it (a reload). True when an earlier run wrote some and died before it was
# done: without this nobody would do it any more. A reboot does it as well, and forgets.
owed=''
owes() {
  owed=/run/reef-setup-$1
  [ -e "$owed" ]
}
pay() {
  "$@"
  rm -f "$owed"
}

# put_file PATH MODE TEXT: root's; true in `put` when it was not so before
put=false
put_file() {
  put=false
  if [ -f "$1" ] && [ "$(stat -c '%a %U' "$1")" = "$2 root" ] && printf '%s' "$3" | cmp -s - "$1"; then
    right "$1"
    return
  fi
  put=true
  change "$1" write_file "$1" "$2" "$3"
}
write_file() {
  local half=$1.new
  [ -z "$owed" ] || : >"$owed"
  mkdir -p "$(dirname "$1")"
  (umask 077 && printf '%s' "$3" >"$half")
  chmod "$2" "$half"
  chown root:root "$half"
  mv -f "$half" "$1"
}
# put_folder PATH MODE OWNER
put_folder() {
  if [ -d "$1" ] && [ "$(stat -c '%a %U:%G' "$1")" = "$2 $3:$3" ]; then
    right "$1"
  else
    change "folder $1 ($3, $2)" install -d -m "$2" -o "$3" -g "$3" "$1"
  fi
}
put_link() {
  if [ "$(readlink "$1" 2>/dev/null)" = "$2" ]; then
    right "$1"
  else
    change "link $1 to $2" ln -sfn "$2" "$1"
  fi
}

# ---- Settings files: lines NAME=value, as systemd reads them ----

# get_setting TEXT NAME
get_setting() {
  local line value
  line=$(grep -m1 "^$2=" <<<"$1") || return 0
  value=${line#*=}
  case $value in
    \'*\') value=${value:1:-1} ;;
    \"*\") value=$(printf '%s' "${value:1:-1}" | sed 's/\\\(["\\$`]\)/\1/g') ;;
  esac
  printf '%s' "$value"
}
quote_setting() {
  if [[ $1 =~ ^[A-Za-z0-9_@%+=:,./?\&-]*$ ]]; then
    printf '%s' "$1"
  elif [[ $1 != *"'"* ]]; then
    printf "'%s'" "$1"
  else
    printf '"%s"' "$(printf '%s' "$1" | sed 's/["\\$`]/\\&/g')"
  fi
}
# put_setting NAME VALUE: in the text in `settings`; the other lines stay as they are
settings=''
put_setting() {
  local line found=false out='' each
  line=$1=$(quote_setting "$2")
  while IFS= read -r each; do
    if [[ $each == "$1="* ]]; then
      $found || out+=$line$'\n'
      found=true
    else
      out+=$each$'\n'
    fi
  done < <(printf '%s' "$settings")
  $found || out+=$line$'\n'
  settings=$out
}
has_setting() { grep -q "^$1=." <<<"$settings"; }
# default_setting NAME VALUE: only where the file has none
default_setting() { has_setting "$1" || put_setting "$1" "$2"; }
answer_setting() { [ -z "${answers[$1]:-}" ] || put_setting "$1" "${answers[$1]}"; }
read_settings() { if [ -s "$1" ]; then settings=$(cat "$1")$'\n'; else settings=''; fi; }
random_secret() { od -An -N"${1:-32}" -tx1 /dev/urandom | tr -d ' \n'; }

# ---- Options ----

read_options() {
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --dry-run) dry_run=true ;;
      --no-firewall) firewall=false ;;
      --domain | --email | --answers | --ssh-port)
        [ $# -gt 1 ] || die "$1 takes a value; see --help" 2
        case $1 in
          --domain) domain=$2 ;;
          --email) email=$2 ;;
          --answers) answers_file=$2 ;;
          --ssh-port) ssh_port=$2 ;;
        esac
        shift
        ;;
      *) die "there is no option $1; see --help" 2 ;;
    esac
    shift
  done
  [[ $domain =~ ^([A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+)?$ ]] || die "--domain takes a name like api.example.com" 2
  [[ $ssh_port =~ ^[0-9]*$ ]] || die "--ssh-port takes a number" 2
}

is_setting() {
  [[ $1 =~ ^(DATABASE_(ADMIN_URL|NAME|ROLE)|DOMAIN|CERTIFICATE_EMAIL|BACKUP_[A-Z_]+|RESTIC_[A-Z_]+|AWS_[A-Z_]+)$ ]] ||
    { [[ $1 =~ ^[A-Z_]+$ ]] && grep -q "^#$1=" "$source_dir/.env.example"; }
}
read_answers() {
  [ -n "$answers_file" ] || return 0
  [ -r "$answers_file" ] || die "$answers_file can't be read" 2
  case $(stat -c %a "$answers_file") in *00) ;; *) die "$answers_file holds secrets and others may read it: chmod 600 $answers_file" 2 ;; esac
  local text line name n=0
  text=$(cat "$answers_file")
  while IFS= read -r line; do
    n=$((n + 1))
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    name=${line%%=*}
    # Not shown: it may be the second line of a secret.
    [[ $line == *=* && $name =~ ^[A-Z_]+$ ]] || die "$answers_file: line $n is not NAME=value (a value is one line)" 2
    is_setting "$name" || die "$answers_file: ${name:0:40} is no setting (see .env.example)" 2
    answers[$name]=$(get_setting "$line" "$name")
  done <<<"$text"
  domain=${domain:-${answers[DOMAIN]:-}}
  email=${email:-${answers[CERTIFICATE_EMAIL]:-}}
}

# The gateway's name is that of its units, its settings and its folder, too: the health check and the doctor look for those.
name_gateway() {
  local asked=${answers[GATEWAY_ID]:-} known
  known=$(get_setting "$reef_env" GATEWAY_ID)
  gateway=${known:-${asked:-main}}
  [[ $gateway =~ ^[a-z0-9][a-z0-9-]{0,40}$ ]] || die "GATEWAY_ID takes a short lower-case name" 2
  [ -z "$asked" ] || [ "$asked" = "$gateway" ] ||
    die "the gateway of this server is called $gateway: under the name $asked its assistants would have none" 2
  gateway_dir=/var/lib/reef-gateway/$gateway
}

# ---- Steps ----

of_system() { sed -n "s/^$1=\"\{0,1\}\([^\"]*\).*/\1/p" /etc/os-release; }
check_machine() {
  begin "machine"
  [ "$(id -u)" -eq 0 ] || die "run it as root (sudo scripts/setup.sh ...)"
  [ "$(uname -m)" = x86_64 ] || die "Reef runs on 64-bit x86; this is $(uname -m)"
  local id version cores memory free
  id=$(of_system ID)
  version=$(of_system VERSION_ID)
  case $id-$version in
    debian-12 | debian-13 | ubuntu-24.04 | ubuntu-26.04) right "$id $version" ;;
    *) die "this is $id $version; Reef is set up on Debian 12 or Ubuntu 24.04" ;;
  esac
  [ -d /run/systemd/system ] || die "systemd does not run this machine"
  cores=$(nproc)
  memory=$(awk '/^MemTotal/ { print int($2 / 1048576 + 0.5) }' /proc/meminfo)
  free=$(df -PBG / | awk 'NR == 2 { print $4 + 0 }')
  if [ "$cores" -ge 4 ]; then right "$cores cores"; else note "$cores cores: 4 are what it is made for"; fi
  if [ "$memory" -ge 30 ]; then right "$memory GB of memory"; else note "$memory GB of memory: Reef may take 20, beside what else runs"; fi
  [ "$free" -ge 6 ] || die "only $free GB of disk are free; the programs alone take 3"
  if [ "$free" -ge 40 ]; then right "$free GB of disk free"; else note "$free GB of disk free: backups and memories want 40"; fi
  local port holder
  for port in 80 443; do
    holder=$(ss -Hltnp "sport = :$port" | sed -n 's/.*users:(("\([^"]*\)".*/\1/p' | head -n 1)
    case $holder in '' | nginx) ;; *) die "port $port belongs to $holder: stop it, nginx needs the port" ;; esac
  done
}

is_installed() { [ "$(dpkg-query -W -f '${Status}' "$1" 2>/dev/null)" = "install ok installed" ]; }
# Tokens and days go by the clock; whatever keeps it right is left alone.
has_clock() {
  local name
  for name in systemd-timesyncd chrony ntpsec ntp openntpd; do
    ! is_installed "$name" || return 0
  done
  return 1
}
install_packages() {
  begin "packages"
  local wanted=(ca-certificates curl openssl jq nginx certbot ufw fail2ban python3-systemd age restic postgresql-client)
  local name absent=()
  for name in "${wanted[@]}"; do
    is_installed "$name" || absent+=("$name")
  done
  has_clock || absent+=(systemd-timesyncd)
  if [ ${#absent[@]} -eq 0 ]; then
    right "${wanted[*]}"
  else
    change "apt-get install ${absent[*]}" apt_install "${absent[@]}"
  fi
}
apt_install() {
  # A server that updates itself may hold apt's lock for a while.
  quiet apt-get -q -o DPkg::Lock::Timeout=300 update
  DEBIAN_FRONTEND=noninteractive quiet apt-get -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends install "$@"
}

place_programs() {
  begin "programs"
  local version current openclaw
  version=$("$source_dir/scripts/placeRelease.sh" --version)
  current=$(readlink "$opt/current" 2>/dev/null || true)
  if [ -z "$current" ]; then
    change "release $version in $opt/releases" place_release "$version"
  elif [ "$current" = "releases/$version" ]; then
    right "release $version"
  else
    right "release ${current#releases/}"
    note "this source is another one ($version): reef deploy $source_dir puts it in place without a failed request"
  fi
  openclaw=$(sed -n 's/.*"openclaw": "\(.*\)".*/\1/p' "$source_dir/deploy/openclaw/package.json")
  current=$(readlink "$opt/openclaw/current" 2>/dev/null || true)
  if [ -z "$current" ]; then
    change "OpenClaw $openclaw in $opt/openclaw" place_openclaw "$openclaw"
  else
    right "OpenClaw $current"
    [ "$current" = "$openclaw" ] || note "this source is made for OpenClaw $openclaw: reef deploy --gateway upgrades it"
  fi
  # The command runs from the release: what is at hand before the first one is this source's.
  put_file /usr/local/bin/reef 755 "$(cat "$source_dir/scripts/reef")"$'\n'
}
place_release() {
  umask 022
  quiet "$source_dir/scripts/placeRelease.sh"
  ln -sfn "releases/$1" "$opt/current"
}
place_openclaw() {
  umask 022
  quiet "$source_dir/scripts/placeRelease.sh" --openclaw
  ln -sfn "$1" "$opt/openclaw/current"
}

make_users() {
  begin "users and folders"
  local user
  for user in reef reef-gateway; do
    if id -u "$user" >/dev/null 2>&1; then
      right "user $user"
    else
      change "user $user, without a shell" useradd --system --user-group --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin "$user"
    fi
  done
  put_folder "$etc" 700 root
  put_folder "$etc/api" 700 root
  put_folder "$etc/gateways" 700 root
  put_folder /var/lib/reef 700 reef
  put_folder /var/lib/reef-gateway 755 root
  put_folder "$gateway_dir" 700 reef-gateway
  put_folder /var/backups/reef 700 root
  put_folder "$webroot" 755 root
}

# Containers whose image is called like one of the words
containers_of() {
  { docker ps --format '{{.Names}} {{.Image}}' 2>/dev/null || true; } | awk -v words="$1" '
    { image = $2; sub(/[@:].*$/, "", image); sub(/^.*\//, "", image) }
    image ~ "^(" words ")" && image !~ /export|insight|commander|backup|admin/ { print $1 }'
}
# The port of 127.0.0.1 that a container's port is published on
published() {
  local address
  address=$(docker port "$1" "$2/tcp" 2>/dev/null | head -n 1)
  case $address in
    '') return 0 ;;
    0.0.0.0:* | '[::]:'*) note "$1 publishes port $2 on every address, past any firewall: publish it on 127.0.0.1 only" >&2 ;;
  esac
  printf '%s' "${address##*:}"
}
# container_at URL NAMES: the one of them whose Postgres is what the URL leads to
container_at() {
  local name port
  [[ ${1##*@} =~ ^(localhost|127\.[0-9.]+|\[::1\])(:([0-9]+))?([/?]|$) ]] || return 0
  port=${BASH_REMATCH[3]:-5432}
  for name in $2; do
    [ "$(published "$name" 5432 2>/dev/null)" != "$port" ] || { printf '%s' "$name" && return; }
  done
}
container_env() { docker inspect -f '{{range .Config.Env}}{{println .}}{{end}}' "$1" | sed -n "s/^$2=//p" | head -n 1; }
url_encode() {
  local text=$1 out='' i char
  for ((i = 0; i < ${#text}; i++)); do
    char=${text:i:1}
    case $char in [A-Za-z0-9._~-]) out+=$char ;; *) out+=$(printf '%%%02X' "'$char") ;; esac
  done
  printf '%s' "$out"
}

find_services() {
  begin "Postgres and Redis"
  local names known user password port
  admin_url=${answers[DATABASE_ADMIN_URL]:-} redis_url=${answers[REDIS_URL]:-}
  if command -v docker >/dev/null; then
    names=$(containers_of 'postgres|pgvector|postgis|timescaledb')
    known=${admin_url:-${answers[DATABASE_URL]:-$(get_setting "$reef_env" DATABASE_URL)}}
    if [ -n "$known" ]; then
      # Another container than the one whose database is in use would be an empty database in its place.
      container=$(container_at "$known" "$names")
    else
      [ "$(wc -w <<<"$names")" -le 1 ] || die "several containers look like Postgres (${names//$'\n'/, }): say DATABASE_ADMIN_URL in the answers file"
      container=$names
    fi
    if [ -n "$container" ] && [ -z "$admin_url" ]; then
      port=$(published "$container" 5432)
      user=$(container_env "$container" POSTGRES_USER)
      password=$(container_env "$container" POSTGRES_PASSWORD)
      [ -n "$port" ] || die "container $container publishes no port: publish 127.0.0.1:5432:5432 in its compose file, and run setup.sh again"
      [ -z "$password" ] || admin_url=postgres://$(url_encode "${user:-postgres}"):$(url_encode "$password")@127.0.0.1:$port/postgres
      right "Postgres in container $container, port $port"
    fi
    names=$(containers_of 'redis|valkey')
    if [ -n "$names" ] && [ -z "$redis_url$(get_setting "$reef_env" REDIS_URL)" ]; then
      [ "$(wc -w <<<"$names")" -le 1 ] || die "several containers look like Redis (${names//$'\n'/, }): say REDIS_URL in the answers file"
      port=$(published "$names" 6379)
      [ -n "$port" ] || die "container $names publishes no port: publish 127.0.0.1:6379:6379 in its compose file, and run setup.sh again"
      password=$(docker inspect -f '{{range .Config.Cmd}}{{println .}}{{end}}' "$names" |
        sed -n '/--requirepass/{s/.*--requirepass[ =]*//;/./!n;p;}' | head -n 1)
      password=${password:-$(container_env "$names" REDIS_PASSWORD)}
      redis_url=redis://${password:+:$(url_encode "$password")@}127.0.0.1:$port
      right "Redis in container $names, port $port"
    fi
  fi
  if [ -n "${answers[DATABASE_ADMIN_URL]:-}" ]; then right "DATABASE_ADMIN_URL given"; fi
  if [ -n "${answers[REDIS_URL]:-}" ]; then right "REDIS_URL given"; fi
  if [ -z "$admin_url" ] && [ -z "${answers[DATABASE_URL]:-}" ]; then
    [ -n "$(get_setting "$reef_env" DATABASE_URL)" ] || lacks "DATABASE_ADMIN_URL: no container of Postgres was found; without a database nothing starts"
  fi
  if [ -z "$redis_url" ]; then
    [ -n "$(get_setting "$reef_env" REDIS_URL)" ] || lacks "REDIS_URL: no container of Redis was found; without it nothing starts"
  fi
}

write_settings() {
  begin "settings and secrets"
  local name
  settings=$reef_env
  # All that the file may hold and somebody answered, but for what belongs to backups.
  for name in "${!answers[@]}"; do
    case $name in
      DATABASE_ADMIN_URL | DATABASE_NAME | DATABASE_ROLE | DOMAIN | CERTIFICATE_EMAIL | RESTIC_* | AWS_*) ;;
      *) answer_setting "$name" ;;
    esac
  done
  default_setting NODE_ENV production
  default_setting HOST 127.0.0.1
  default_setting TRUSTED_PROXIES 1
  if [ -n "$domain" ]; then
    # One that was answered stays; one of our own making follows the domain.
    case $(get_setting "$settings" APP_URL) in '' | "https://$old_domain") put_setting APP_URL "https://$domain" ;; esac
    default_setting MAIL_FROM "Reef <no-reply@$domain>"
  fi
  default_setting REDIS_PREFIX reef:
  [ -z "$redis_url" ] || put_setting REDIS_URL "$redis_url"
  default_setting JWT_SECRET "$(random_secret)"
  if [ -n "$admin_url" ] && [ -z "${answers[DATABASE_URL]:-}" ]; then put_database_url; fi
  default_setting GATEWAY_ID "$gateway"
  default_setting OPENCLAW_GATEWAY_URL "ws://127.0.0.1:$gateway_port"
  default_setting OPENCLAW_GATEWAY_TOKEN "$(random_secret)"
  default_setting OPENCLAW_GATEWAY_DIR "$gateway_dir"
  default_setting GATEWAY_FILES_URL "http://127.0.0.1:$files_port"
  default_setting GATEWAY_FILES_TOKEN "$(random_secret)"
  default_setting GATEWAY_RESTART_DIR /run/reef/restart-gateway
  reef_env=$settings
  put_file "$etc/reef.env" 600 "$settings"
  changed_settings=$put
  put_file "$etc/api/1.env" 600 $'PORT=3001\n'
  $put && changed_settings=true
  put_file "$etc/api/2.env" 600 $'PORT=3002\n'
  $put && changed_settings=true
  write_gateway_settings
  read_settings "$etc/backup.env"
  for name in "${!answers[@]}"; do
    case $name in RESTIC_* | AWS_* | BACKUP_*) answer_setting "$name" ;; esac
  done
  [ -z "$container" ] || default_setting BACKUP_POSTGRES_CONTAINER "$container"
  put_file "$etc/backup.env" 600 "$settings"
  read_settings "$etc/setup.env"
  [ -z "$domain" ] || put_setting DOMAIN "$domain"
  [ -z "$email" ] || put_setting CERTIFICATE_EMAIL "$email"
  put_file "$etc/setup.env" 600 "$settings"
}

# Who we are in Postgres stays, unless another name was given; where it is may change.
put_database_url() {
  local role password database place
  [[ $(get_setting "$settings" DATABASE_URL) =~ ^[a-z]+://([^:@/]*):([^@/]*)@[^/]*/([^?]*) ]] || BASH_REMATCH=('' '' '' '')
  local login=("${BASH_REMATCH[@]}")
  role=${answers[DATABASE_ROLE]:-${login[1]:-reef}}
  password=${login[2]:-$(random_secret 24)}
  database=${answers[DATABASE_NAME]:-${login[3]:-reef}}
  place=${admin_url##*@}
  place=${place%%[/?]*}
  [[ $(get_setting "$settings" DATABASE_URL) == *"://$role:$password@$place/$database"* ]] ||
    put_setting DATABASE_URL "postgres://$role:$password@$place/$database"
}

# The gateway gets what it needs of the API's settings, and no more.
write_gateway_settings() {
  local name value
  read_settings "$etc/gateways/$gateway.env"
  default_setting GATEWAY_PORT "$gateway_port"
  default_setting GATEWAY_FILES_PORT "$files_port"
  for name in OPENCLAW_GATEWAY_DIR OPENCLAW_GATEWAY_TOKEN GATEWAY_FILES_HOST GATEWAY_FILES_TOKEN OPENAI_API_KEY OPENAI_BASE_URL PRICES \
    CANARY_MODEL_URL GATEWAY_MAX_RUNS TURN_TOTAL_MS; do
    value=$(get_setting "$reef_env" "$name")
    [ -z "$value" ] || put_setting "$name" "$value"
  done
  put_file "$etc/gateways/$gateway.env" 600 "$settings"
  changed_gateway=$put
}

# database_job ARG...: as reef, the secrets in its environment, which only reef and root may read
database_job() {
  (
    cd "$opt/current"
    DATABASE_URL=$(get_setting "$reef_env" DATABASE_URL) DATABASE_ADMIN_URL=$admin_url setpriv --reuid=reef --regid=reef \
      --clear-groups node_modules/@oven/bun-linux-x64/bin/bun --no-env-file src/jobs/prepareDatabase.ts "$@"
  )
}
prepare_database() {
  begin "database"
  local done_lines line
  if [ -z "$(get_setting "$reef_env" DATABASE_URL)" ]; then
    note "left out: there is no database to prepare"
    return
  fi
  if $dry_run; then
    if [ -e "$opt/current" ]; then
      note "would be compared with the release, and migrated where it is older"
    else
      change "role and database, and their schema" true
    fi
    return
  fi
  done_lines=$(database_job)
  while IFS= read -r line; do
    if [ -n "$line" ]; then change "$line" true; else right "role, database and schema"; fi
  done <<<"$done_lines"
  match_client
}

# Backups take a pg_dump of the server's own version, no newer one either (src/clients/postgresTools.ts). The container has one;
# the drill, which restores beside it, reads the dump with a pg_restore of this machine all the same.
match_client() {
  local wanted newest
  wanted=$(database_job --server-version)
  newest=$(find "$clients" -maxdepth 3 -path '*/bin/pg_restore' 2>/dev/null | sed 's,.*/\([0-9]*\)/bin/.*,\1,' | sort -n | tail -n 1)
  if [ -x "$clients/$wanted/bin/pg_dump" ]; then
    right "pg_dump for Postgres $wanted"
  elif [ -n "$container" ] && [ "${newest:-0}" -ge "$wanted" ]; then
    right "pg_dump in container $container, and pg_restore $newest here, for Postgres $wanted"
  elif apt-cache show "postgresql-client-$wanted" >/dev/null 2>&1 || add_postgres_packages "$wanted"; then
    change "postgresql-client-$wanted" apt_install "postgresql-client-$wanted"
  elif [ -n "$container" ]; then
    lacks "pg_restore $wanted (postgresql-client-$wanted): container $container makes the backups, but the weekly drill can't read them"
  else
    lacks "pg_dump $wanted (postgresql-client-$wanted): the database is Postgres $wanted, and without it there are no backups"
  fi
}
# The project's own archive; its key comes with the distribution's package. It is tried before apt is told of it for good: out
# of reach it would be in the way of every other update.
add_postgres_packages() {
  local made=false half
  dpkg-query -W postgresql-client-common >/dev/null 2>&1 || return 1
  [ -e "$pgdg_key" ] || DEBIAN_FRONTEND=noninteractive quiet apt-get -q -y --no-install-recommends install postgresql-common || return 1
  [ -e "$pgdg_key" ] || return 1
  if [ ! -e "$pgdg_list" ]; then
    half=$(mktemp --suffix=.list)
    echo "deb [signed-by=$pgdg_key] https://apt.postgresql.org/pub/repos/apt $(of_system VERSION_CODENAME)-pgdg main" >"$half"
    update_from "$half" || { rm -f "$half" && return 1; }
    install -m 644 "$half" "$pgdg_list"
    rm -f "$half"
    made=true
  fi
  update_from "$pgdg_list" && apt-cache show "postgresql-client-$1" >/dev/null 2>&1 && return
  # Another's is not ours to remove.
  ! $made || rm -f "$pgdg_list"
  return 1
}
update_from() {
  apt-get -q update -o Dir::Etc::sourcelist="$1" -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0 -o APT::Update::Error-Mode=any \
    >/dev/null 2>&1
}

# The release's copy of a file of this source: after the first time the release is what counts.
released() { if [ -e "$opt/current" ]; then echo "$opt/current"; else echo "$source_dir"; fi; }

install_units() {
  begin "systemd"
  local from file restart=false
  from=$(released)/systemd
  if [ ! -d "$from" ]; then
    lacks "systemd/ in this release: no process is started"
    return
  fi
  if owes systemd; then changed_units=true; fi
  for file in "$from"/*.{service,timer,slice,target,path}; do
    [ -e "$file" ] || continue
    put_file "/etc/systemd/system/$(basename "$file")" 644 "$(cat "$file")"$'\n'
    $put && changed_units=true
  done
  if $changed_units; then change "units loaded" pay systemctl daemon-reload; fi
  if [ -e "$from/journald-reef.conf" ]; then
    if owes journald; then restart=true; fi
    put_file /etc/systemd/journald.conf.d/reef.conf 644 "$(cat "$from/journald-reef.conf")"$'\n'
    if $put || $restart; then change "journald restarted" pay systemctl restart systemd-journald; fi
  fi
  keep_journal_only
}
# Ubuntu's rsyslog writes all that the journal gets into /var/log/syslog as well, where no size is set and lines are kept for
# five weeks. Other programs' lines stay as they are.
keep_journal_only() {
  is_installed rsyslog || return 0
  local again=false
  if owes rsyslog; then again=true; fi
  put_file "$rsyslog/10-reef.conf" 644 $'# Reef and its nginx are in the journal only (docs/server.md).\n:programname, startswith, "reef-" stop\n:programname, isequal, "nginx" stop\n'
  if $put || $again; then change "rsyslog restarted" pay systemctl restart rsyslog; fi
}

certificate_of() { echo "/etc/letsencrypt/live/$domain"; }
own_certificate_of() { echo "/etc/ssl/reef/$domain"; }

put_site() {
  local from certificate
  from=$(released)/deploy/nginx
  if [ -e "$(certificate_of)/fullchain.pem" ]; then certificate=$(certificate_of); else certificate=$(own_certificate_of); fi
  local name no_ipv6=()
  # nginx does not start with an address of a kind that the kernel has not.
  [ -e /proc/net/if_inet6 ] || no_ipv6=(-e '/listen \[::\]/d')
  if owes nginx; then changed_site=true; fi
  for name in reef-http reef; do
    put_file "/etc/nginx/sites-available/$name.conf" 644 \
      "$(sed -e "s,/etc/letsencrypt/live/__DOMAIN__/,$certificate/," -e "s/__DOMAIN__/$domain/g" "${no_ipv6[@]}" "$from/$name.conf")"$'\n'
    $put && changed_site=true
    put_link "/etc/nginx/sites-enabled/$name.conf" "../sites-available/$name.conf"
  done
}
reload_nginx() {
  nginx -t 2>/dev/null || nginx -t
  systemctl reload-or-restart nginx
}
set_up_nginx() {
  begin "nginx"
  if [ -z "$domain" ]; then
    lacks "--domain: no app can reach Reef; it answers on 127.0.0.1:3001 only"
    return
  fi
  if [ ! -e "$(released)/deploy/nginx/reef.conf" ]; then
    lacks "deploy/nginx/ in this release: nginx is left as it is"
    return
  fi
  if [ -e "$(own_certificate_of)/fullchain.pem" ] || [ -e "$(certificate_of)/fullchain.pem" ]; then
    right "a certificate to begin with"
  else
    change "a certificate of our own making for $domain, to begin with" make_certificate
  fi
  put_site
  raise_limits
  if [ "$(readlink -f /etc/nginx/sites-enabled/default 2>/dev/null)" = /etc/nginx/sites-available/default ]; then
    change "nginx's sample site taken off" rm /etc/nginx/sites-enabled/default
    changed_site=true
  fi
  if $changed_site; then change "nginx reloaded" pay reload_nginx; fi
}
raise_connections() {
  : >"$owed"
  sed -i 's/worker_connections 768;/worker_connections 8192;/' "$1"
}
# A chat takes two connections of a worker for as long as it is open: with the distribution's 768 (and 1024 files) the fourth
# hundred of a worker's chats is refused.
raise_limits() {
  local main=/etc/nginx/nginx.conf
  if grep -qs 'worker_connections 768;' "$main"; then
    change "nginx takes 8192 connections in each worker" raise_connections "$main"
    changed_site=true
  fi
  if ! grep -qs '^ *worker_rlimit_nofile' "$main"; then
    put_file /etc/nginx/modules-enabled/90-reef.conf 644 $'worker_rlimit_nofile 16384;\n'
    $put && changed_site=true
  fi
  return 0
}
make_certificate() {
  local folder
  folder=$(own_certificate_of)
  install -d -m 700 "$folder"
  (umask 077 && quiet openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$domain" \
    -addext "subjectAltName=DNS:$domain" -keyout "$folder/privkey.pem" -out "$folder/fullchain.pem")
}

get_certificate() {
  begin "certificate"
  if [ -z "$domain" ] || [ ! -e "$(released)/deploy/nginx/reef.conf" ]; then
    note "left out: there is no site"
    return
  fi
  put_file /etc/letsencrypt/renewal-hooks/deploy/reef-nginx 755 $'#!/bin/sh\n# A renewed certificate is used at once.\nsystemctl reload nginx\n'
  if [ -e "$(certificate_of)/fullchain.pem" ]; then
    right "certificate for $domain; certbot.timer renews it"
  elif [ -z "$email" ]; then
    lacks "--email: no certificate is asked for; no app accepts the one of our own making"
  elif $dry_run; then
    change "certificate for $domain by certbot" true
  elif quiet certbot certonly --non-interactive --agree-tos --webroot -w "$webroot" -d "$domain" -m "$email" --keep-until-expiring; then
    change "certificate for $domain" true
    put_site
    pay reload_nginx
  else
    lacks "a certificate for $domain: certbot's words are above; when its name leads here and port 80 is open, run setup.sh again"
  fi
}

# Every port that sshd listens on, as far as can be told
ssh_ports() {
  {
    [ -z "$ssh_port" ] || echo "$ssh_port"
    if command -v sshd >/dev/null; then sshd -T 2>/dev/null | awk '$1 == "port" { print $2 }'; fi
    systemctl show ssh.socket -p Listen --value 2>/dev/null | sed -n 's/.*:\([0-9][0-9]*\) (Stream).*/\1/p'
    # Not what it listens on for "ssh -R".
    ss -Hltnp | awk '/"sshd"/ && $4 !~ /^(127\.|\[::1\])/ { sub(/.*:/, "", $4); print $4 }'
    # The connection that this runs in
    [ -z "${SSH_CONNECTION:-}" ] || echo "${SSH_CONNECTION##* }"
  } | sort -un
}
set_up_firewall() {
  begin "firewall"
  if ! $firewall; then
    note "left as it is (--no-firewall): only 80, 443 and SSH may be open to the world"
    return
  fi
  local ports port rules open
  ports=$(ssh_ports)
  if [ -z "$ports" ]; then
    lacks "--ssh-port: no sshd was found, and a firewall that shuts you out is not switched on"
    return
  fi
  rules=$(ufw show added 2>/dev/null || true)
  # SSH first: whoever sets this up must get in again.
  for port in $ports 80 443; do
    if grep -qxE "ufw (allow|limit) $port/tcp" <<<"$rules"; then
      right "port $port open"
    else
      change "port $port open" quiet ufw allow "$port/tcp"
    fi
  done
  for port in "$gateway_port" "$files_port" 3001 3002; do
    if grep -qE "^ufw allow $port(/tcp)?$" <<<"$rules"; then
      change "port $port, which is nobody's business, shut" quiet ufw delete allow "$(sed -n "s/^ufw allow \($port\(\/tcp\)\{0,1\}\)$/\1/p" <<<"$rules" | head -n 1)"
    fi
  done
  open=$(ss -Hltn | awk '$4 !~ /^(127\.|\[::1\])/ { sub(/.*:/, "", $4); print $4 }' | sort -un | grep -vxF "$(printf '%s\n' "$ports" 80 443)" | tr '\n' ' ' || true)
  if grep -q '^ENABLED=yes' /etc/ufw/ufw.conf 2>/dev/null && grep -q '^DEFAULT_INPUT_POLICY="DROP"' /etc/default/ufw; then
    right "everything else shut"
  else
    [ -z "$open" ] || note "these ports are listened on and will be shut to the world: $open(ufw allow N/tcp opens one again)"
    change "everything else shut (ufw)" shut_all
  fi
}
shut_all() {
  quiet ufw default deny incoming
  quiet ufw --force enable
}

set_up_jail() {
  begin "fail2ban"
  local from
  from=$(released)/deploy/fail2ban
  [ -d "$from" ] || from=$source_dir/deploy/fail2ban
  if owes fail2ban; then changed_jail=true; fi
  put_file /etc/fail2ban/filter.d/reef-signin.conf 644 "$(cat "$from/reef-signin.conf")"$'\n'
  $put && changed_jail=true
  put_file /etc/fail2ban/jail.d/reef.local 644 "$(cat "$from/reef.local")"$'\n'
  $put && changed_jail=true
  if $changed_jail || ! systemctl is-active --quiet fail2ban; then
    change "fail2ban started with it" pay quiet systemctl restart fail2ban
  else
    right "fail2ban runs"
  fi
  if ! systemctl is-enabled --quiet fail2ban 2>/dev/null; then
    change "fail2ban at every boot" quiet systemctl enable fail2ban
  fi
}

# What has to run here, in the order of its start
wanted_units() {
  local from=/etc/systemd/system unit
  $dry_run && [ ! -e "$from/reef.target" ] && from=$source_dir/systemd
  for unit in reef.target "reef-files@$gateway.service" "reef-gateway@$gateway.service" "reef-restart-gateway@$gateway.path" \
    reef-api@1.service reef-api@2.service; do
    if [ -e "$from/${unit/@*./@.}" ]; then echo "$unit"; fi
  done
  # The release's: one that was returned from may have left others, whose jobs are gone with it.
  for unit in "$(released)"/systemd/reef-*.timer; do
    if [ -e "$unit" ]; then basename "$unit"; fi
  done
}
start_all() {
  begin "services"
  local unit
  if [ -z "$(get_setting "$reef_env" DATABASE_URL)" ] || [ -z "$(get_setting "$reef_env" REDIS_URL)" ]; then
    note "left out: nothing starts without Postgres and Redis"
    return
  fi
  for unit in nginx.service certbot.timer $(wanted_units); do
    if ! systemctl is-enabled --quiet "$unit" 2>/dev/null; then
      change "$unit at every boot" quiet systemctl enable "$unit"
    fi
    if ! systemctl is-active --quiet "$unit"; then
      change "$unit started" start_unit start "$unit"
    elif needs_restart "$unit"; then
      change "$unit restarted, its settings have changed" start_unit restart "$unit"
    else
      right "$unit"
      clear_sign "$unit"
    fi
  done
}
# A run that was killed right after a restart left its sign, and nginx sends that process nothing. A deploy's own stays.
clear_sign() {
  local sign=/run/reef-edge/going-${1//[!0-9]/}
  if [[ $1 == reef-api@* ]] && [ -e "$sign" ] && [ ! -s "$opt/deploying" ]; then
    change "nginx sends requests to $1 again" rm -f "$sign"
  fi
}
start_unit() {
  local sign='' code=0
  step="services: $2"
  # nginx asks the other process meanwhile, as in a deploy (deploy/nginx/reef.conf).
  case "$1 $2" in "restart reef-api@"*)
    sign=$2
    sign=/run/reef-edge/going-${sign//[!0-9]/}
    mkdir -p /run/reef-edge
    : >"$sign"
    sleep 1
    ;;
  esac
  quiet systemctl "$1" "$2" || code=$?
  [ -z "$sign" ] || rm -f "$sign"
  [ "$code" -eq 0 ] || { journalctl -u "$2" -n 20 --no-pager -o cat >&2 && false; }
}
# is_older UNIT FILE...: whether it has run since before a file was written; whoever wrote it, and died, left it undone
is_older() {
  local entered file
  entered=$(systemctl show --timestamp=unix -p ActiveEnterTimestamp --value "$1")
  shift
  for file in "$@"; do
    [ ! -e "$file" ] || [ "$(stat -c %Y "$file")" -le "${entered#@}" ] || return 0
  done
  return 1
}
# One after the other: while one process starts, the other serves.
needs_restart() {
  local unit=/etc/systemd/system/${1/@*./@.} n=${1#*@}
  n=${n%%.*}
  case $1 in
    reef-api@*) $changed_settings || $changed_units || is_older "$1" "$unit" "$etc/reef.env" "$etc/api/$n.env" ;;
    reef-gateway@* | reef-files@*) $changed_gateway || $changed_units || is_older "$1" "$unit" "$etc/gateways/$n.env" ;;
    reef-*.timer | reef-*.path) $changed_units || is_older "$1" "$unit" ;;
    *) false ;;
  esac
}

name_absent() {
  has_setting_in() { grep -q "^$1=." <<<"$reef_env"; }
  has_setting_in OPENAI_API_KEY || lacks "OPENAI_API_KEY: no assistant answers, nothing is heard or spoken"
  has_setting_in SMTP_URL || lacks "SMTP_URL: no mail goes out; addresses can't be confirmed, passwords not reset"
  has_setting_in STRIPE_SECRET_KEY || lacks "STRIPE_SECRET_KEY: nothing is sold"
  has_setting_in STRIPE_WEBHOOK_SECRETS || lacks "STRIPE_WEBHOOK_SECRETS: what is paid at Stripe is not heard of here"
  has_setting_in ALARM_WEBHOOK_URL || has_setting_in ALARM_EMAIL ||
    lacks "ALARM_WEBHOOK_URL or ALARM_EMAIL: alarms stand in the journal only, where nobody sees them"
  read_settings "$etc/backup.env"
  has_setting BACKUP_AGE_RECIPIENTS || [ -n "${answers[BACKUP_AGE_RECIPIENTS]:-}" ] ||
    lacks "BACKUP_AGE_RECIPIENTS (age-keygen, on another machine): backups hold no secrets, and a new server needs new ones"
  has_setting RESTIC_REPOSITORY || [ -n "${answers[RESTIC_REPOSITORY]:-}" ] ||
    lacks "RESTIC_REPOSITORY and RESTIC_PASSWORD: backups are on this machine only, and lost with it"
}

finish() {
  local code=0
  step="what is missing"
  printf '%s\n' "$step"
  name_absent
  if $dry_run; then
    printf 'setup: dry run: %s right already, %s to change, %s missing; nothing was changed\n' "$rights" "$changes" "${#missing[@]}"
    return 0
  fi
  printf 'setup: %s right already, %s changed, %s missing\n' "$rights" "$changes" "${#missing[@]}"
  step="doctor"
  if [ ! -e "$opt/current/src/jobs/doctor.ts" ]; then
    echo "setup: this release has no doctor: nothing was examined"
    return 0
  fi
  /usr/local/bin/reef doctor || code=$?
  [ "$code" -eq 0 ] || { told=true && echo "setup: set up, but the doctor is not content (above)" && exit 3; }
}

main() {
  read_options "$@"
  umask 022
  read_answers
  check_machine
  [ -r "$source_dir/package-lock.json" ] || die "run it from a whole copy of the source"
  if ! $dry_run; then
    # The same as deploy.sh's: both restart the processes one after the other.
    mkdir -p "$opt"
    exec 9>>"$opt/deploy.lock"
    chmod 600 "$opt/deploy.lock"
    flock --wait 5 9 || die "another setup.sh or a deploy is at work: try again in a moment"
  fi
  read_settings "$etc/setup.env"
  old_domain=$(get_setting "$settings" DOMAIN)
  domain=${domain:-$old_domain}
  email=${email:-$(get_setting "$settings" CERTIFICATE_EMAIL)}
  read_settings "$etc/reef.env"
  reef_env=$settings
  name_gateway
  install_packages
  make_users
  place_programs
  find_services
  write_settings
  prepare_database
  install_units
  set_up_firewall
  set_up_nginx
  get_certificate
  set_up_jail
  start_all
  finish
}

main "$@"
