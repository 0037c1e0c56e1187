//! A virtual machine that runs vdens itself: its kernel has what the machine of the tests may lack.
//!
//! Theory of operation. The initial ram disk is made of three archives: the built programs with
//! their libraries and tcpdump, the guest's own, and what vdens needs of the
//! kernel there (`tests/guest.sh`). The shell on the serial line is an ordinary user's. The
//! processor is emulated, so a step takes a second where it takes none elsewhere.

use std::fs;
use std::process::Command;
use std::time::Duration;

use vdens_tests::{GUEST, Lab, Session, stretched, target};

use crate::vm::{QEMU, await_boot, machine};

/// What the guest has of the built programs, beside its plugins.
const PROGRAMS: &str = "vdens vde_plug vdectl libvdens_null.so libvdens_switch.so libvdens_vde.so";

/// Makes an archive of the programs `$2`, found in `$1`, and their libraries, in the file `$3`.
/// Archives that are not compressed need no time in the guest.
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
cd "$root"; find . | cpio -o -H newc -R 0:0 --quiet > "$3"
"#;

/// Boots a guest that has no network card and can run vdens; the shell of an ordinary user in it.
pub(crate) fn boot(lab: &Lab) -> Session<'_> {
    let archive = lab.write("programs.cpio", "");
    let built = target();
    let packed = Command::new("bash")
        .args(["-c", PACK, "pack"])
        .arg(&built)
        .args([PROGRAMS, &archive])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&packed.stderr);
    assert!(packed.status.success(), "{errors}");
    let mut initrd = fs::read(&archive).unwrap();
    for part in ["initrd.gz", "inside.gz"] {
        initrd.extend(fs::read(format!("{GUEST}/{part}")).unwrap());
    }
    fs::write(&archive, initrd).unwrap();
    let guest = lab
        .command(QEMU, machine(&archive, 768))
        .args(["-no-reboot"]);
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
