//! Asking all processes at once.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::{Process, Report, directory};
use crate::control::{Channel, Message, read_report};
use crate::error::{Error, ErrorKind, Result};
use crate::process::wait;
use crate::runtime::{self, Dir};

/// How long a process may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many are asked at once: a bound on descriptors.
const AT_ONCE: usize = 256;

/// What a process says, or why it says nothing.
#[derive(Debug)]
pub struct Answer {
    /// Its id.
    pub pid: u32,
    /// What it says.
    pub process: Result<Process<Report>>,
}

/// Asks all processes of this user, in the order of their ids.
///
/// # Errors
/// A directory cannot be read.
pub fn ask_all() -> Result<Vec<Answer>> {
    runtime::complain();
    let name = directory()?;
    let mut all = Vec::new();
    for base in Dir::all() {
        match base.dir(&name) {
            Ok(dir) => all.extend(sockets(dir)?),
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    all.sort_unstable_by_key(|socket| socket.pid);
    Ok(all.chunks(AT_ONCE).flat_map(ask).collect())
}

/// Removes the sockets of processes that are gone, without asking the others.
pub(super) fn sweep(dir: &Dir) {
    // If the directory cannot be read there is nothing to be done.
    for name in dir.names().unwrap_or_default() {
        let pid = name.trim_start_matches('.').parse();
        if pid.is_ok_and(|pid| runtime::start_time(pid).is_none()) {
            // Another may have been faster; then it is gone all the same.
            let _ = fs::remove_file(dir.at(&name));
        }
    }
}

/// A process's socket.
struct Socket {
    pid: u32,
    dir: Arc<Dir>,
}

/// The sockets in a directory.
fn sockets(dir: Dir) -> Result<Vec<Socket>> {
    let names = dir.names()?.into_iter();
    let dir = Arc::new(dir);
    let socket = |pid| Socket {
        pid,
        dir: Arc::clone(&dir),
    };
    Ok(names
        .filter_map(|name| name.parse().ok().map(socket))
        .collect())
}

/// Connects to a process.
fn call(path: &Path) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// Removes a socket that refuses connections: nobody listens there any more. Whether it was one.
fn remove_stale(pid: u32, path: &Path, errno: Errno) -> bool {
    let is_stale = errno == Errno::ECONNREFUSED;
    if is_stale && fs::remove_file(path).is_ok() {
        log::debug!("process {pid} was killed and has left its socket");
    }
    is_stale || errno == Errno::ENOENT
}

/// Asks some processes; those that are gone say nothing.
fn ask(sockets: &[Socket]) -> Vec<Answer> {
    let mut answers: Vec<Answer> = Vec::new();
    let mut asked: Vec<(u32, Channel)> = Vec::new();
    for socket in sockets {
        let pid = socket.pid;
        let name = pid.to_string();
        let path = socket.dir.at(&name);
        match call(&path) {
            Ok(connection) => asked.push((pid, Channel::from(connection))),
            Err(errno) if remove_stale(pid, &path, errno) => {}
            // Its queue is full of others whom it does not answer.
            Err(Errno::EAGAIN) => answers.push(silent(pid)),
            Err(errno) => {
                let error = Error::path("connect to", &socket.dir.shown(&name), &errno.into());
                let process = Err(error);
                answers.push(Answer { pid, process });
            }
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while !asked.is_empty() && Instant::now() < deadline {
        let fds = asked.iter().map(|(_, channel)| channel.as_fd());
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if wait(&mut fds, Some(deadline)).is_err() {
            break;
        }
        let heard: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        drop(fds);
        let mut heard = heard.into_iter();
        let answered = asked.extract_if(.., |_| heard.next() == Some(true));
        answers.extend(answered.filter_map(|(pid, channel)| hear(pid, &channel)));
    }
    answers.extend(asked.into_iter().map(|(pid, _)| silent(pid)));
    answers.sort_unstable_by_key(|answer| answer.pid);
    answers
}

/// Reads an answer; `None` if the process ended instead.
fn hear(pid: u32, channel: &Channel) -> Option<Answer> {
    let process = match channel.receive() {
        Ok(Some((Message::Report, mut fds))) => fds
            .pop()
            .ok_or_else(|| unintelligible("there is none"))
            .and_then(read_report)
            .and_then(|text| serde_json::from_str(&text).map_err(unintelligible)),
        Ok(Some(_)) => Err(unintelligible("it is another message")),
        Ok(None) => return None,
        Err(error) => Err(error),
    };
    Some(Answer { pid, process })
}

fn silent(pid: u32) -> Answer {
    let message = format!("it does not answer within {} s", PATIENCE.as_secs());
    let error = Error::new(ErrorKind::Busy, message).hint("it hangs or is stopped");
    let process = Err(error);
    Answer { pid, process }
}

/// The error for a process whose answer cannot be understood.
fn unintelligible(what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("its answer makes no sense: {what}"),
    )
}
