//! A virtual machine that runs vdens itself: its kernel has what the machine of the tests may lack.
//!
//! Theory of operation. The initial ram disk is made of three archives: the built programs with
//! their libraries and tcpdump, the guest's own, and what vdens needs of the kernel there
//! (`tests/guest.sh`). The shell on the serial line is an ordinary user's. The processor is
//! emulated, so a step takes a second where it takes none elsewhere.

use std::time::Duration;

use vdens_tests::{GUEST, Lab, Session, stretched};

use crate::vm::{QEMU, await_boot, machine};

/// What the guest has of the built programs, beside its plugins.
const PROGRAMS: &str = "vdens vde_plug vdectl libvdens_null.so libvdens_switch.so libvdens_vde.so";

/// Makes the ram disk `$3` of the programs `$2`, found in `$1`, and the archives of the guest `$4`.
/// An archive that is not compressed takes the guest no time.
const PACK: &str = r#"
set -euo pipefail
root=$(mktemp -d); trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/opt/vdens "$root"/usr/sbin
for program in $2; do strip --strip-debug -o "$root/opt/vdens/$program" "$1/$program"; done
cp -L "$(PATH=/usr/bin:/usr/sbin:/bin:/sbin command -v tcpdump)" "$root/usr/sbin/"
for library in $(ldd "$root"/opt/vdens/* "$root"/usr/sbin/* | grep -o '/[^: ]*\.so[^: ]*' | grep -v "^$root" | sort -u); do
    mkdir -p "$root${library%/*}"; cp -L "$library" "$root$library"
done
chmod -R a+rX,go-w "$root"
(cd "$root"; find . | cpio -o -H newc -R 0:0 --quiet) > "$3"
cat "$4"/initrd.gz "$4"/inside.gz >> "$3"
"#;

/// Boots a guest that has no network card and can run vdens; the shell of an ordinary user in it.
pub(crate) fn boot(lab: &Lab) -> Session<'_> {
    let (bin, disk) = (lab.bin(), lab.write("guest.img", ""));
    let arguments = [
        "-c",
        PACK,
        "pack",
        &bin.to_string_lossy(),
        PROGRAMS,
        &disk,
        GUEST,
    ];
    lab.command("bash", arguments).ok();
    let guest = lab.command(QEMU, machine(&disk, 768)).args(["-no-reboot"]);
    let guest = guest.session();
    await_boot(&guest);
    guest
}

/// Runs a script in the guest, which must succeed; what it wrote.
#[track_caller]
pub(crate) fn ok(guest: &Session<'_>, script: &str) -> String {
    let (status, text) = guest.run_within(stretched(Duration::from_secs(120)), script);
    assert_eq!(status, 0, "{script}: {text}");
    text
}
