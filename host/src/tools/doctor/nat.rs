//! What `nat://` needs of this machine: the kernel's packet rules, which the plugin's program
//! `vdens-nat` tries out in a namespace of its own, and ping sockets.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use serde::Deserialize;

use super::{Finding, Verdict};
use crate::plugins::search::Directory;
use crate::sys::trusted_path::Trusted;

const KERNEL: &str = "nat://";
const PINGS: &str = "ping sockets";

/// What `vdens-nat probe` prints.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Probe {
    Complete,
    Lacks(String),
    CannotRun(String),
}

/// Examines both, if the plugin is there.
pub(super) fn all(survey: &[Directory]) -> Vec<Finding> {
    let mut plugins = survey.iter().flat_map(|dir| dir.plugins.iter().flatten());
    match plugins.find(|plugin| plugin.scheme == "nat" && plugin.shadowed_by.is_none()) {
        Some(plugin) => vec![kernel(&plugin.path.with_file_name("vdens-nat")), pings()],
        None => Vec::new(),
    }
}

fn kernel(program: &Path) -> Finding {
    let modprobe = "sudo modprobe -a nft_tproxy nft_reject_inet nft_queue";
    if let Err(error) = Trusted::file(program) {
        return Finding::failed(Verdict::Note, KERNEL, error);
    }
    let output = Command::new(program)
        .arg("probe")
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            return Finding::note(KERNEL, format!("cannot run {}: {error}", program.display()))
                .remedy("install it from where vdens came from");
        }
    };
    match serde_json::from_slice(&output.stdout) {
        Ok(Probe::Complete) => Finding::ok(
            KERNEL,
            "the kernel can divert connections and hold them until the far side has answered",
        ),
        Ok(Probe::Lacks(what)) => Finding::note(KERNEL, what).remedy(modprobe),
        Ok(Probe::CannotRun(why)) => {
            Finding::note(KERNEL, format!("{why}, so slirp serves instead")).remedy(modprobe)
        }
        Err(_) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Finding::note(KERNEL, format!("cannot be tried out: {said}"))
        }
    }
}

/// Whether this user may have ping sockets (icmp(7)).
fn pings() -> Finding {
    let protocol = SockProtocol::Icmp;
    let flags = SockFlag::SOCK_CLOEXEC;
    match socket(AddressFamily::Inet, SockType::Datagram, flags, protocol) {
        Ok(_) => Finding::ok(PINGS, "pings go out through nat://"),
        Err(Errno::EACCES | Errno::EPERM) => Finding::note(
            PINGS,
            "net.ipv4.ping_group_range leaves this user out, so pings through nat:// get no answer",
        )
        .remedy("sudo sysctl net.ipv4.ping_group_range='0 2147483647'"),
        Err(errno) => Finding::note(PINGS, format!("this kernel refuses them: {errno}")),
    }
}
