//! The sandboxes of the proxy and of the gateway: only the system calls of their loops
//! ([`vdens_sandbox`]).
//!
//! Both read what strangers send. Were one of their parsers broken, they could still start no
//! program, write no file, look at no other process and make no namespace. What they may not do
//! fails with EPERM, and the log names the call. The gateway opens no file at all.

use std::io;

use vdens_sandbox::{Calls, Confinement, Group, log_to};

/// The sockets that the proxy makes: those of clients and services, and those of its own parts.
const FAMILIES: &[libc::c_int] = &[
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
    libc::AF_UNIX,
];

/// The sockets that the gateway makes for the proxy.
const FAMILIES_INSIDE: &[libc::c_int] = &[libc::AF_INET, libc::AF_INET6];

/// Leaves the proxy only what it needs from now on.
///
/// # Errors
/// The kernel has no seccomp filters.
pub(crate) fn enter_proxy() -> io::Result<()> {
    let groups = vec![
        Group::Runtime,
        Group::Loop,
        Group::Streams,
        Group::Sockets(FAMILIES),
        // The host's resolv.conf is read again when it changes.
        Group::Read,
        // The end of the gateway, and of the directory that it was in.
        Group::Children,
    ];
    let more = vec![
        libc::SYS_kill,
        libc::SYS_unlinkat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink,
    ];
    enter("proxy", groups, more)
}

/// Leaves the gateway only what it needs once its namespace is prepared.
///
/// # Errors
/// The kernel has no seccomp filters.
pub(crate) fn enter_gateway() -> io::Result<()> {
    let groups = vec![
        Group::Runtime,
        Group::Loop,
        Group::Streams,
        Group::Sockets(FAMILIES_INSIDE),
    ];
    // At its end it wakes its session.
    enter("gateway", groups, vec![libc::SYS_kill])
}

fn enter(who: &str, groups: Vec<Group>, more: Vec<libc::c_long>) -> io::Result<()> {
    log_to(
        Some(libc::STDERR_FILENO),
        format!("[WARN] nat://: the {who}'s sandbox refuses the system call "),
        String::new(),
    );
    let confinement = Confinement {
        calls: Calls::Only { groups, more },
        files: None,
        network: true,
        signals: true,
    };
    confinement.enter().map(drop)
}
