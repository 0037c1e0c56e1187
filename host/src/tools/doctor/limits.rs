//! Limits that make vdens slower or smaller, but do not stop it.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::Finding;
use crate::sys::user_namespace::sysctl;

/// Kernel settings: the name, the least that is wanted, and what a lower value means.
const SETTINGS: [(&str, u64, &str); 3] = [
    (
        "net.core.wmem_max",
        4 << 20,
        "cables through user space drop sooner",
    ),
    ("net.core.rmem_max", 4 << 20, "links over UDP drop sooner"),
    (
        "net.unix.max_dgram_qlen",
        64,
        "vde:// and ptp:// hold few frames for a slow reader",
    ),
];

/// Limits of this process: the resource, its name, its letter for ulimit, the least that is wanted,
/// and what for.
const RESOURCES: [(Resource, &str, &str, u64, &str); 2] = [
    (
        Resource::RLIMIT_NOFILE,
        "descriptors",
        "n",
        1024,
        "a switch needs two for each port",
    ),
    (
        Resource::RLIMIT_NPROC,
        "processes",
        "u",
        256,
        "vdens needs two, and one for each link",
    ),
];

/// Whether the kernel can keep the files of a confined process apart.
fn landlock() -> Finding {
    match vdens_sandbox::landlock_version() {
        Some(version) => Finding::ok("Landlock", format!("version {version}")),
        None => Finding::note(
            "Landlock",
            "this kernel has none, so plugins that are confined can still open your files",
        )
        .remedy("boot Linux 5.13 or newer with landlock in its parameter lsm="),
    }
}

/// Examines all limits. A setting that this kernel or namespace lacks is left out.
pub(super) fn all() -> Vec<Finding> {
    let settings = SETTINGS.iter().filter_map(|&(name, wanted, consequence)| {
        let value = sysctl(&name.replace('.', "/"))?;
        Some(match value >= wanted {
            true => Finding::ok(name, value.to_string()),
            false => Finding::note(name, format!("{value}, so {consequence}"))
                .remedy(format!("sudo sysctl {name}={wanted}")),
        })
    });
    let resources = RESOURCES
        .iter()
        .filter_map(|&(resource, what, letter, wanted, use_)| {
            let (soft, _) = getrlimit(resource).ok()?;
            let check = format!("limit of {what}");
            Some(match soft {
                RLIM_INFINITY => Finding::ok(check, "none"),
                soft if soft >= wanted => Finding::ok(check, soft.to_string()),
                soft => Finding::note(check, format!("{soft}; {use_}"))
                    .remedy(format!("ulimit -{letter} {wanted}")),
            })
        });
    settings.chain(resources).chain([landlock()]).collect()
}
