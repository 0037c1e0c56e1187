//! What the kernel lets this user make: namespaces, interfaces in them, a panel.
//!
//! The child does what a supervisor does, in the same order. It makes a user namespace and a panel.
//! In that user namespace it makes a member, which makes a tap. Then it plugs an interface of the
//! member into the panel. If there can be no panel, it makes the member without one, as a
//! supervisor does.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::sched::{CloneFlags, unshare};
use vdens_plugin_kit::Offloads;
use vdens_plugin_kit::tap::{Tap, open_device};

use super::{Finding, Verdict};
use crate::error::{Error, ErrorKind, Result, system};
use crate::ipc::in_child;
use crate::panel::{drop_tagged, enter, make, open_namespace};
use crate::sys::isolate::{Ending, Isolated};
use crate::sys::netlink::Netlink;
use crate::sys::user_namespace::{
    Ids, blame_apparmor, sysctl, unshare_mapped, unshare_when_there_is_room,
};

const NAMESPACES: &str = "namespaces";
const PANEL: &str = "panel";

/// A member's namespaces.
const MEMBER: CloneFlags = CloneFlags::CLONE_NEWUSER
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWUTS);

/// The names of what is made on the panel, and the number of the port.
const BRIDGE: &str = "c0";
const PORT: (&str, u32) = ("p0", 0x1000);

/// Where the child's findings go, a line of JSON each.
struct Reporter(File);

impl Reporter {
    /// Sends a finding to the parent.
    fn add(&self, finding: &Finding) {
        let Ok(mut line) = serde_json::to_vec(finding) else {
            return;
        };
        line.push(b'\n');
        // If the parent is gone, nothing needs the finding.
        let _ = (&self.0).write_all(&line);
    }
}

/// The examination, under way.
pub(super) struct Machine(Isolated);

/// Starts the examination.
pub(super) fn start() -> Result<Machine> {
    // Read outside: a new user namespace has settings of its own.
    let limit = |kind: &str| {
        let most = sysctl(&format!("user/max_{kind}_namespaces"))?;
        Some(format!("user.max_{kind}_namespaces is {most}"))
    };
    let limits: Vec<String> = ["user", "net"].into_iter().filter_map(limit).collect();
    Isolated::start(|to| try_out(&Reporter(to), &limits.join(", "))).map(Machine)
}

impl Machine {
    /// Waits for the findings.
    pub(super) fn finish(self, deadline: Instant) -> Vec<Finding> {
        let fate = self.0.finish(deadline);
        let lines = fate.said.split(|byte| *byte == b'\n');
        let findings = lines.filter_map(|line| serde_json::from_slice(line).ok());
        let mut findings: Vec<Finding> = findings.collect();
        let died = |how| {
            Finding::wrong(NAMESPACES, format!("trying them out ended with {how}"))
                .remedy("a container's seccomp filter may do that: allow setns(2) there")
        };
        match fate.end {
            Ending::Exited(0) => {}
            Ending::Exited(status) => findings.push(died(format!("status {status}"))),
            Ending::Killed(signal) => findings.push(died(signal.to_string())),
            Ending::Hung | Ending::Flooded => findings.push(Finding::wrong(
                NAMESPACES,
                "trying them out did not end: the kernel is busy or stuck",
            )),
        }
        let device = match open_device() {
            Ok(_) => Finding::ok("/dev/net/tun", "can be opened"),
            Err(error) => Finding::failed(Verdict::Wrong, "/dev/net/tun", error),
        };
        let after = findings.iter().rposition(|f| f.check == NAMESPACES);
        findings.insert(after.map_or(0, |at| at + 1), device);
        findings
    }
}

fn try_out(reporter: &Reporter, limits: &str) {
    let on_panel = in_child(|| try_panel(reporter, limits).map(|()| Vec::new()));
    let Err(no_panel) = on_panel else {
        return;
    };
    let alone = in_child(|| {
        unshare_when_there_is_room(Ids::Own, MEMBER)?;
        member(reporter, limits).map(|net| vec![net])
    });
    reporter.add(&match alone {
        Ok(_) => Finding::failed(Verdict::Note, PANEL, no_panel),
        Err(error) => Finding::failed(Verdict::Wrong, NAMESPACES, error),
    });
}

