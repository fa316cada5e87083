#!/bin/sh
# Starts the daemon in a container. Its own cgroups are shown to it read-only unless the container is
# privileged: with CAP_SYS_ADMIN it may make them writable, which is what its runs' limits are made of.
set -eu
for mounted in $(sed -n 's|^[^ ]* \(/sys/fs/cgroup[^ ]*\) cgroup2\{0,1\} .*|\1|p' /proc/mounts); do
  mount -o remount,bind,rw "$mounted" 2>/dev/null || true # the daemon says what it lacks
done
exec /usr/local/bin/k15-sandboxd "$@"
