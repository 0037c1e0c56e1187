#!/bin/bash
# Makes a virtual machine for the tests out of Debian's packages (no image is downloaded):
# DIR/vmlinuz and DIR/initrd.gz, and for the benchmark DIR/initrd-iperf3.gz, which has iperf3 too.
# DIR/inside.gz is a further archive, to be put behind initrd.gz: with it an ordinary user can run
# vdens inside the guest, and the shell is that user's.
# usage: guest.sh DIR     (needs apt-get with up-to-date lists, dpkg, cpio, gzip)
# The guest has one virtio network card, eth0, and a root shell on the serial line that does not
# echo. It prints "guest ready".
set -euo pipefail
[ $# = 1 ] || { echo "usage: guest.sh DIR" >&2; exit 2; }
mkdir -p "$1"
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net"

kernel() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends/ { print $2; exit }'; }
[ -n "$(kernel)" ] || apt-get update -qq
chmod 0755 "$work"; mkdir "$work/deb" "$work/x"
(cd "$work/deb" && apt-get download -qq -o APT::Sandbox::User=root "$(kernel)" busybox-static)
for package in "$work"/deb/*.deb; do dpkg -x "$package" "$work/x"; done

root=$work/root; mkdir -p "$root"/{bin,proc,sys,dev,mods}
cp "$work"/x/bin/busybox "$root/bin/"
for module in $modules; do find "$work/x" -path '*/lib/modules/*' -name "$module.ko" -exec cp {} "$root/mods/" \; ; done
cat > "$root/init" <<INIT
#!/bin/busybox sh
b=/bin/busybox
\$b mount -t proc p /proc; \$b mount -t sysfs s /sys; \$b mount -t devtmpfs d /dev; \$b --install -s /bin
for module in $modules; do [ -f /mods/\$module.ko ] && insmod /mods/\$module.ko; done
stty -echo
[ ! -f /inside ] || . /inside
echo guest ready
exec sh
INIT
chmod +x "$root/init"
cp "$work"/x/boot/vmlinuz-* "$1/vmlinuz"
pack() { (cd "$1" && find . | cpio -o -H newc --quiet | gzip -1); }
pack "$root" > "$work/initrd.gz"

# What vdens needs of the kernel, and an ordinary user. The modules are in the order of loading.
inside_modules="llc stp bridge veth tun mrp garp 8021q libcrc32c nfnetlink nf_tables nft_meta_bridge"
inside=$work/inside; mkdir -p "$inside"/{etc,mods}
for module in $inside_modules; do find "$work/x" -path '*/lib/modules/*' -name "$module.ko" -exec cp {} "$inside/mods/" \; ; done
echo 'alice:x:1000:1000::/home/alice:/bin/sh' > "$inside/etc/passwd"
echo 'alice:x:1000:' > "$inside/etc/group"
cat > "$inside/inside" <<INSIDE
for module in $inside_modules; do insmod /mods/\$module.ko; done
chmod 0666 /dev/net/tun; ip link set lo up
mkdir -p /tmp /run /home; mount -t tmpfs -o mode=1777 t /tmp; mount -t tmpfs r /run
mkdir -p /home/alice /run/user/1000; chown 1000:1000 /home/alice /run/user/1000; chmod 0700 /run/user/1000
export HOME=/home/alice USER=alice XDG_RUNTIME_DIR=/run/user/1000 PATH=/opt/vdens:/usr/sbin:/usr/bin:/bin
export PS1= PS2=; cd /tmp; echo guest ready
exec su alice
INSIDE
pack "$inside" > "$1/inside.gz"

# A second archive behind the first. It is apart because it makes the guest boot slower.
mkdir "$work/deb2" "$work/y"; more=$work/more; mkdir -p "$more"/{bin,tmp,lib}; ln -s lib "$more/lib64"
(cd "$work/deb2" && apt-get download -qq -o APT::Sandbox::User=root iperf3 libiperf0 libsctp1 libssl3 libc6)
for package in "$work"/deb2/*.deb; do dpkg -x "$package" "$work/y"; done
cp "$work/y/usr/bin/iperf3" "$more/bin/"
for library in ld-linux-x86-64.so.2 libc.so.6 libm.so.6 libcrypto.so.3 libsctp.so.1 libiperf.so.0; do
    cp -L "$(find "$work/y" -name "$library" -path '*x86_64-linux-gnu*' | head -n 1)" "$more/lib/"
done
{ cat "$work/initrd.gz"; pack "$more"; } > "$work/initrd-iperf3.gz"
mv "$work/initrd.gz" "$work/initrd-iperf3.gz" "$1/"
chmod -R a+rX "$1"
