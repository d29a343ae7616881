#!/bin/bash
# Process 1 of a node, in network, mount, UTS, IPC and process namespaces of its own. Makes the file systems look like
# those of a machine of its own, says so by the file "ready", and collects the processes that containers orphan.
#
# NODE_NAME       host name
# NODE_DIRECTORY  the node's disk: a directory that the machine's own processes see too
set -euo pipefail

hostname "$NODE_NAME"
# Nothing that is mounted here is seen outside, and all of it goes with the last process.
mount --make-rprivate /
mount -t proc proc /proc

# A /sys that shows this network namespace's devices, with the machine's control groups and BPF objects of its own.
mkdir -p "$NODE_DIRECTORY/cgroup"
mount --rbind /sys/fs/cgroup "$NODE_DIRECTORY/cgroup"
mount -t sysfs sysfs /sys
mount --move "$NODE_DIRECTORY/cgroup" /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf

# The kubelet insists on these settings, which are the whole machine's: it finds what it wants and leaves them alone.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=$NODE_DIRECTORY/${setting//[\/=]/-}
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
done

# What is written there stays the node's own.
for directory in /etc /opt /var/lib /var/log; do
    layers=$NODE_DIRECTORY/layers$directory
    mkdir -p "$layers/upper" "$layers/work"
    mount -t overlay -o "lowerdir=$directory,upperdir=$layers/upper,workdir=$layers/work" overlay "$directory"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock

# Volumes that the kubelet mounts must reach containers that run already.
mount --make-rshared /
touch "$NODE_DIRECTORY/ready"
while true; do
    sleep infinity &
    wait $!
done
