#!/bin/bash
# Runs a script as root in a bare Debian: a tree made by debootstrap, which is kept, under a layer
# in memory that takes all changes. It has processes, a network and a /tmp of its own, and is the
# root of its mount namespace: the kernel lets no process of a chroot make user namespaces.
#   usage: tests/debian.sh SUITE FILES      FILES is the directory /files inside; runs /files/script
# Exits with 75 if there is no such tree and none can be made.
set -euo pipefail
suite=$1 files=$2
trees=/var/cache/vdens-tests
tree=$trees/debian-$suite

if [ "${3:-}" != inside ]; then
    mkdir -p "$trees"
    exec 9> "$tree.lock"
    flock 9
    if ! sha256sum --status -c "$tree/made-by" 2>/dev/null; then
        # In memory it takes half the time.
        rm -rf "$tree"
        packages=iproute2,iptables,iputils-ping,vdens,vdeplug,vde-switch,apparmor
        # An author of plugins in C; one such tree is enough.
        [ "$suite" != bookworm ] || packages=$packages,gcc,libc6-dev,pkg-config
        unshare --mount bash -ec '
            mount -t tmpfs tmpfs /mnt
            debootstrap --variant=minbase --include="$3" "$1" /mnt/tree || { tail -n 20 /mnt/tree/debootstrap/debootstrap.log; exit 1; }
            chroot /mnt/tree useradd --create-home alice
            rm -rf /mnt/tree/var/cache/apt/archives/*.deb /mnt/tree/dev/*
            cp -a /mnt/tree "$2.new"' - "$suite" "$tree" "$packages" >&2 || { rm -rf "$tree.new"; exit 75; }
        sha256sum "$(realpath "$0")" > "$tree.new/made-by"
        mv "$tree.new" "$tree"
    fi
    exec 9>&-
    exec unshare --mount --pid --net --uts --ipc --fork --kill-child "$0" "$suite" "$files" inside
fi

# What is mounted here goes with this mount namespace.
mount -t tmpfs tmpfs /mnt
mkdir /mnt/{upper,work,root}
mount -t overlay -o "lowerdir=$tree,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
cd /mnt/root
mkdir -p files old
mount --bind "$files" files
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
for directory in dev tmp run; do mount -t tmpfs -o mode=0755 tmpfs $directory; done
chmod 1777 tmp
mkdir dev/net dev/pts dev/shm
for device in null zero full random urandom tty net/tun; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
ln -s /proc/self/fd dev/fd
ip link set lo up
pivot_root . old
umount -l /old
rmdir /old
exec env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 TERM=dumb DEBIAN_FRONTEND=noninteractive \
    timeout 300 bash -e -o pipefail /files/script < /dev/null
