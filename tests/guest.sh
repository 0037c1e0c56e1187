#!/bin/bash
# Makes a virtual machine for the tests out of Debian's packages (no image is downloaded):
# DIR/vmlinuz and DIR/initrd.gz.
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
stty -echo; echo guest ready
exec sh
INIT
chmod +x "$root/init"
cp "$work"/x/boot/vmlinuz-* "$1/vmlinuz"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1 > "$work/initrd.gz")
mv "$work/initrd.gz" "$1/initrd.gz"
chmod -R a+rX "$1"