/// Makes a panel and a member of it.
fn try_panel(reporter: &Reporter, limits: &str) -> Result<()> {
    let (user, net, netlink) = make(Ids::Own)?;
    enter(user.as_fd(), CloneFlags::CLONE_NEWUSER)?;
    let member = in_child(|| {
        unshare_mapped(MEMBER)?;
        member(reporter, limits).map(|net| vec![net])
    });
    match plug(&netlink, member?.pop()) {
        Ok(()) => reporter.add(&Finding::ok(
            PANEL,
            "the kernel can carry frames between this user's namespaces",
        )),
        Err(error) => {
            let error = modules(error, "sudo modprobe -a veth bridge");
            reporter.add(&Finding::failed(Verdict::Note, PANEL, error));
            return Ok(());
        }
    }
    let untagged = in_child(|| {
        enter(net.as_fd(), CloneFlags::CLONE_NEWNET)?;
        drop_tagged().map(|()| Vec::new())
    });
    reporter.add(&option(
        "bridges that drop tags",
        untagged.map(drop),
        "a switch's ports in VLANs are in user space",
    ));
    reporter.add(&option(
        "VLAN-aware bridges",
        netlink.set_vlan_filtering(BRIDGE),
        "a switch's ports with tagged VLANs are in user space",
    ));
    reporter.add(&option(
        "VXLAN interfaces",
        netlink.add_vxlan("x0", 1),
        "nothing depends on them",
    ));
    Ok(())
}

/// Makes what a command's process has: configured namespaces and an interface. Returns the network
/// namespace.
fn member(reporter: &Reporter, limits: &str) -> Result<OwnedFd> {
    // Where AppArmor restricts user namespaces, capabilities may fail only when they are used.
    Netlink::open()
        .and_then(|netlink| netlink.set_up("lo"))
        .map_err(blame_apparmor)?;
    reporter.add(&Finding::ok(
        NAMESPACES,
        format!("can be made and configured; {limits}"),
    ));
    match Tap::open("vde0") {
        Ok(tap) => {
            reporter.add(&Finding::ok("taps", "can be made, with virtio headers"));
            reporter.add(&offloads(&tap));
        }
        // The device itself has a finding.
        Err(_) if open_device().is_err() => {}
        Err(error) => reporter.add(&Finding::failed(
            Verdict::Wrong,
            "taps",
            blame_apparmor(error),
        )),
    }
    let net = open_namespace("/proc/self/ns/net")?;
    let mounts = unshare(CloneFlags::CLONE_NEWNS).map_err(system("make a mount namespace"));
    reporter.add(&match mounts {
        Ok(()) => Finding::ok("mount namespace", "can be made, for -r, -R and -s"),
        Err(error) => Finding::failed(Verdict::Note, "mount namespace", blame_apparmor(error)),
    });
    Ok(net)
}

/// Which offloads a tap has. The more, the faster.
fn offloads(tap: &Tap) -> Finding {
    let check = "super-frames";
    let tcp = Offloads(Offloads::ALL.0 & !(Offloads::USO4.0 | Offloads::USO6.0));
    if tap.leaves(Offloads::ALL) {
        Finding::ok(check, "TCP's and UDP's, checksums left undone")
    } else if tap.leaves(tcp) {
        Finding::note(
            check,
            "TCP's, checksums left undone; UDP's need Linux 6.2 or newer",
        )
    } else {
        Finding::note(check, "this kernel's taps have none, so traffic is slower")
    }
}

/// Plugs a member's interface into the panel.
fn plug(netlink: &Netlink, member: Option<OwnedFd>) -> Result<()> {
    let member = member.ok_or_else(|| Error::closed("a helper process lost descriptors"))?;
    netlink.add_bridge(BRIDGE, 1)?;
    let (port, index) = PORT;
    netlink.add_veth(port, index, "vde0", member.as_fd())?;
    netlink.set_bridge(port, Some(BRIDGE))?;
    netlink.set_up(port)
}

/// The finding about something that this kernel may have, and what it means if it has not.
fn option(check: &str, outcome: Result<()>, without: &str) -> Finding {
    match outcome {
        Ok(()) => Finding::ok(check, "this kernel has them"),
        Err(error) if is_lacking(&error) => {
            Finding::note(check, format!("this kernel has none; {without}"))
        }
        Err(error) => Finding::failed(Verdict::Note, check, error),
    }
}

/// Adds the command that loads modules, if that may help.
fn modules(error: Error, command: &str) -> Error {
    match is_lacking(&error) {
        true => error.hint(command),
        false => error,
    }
}

fn is_lacking(error: &Error) -> bool {
    error.errno == libc::EOPNOTSUPP || error.kind == ErrorKind::Unsupported
}
