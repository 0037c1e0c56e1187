#!/bin/bash
# Prepares a Debian or Ubuntu machine for the tests: packages, a second Rust compiler, two ordinary
# users, /dev/net/tun, a virtual machine. Needs root. Changes nothing that is in order already, so
# it may run before every test.
set -euo pipefail
cd "$(dirname "$0")"
[ "$(id -u)" = 0 ] || { echo "tests/setup.sh: needs root" >&2; exit 1; }

# Foreign peers (vdens, vdeplug, vde-switch, vde2, qemu), C plugins of libvdeplug, and tools that the
# tests drive them with.
packages="gcc g++ libc6-dev iproute2 iputils-ping ethtool util-linux procps passwd tmux socat tcpdump tshark iperf3 iptables nftables python3
          vdens vdeplug vde-switch vde-wirefilter vde2 qemu-system-x86 cpio gzip busybox-static bubblewrap curl dnsmasq-base libcap2-bin
          uidmap keepalived abigail-tools binutils frr nginx podman crun traceroute iputils-tracepath
          wget openssh-client openssh-server bind9-dnsutils git isc-dhcp-client
          libvdeplug2 libvdeplug-slirp libvdeplug-agno libvdeplug-vlan passt slirp4netns mininet bridge-utils
          man-db mandoc bash-completion zsh fish
          debootstrap dpkg-dev lintian pkg-config systemd clang libclang-rt-dev"
# A second compiler, for plugins: Debian's, or what the system has.
[ -x /usr/bin/rustc ] || packages="$packages rustc-web"
missing=$(for package in $packages; do dpkg -s "$package" 2>/dev/null | grep -q '^Status: install ok' || echo "$package"; done)
if [ -n "$missing" ]; then
    export DEBIAN_FRONTEND=noninteractive
    # A package must not start its server (openssh-server's): the tests start their own.
    policy=/usr/sbin/policy-rc.d
    [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' > $policy; chmod +x $policy; trap 'rm -f $policy' EXIT; }
    apt-get update -qq
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $missing
fi

for user in vdens-test vdens-test2; do
    id "$user" >/dev/null 2>&1 || useradd --system --no-create-home --home-dir /nonexistent --shell /bin/sh --user-group "$user"
done
# Subordinate ids, for sessions with more than one user.
grep -q ^vdens-test: /etc/subuid || usermod --add-subuids 300000-365535 --add-subgids 300000-365535 vdens-test

[ -c /dev/net/tun ] || { mkdir -p /dev/net; mknod /dev/net/tun c 10 200; }
chmod 0666 /dev/net/tun

setpriv --reuid vdens-test --regid vdens-test --clear-groups unshare -Urn true || {
    echo "tests/setup.sh: ordinary users cannot make user namespaces here; look at the sysctls user.max_user_namespaces," >&2
    echo "kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns" >&2
    exit 1
}

# The virtual machine, made anew when the way it is made has changed. Its test is skipped if there
# is none.
guest=/var/cache/vdens-tests/guest
if ! sha256sum --status -c "$guest/made-by" 2>/dev/null; then
    rm -rf "$guest"
    if ./guest.sh "$guest"; then
        sha256sum guest.sh > "$guest/made-by"
    else
        rm -rf "$guest"
        echo "tests/setup.sh: no virtual machine, the tests that need it will be skipped" >&2
    fi
fi
