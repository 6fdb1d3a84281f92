#!/usr/bin/env bash
# A real systemd as PID 1 of its own namespaces, for tests (root needed): namespace.sh UNIT_DIR [KEEP...]
# Nothing outside is touched: its cgroups lie below one of its own, and /run, /tmp, /var/tmp, /var/log are covered by empty ones.
# UNIT_DIR holds the units; give each DefaultDependencies=no, or starting it pulls in sysinit.target.
# KEEP: directories below the covered ones that stay visible (a clone or a virtual environment in /tmp).
# SIGKILL to that systemd ends everything in it; so does the end of the process that started this script.
set -euo pipefail
name=pytest-sglang-$$
while IFS=: read -r _ controllers path; do
  case $controllers in
    "") [ -f /sys/fs/cgroup/cgroup.controllers ] && mounted=/sys/fs/cgroup || mounted=/sys/fs/cgroup/unified ;;
    *) mounted=/sys/fs/cgroup/${controllers#name=} ;;
  esac
  [ -d "$mounted$path" ] || continue
  mkdir "$mounted$path/$name" && echo $$ 2>/dev/null > "$mounted$path/$name/cgroup.procs" || true # cpuset takes nobody at first
  echo "cgroup $mounted$path/$name"
done < /proc/self/cgroup
exec unshare --pid --fork --kill-child --mount --mount-proc --uts --ipc --cgroup bash -c '
set -euo pipefail
units=$1; shift
exec 3< "$units"                                          # keeps the folder reachable when /tmp is covered
number=4; for keep; do eval "exec $number< \"\$keep\""; number=$((number + 1)); done
# Without these four mounts systemd-tmpfiles would EMPTY the real /tmp of this machine.
for dir in /run /tmp /var/tmp /var/log; do mount -t tmpfs tmpfs "$dir"; done
number=4; for keep; do
  mkdir -p "$keep"; mount --no-canonicalize --rbind "/proc/self/fd/$number" "$keep"; eval "exec $number<&-"; number=$((number + 1))
done
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  mkdir /sys/fs/cgroup/systemd
  mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
fi
mkdir -p /run/systemd/system
cp -r /proc/self/fd/3/. /run/systemd/system/
for service in tmpfiles-setup tmpfiles-setup-dev tmpfiles-clean sysctl udevd udev-trigger modules-load random-seed remount-fs sysusers hwdb-update binfmt; do
  ln -s /dev/null "/run/systemd/system/systemd-$service.service"
done
ln -s /dev/null /run/systemd/system/systemd-tmpfiles-clean.timer
printf "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\nWants=systemd-journald.service\n" > /run/systemd/system/mini.target
exec 3<&-
container=other exec /lib/systemd/systemd --system --unit=mini.target --log-target=journal --log-level=info
' namespace "$@"
