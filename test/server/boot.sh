#!/bin/bash
# Boots systemd on a throw-away copy of a tree. Called by machine.ts as the first process of new namespaces: never by hand.
#   boot.sh TREE FOLDER HOSTNAME [SOURCE=TARGET ...]     (FOLDER gets upper/, work/ and root/; the rest is bound into the machine)
set -euo pipefail
tree=$1 folder=$2 name=$3
shift 3
root=$folder/root
mount --make-rprivate /
mkdir -p "$folder/upper" "$folder/work" "$root"
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$folder/upper,workdir=$folder/work" "$root"
mkdir -p "$root/proc" "$root/sys" "$root/run" "$root/dev" "$root/tmp"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -p "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

# The control groups as this machine has them, seen from our own: one mount (v2), or one for each controller (v1, hybrid).
groups=$root/sys/fs/cgroup
if grep -q '^[^ ]* /sys/fs/cgroup cgroup2 ' /proc/mounts; then
  mount -t cgroup2 cgroup2 "$groups"
else
  mount -t tmpfs -o mode=755 tmpfs "$groups"
  grep -E ' cgroup2? ' /proc/mounts | while read -r _ path kind options _; do
    controllers=$(basename "$path")
    case $options in *name=*) controllers=none,name=$controllers ;; esac
    mkdir -p "$groups/$(basename "$path")"
    if [ "$kind" = cgroup2 ]; then
      mount -t cgroup2 cgroup2 "$groups/$(basename "$path")"
    else
      mount -t cgroup -o "$controllers" cgroup "$groups/$(basename "$path")"
    fi
  done
fi

for pair in "$@"; do
  mkdir -p "$root${pair#*=}"
  mount --bind "${pair%%=*}" "$root${pair#*=}"
done
echo "$name" >"$root/etc/hostname"
grep -qs " $name\$" "$root/etc/hosts" || echo "127.0.0.1 localhost $name" >>"$root/etc/hosts"
hostname "$name"
cd "$root"
exec chroot . /usr/bin/env -i container=reef PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --log-target=console --show-status=0
