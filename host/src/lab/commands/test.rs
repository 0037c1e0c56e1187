//! `vdectl lab test`: runs the tests of a lab's file.
//!
//! A test passes when its command ends with the expected status. Until its time is over, it is run
//! again: when the node's interfaces, addresses or routes change, for example because a routing
//! protocol has converged, and after a pause that doubles. So a test waits for what it needs, and
//! no longer.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use super::change::{self, Lifetime};
use super::find;
use super::join::{self, Streams};
use super::verdict::{Failure, Format, Outcome, Printer, Verdict};
use crate::error::{Error, Result, system};
use crate::ipc::lab_socket;
use crate::lab::model::{Lab, Test};
use crate::lab::{file, of_node};
use crate::namespace::enter::Door;
use crate::plugins::host_services::InstalledPlugins;
use crate::sys::child::Exit;
use crate::sys::process::wait;

/// The exit status if a test has failed.
const EXIT_FAILED: i32 = 1;

/// How long a command may go on after its test's time is over, before it is killed.
const OVERTIME: Duration = Duration::from_secs(30);

/// The first pause between two attempts, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];

/// How much of a command's output is shown, in bytes.
const SHOWN: usize = 4096;

/// Runs the tests of a lab: of a file, whose lab is started and ended if it does not run yet, or of
/// the lab that runs by that name. Returns the exit status. A lab that was started for the tests
/// ends with this process, even if that is killed.
///
/// # Errors
/// The file is wrong, its lab cannot be started, or a test cannot be run.
pub fn test(lab: &str, format: Format, plugins: &InstalledPlugins) -> Result<i32> {
    let path = Path::new(lab);
    let is_file = path.is_file();
    let lab = match is_file {
        true => file::read(path, plugins)?,
        false => file::read(Path::new(&find::the_lab(Some(lab))?.lab.file), plugins)?,
    };
    let is_started = is_file && lab_socket::connect_to(&lab.name).is_err();
    if is_started {
        change::up(path, plugins.clone(), Lifetime::Caller)?;
    }
    let outcome = run_all(&lab, format);
    let ended = match is_started {
        true => change::down(Some(&lab.name)),
        false => Ok(()),
    };
    outcome.and_then(|status| ended.map(|()| status))
}

fn run_all(lab: &Lab, format: Format) -> Result<i32> {
    let running = find::the_lab(Some(&lab.name))?.lab;
    let mut printer = Printer::start(format, lab)?;
    for test in &lab.tests {
        let name = &lab.nodes[test.node].name;
        let node = running.nodes.iter().find(|node| node.name == *name);
        let node = node.ok_or_else(|| {
            Error::closed(format!("the lab {} runs without the node {name}", lab.name))
                .hint("bring it up to date: vdectl lab apply FILE")
        })?;
        let verdict = run(test, name, node.pid).map_err(|error| of_node(name, error))?;
        printer.print(verdict)?;
    }
    Ok(match printer.end()? {
        Outcome::Passed => 0,
        Outcome::Failed => EXIT_FAILED,
    })
}

/// Runs a test until it passes or its time is over.
fn run<'a>(test: &'a Test, node: &'a str, pid: u32) -> Result<Verdict<'a>> {
    let start = Instant::now();
    let deadline = start + test.within;
    let door = join::door(pid)?;
    let changes = watch(&door)?;
    let [mut pause, longest] = PAUSES;
    let failure = loop {
        // What changes from here on may make the next attempt pass.
        drain(&changes);
        let (status, output) = attempt(test, &door, deadline + OVERTIME)?;
        let why = match status {
            Some(status) if status == i32::from(test.expect) => break None,
            Some(status) => format!("exit status {status}, not {}", test.expect),
            None => "it does not end".to_owned(),
        };
        let now = Instant::now();
        if now >= deadline {
            break Some(Failure { why, output });
        }
        let mut fds = [PollFd::new(changes.as_fd(), PollFlags::POLLIN)];
        wait(&mut fds, Some(deadline.min(now + pause)))?;
        pause = (2 * pause).min(longest);
    };
    Ok(Verdict {
        test,
        node,
        time: start.elapsed(),
        failure,
    })
}

/// Runs a test's command once. Returns its exit status, or none if it was killed at `deadline`, and
/// the end of its output.
fn attempt(test: &Test, door: &Door, deadline: Instant) -> Result<(Option<i32>, String)> {
    let memory = memfd_create("vdens-test", MFdFlags::MFD_CLOEXEC)
        .map_err(system("make a file in memory"))?;
    let cannot = |error| Error::io("read a test's output", &error);
    let null = File::open("/dev/null").map_err(cannot)?;
    let streams = Streams {
        input: null.into(),
        output: memory.try_clone().map_err(cannot)?,
        errors: memory.try_clone().map_err(cannot)?,
    };
    let words = ["/bin/sh", "-c", &test.run].map(Into::into);
    let mut child = join::start(door, &words, streams)?;
    let exit = child.wait(Some(deadline));
    if exit.is_none() {
        child.kill();
        child.wait(None);
    }
    let mut file = File::from(memory);
    file.rewind().map_err(cannot)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(cannot)?;
    let tail = &bytes[bytes.len().saturating_sub(SHOWN)..];
    let output = String::from_utf8_lossy(tail).trim().to_owned();
    Ok((exit.map(Exit::code), output))
}

/// A socket that becomes readable when the interfaces, addresses or routes of a node change.
fn watch(door: &Door) -> Result<OwnedFd> {
    let mut fds = door.inside(|| {
        let kind = SockType::Raw;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV6_ROUTE;
        let socket = socket(
            AddressFamily::Netlink,
            kind,
            flags,
            SockProtocol::NetlinkRoute,
        )
        .map_err(system("watch the node's network"))?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))
            .map_err(system("watch the node's network"))?;
        Ok(vec![socket])
    })?;
    fds.pop()
        .ok_or_else(|| Error::closed("a helper process lost a descriptor"))
}

/// Discards what a socket has.
fn drain(socket: &OwnedFd) {
    let mut buffer = [0; 8192];
    while recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
}
