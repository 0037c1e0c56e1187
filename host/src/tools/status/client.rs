//! Asking all processes at once.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt,
};

use crate::error::{Error, ErrorKind, Result};
use crate::ipc::status::{Process, Report, directory};
use crate::ipc::{Channel, MAX_REPORT, Nothing, Received, ReportReply, read_report};
use crate::sys::process::wait;
use crate::sys::runtime::{self, Dir};

/// How long a process may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// How many processes are asked at once: a bound on descriptors.
const AT_ONCE: usize = 256;

/// The most that all answers may have together, in bytes: a bound on memory.
const MAX_ANSWERS: u64 = 4 * MAX_REPORT;

/// The most JSON objects in an answer, because an object takes more memory than its text. Two
/// switches with full address tables have half as many.
const MAX_OBJECTS: usize = 1 << 19;

/// The longest error message that is shown, in characters.
const MAX_COMPLAINT: usize = 200;

/// What a process answers, or why it does not.
#[derive(Debug)]
pub struct Answer {
    /// Its id.
    pub(crate) pid: u32,
    /// The answer.
    pub(crate) process: Result<Process<Report>>,
}

/// Asks all processes of this user, in the order of their ids.
///
/// # Errors
/// A directory cannot be read.
pub fn ask_all() -> Result<Vec<Answer>> {
    runtime::complain();
    runtime::complain_of_environment();
    ask_again()
}

/// As [`ask_all`], without its warnings.
///
/// # Errors
/// As for [`ask_all`].
pub(crate) fn ask_again() -> Result<Vec<Answer>> {
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
    let mut room = MAX_ANSWERS;
    let chunks = all.chunks(AT_ONCE);
    Ok(chunks.flat_map(|chunk| ask(chunk, &mut room)).collect())
}

/// Asks one process of this user. `None` if there is no such process.
///
/// # Errors
/// A directory cannot be read, or the process does not answer.
pub(crate) fn ask_one(pid: u32) -> Result<Option<Process<Report>>> {
    let name = directory()?;
    let mut room = MAX_ANSWERS;
    for base in Dir::all() {
        let Ok(dir) = base.dir(&name) else { continue };
        let dir = Arc::new(dir);
        let answer = ask(&[Socket { pid, dir }], &mut room).pop();
        if let Some(answer) = answer {
            return answer.process.map(Some);
        }
    }
    Ok(None)
}

/// The asking end of a connection to a process.
type StatusChannel = Channel<Nothing, ReportReply>;

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

/// Whether the process listens on the socket.
fn is_of(socket: &OwnedFd, pid: u32) -> bool {
    getsockopt(socket, sockopt::PeerCredentials).is_ok_and(|peer| peer.pid().cast_unsigned() == pid)
}

/// Removes a socket that refuses connections: its process is gone. Returns whether it is stale.
fn remove_stale(pid: u32, path: &Path, errno: Errno) -> bool {
    let is_stale = errno == Errno::ECONNREFUSED;
    if is_stale && fs::remove_file(path).is_ok() {
        log::debug!("process {pid} was killed and left its socket behind");
    }
    is_stale || errno == Errno::ENOENT
}

/// Asks some processes. Those that are gone have no answer. The answers have `room` bytes together.
fn ask(sockets: &[Socket], room: &mut u64) -> Vec<Answer> {
    let mut answers: Vec<Answer> = Vec::new();
    let mut asked: Vec<(u32, StatusChannel)> = Vec::new();
    for socket in sockets {
        let pid = socket.pid;
        let name = pid.to_string();
        let path = socket.dir.at(&name);
        match call(&path) {
            Ok(connection) if !is_of(&connection, pid) => {
                let error = Error::new(ErrorKind::Permission, "another process has its socket");
                let file = socket.dir.shown(&name);
                let process = Err(error.hint(format!("rm {}", file.display())));
                answers.push(Answer { pid, process });
            }
            Ok(connection) => asked.push((pid, Channel::from(connection))),
            Err(errno) if remove_stale(pid, &path, errno) => {}
            // Its queue is full of others that it does not answer.
            Err(Errno::EAGAIN) => answers.push(silent(pid)),
            Err(errno) => {
                let error = Error::path("connect to", &socket.dir.shown(&name), &errno.into());
                let process = Err(error);
                answers.push(Answer { pid, process });
            }
        }
    }
    let deadline = Instant::now() + ANSWER_LIMIT;
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
        answers.extend(answered.filter_map(|(pid, channel)| hear(pid, &channel, room)));
    }
    answers.extend(asked.into_iter().map(|(pid, _)| silent(pid)));
    answers.sort_unstable_by_key(|answer| answer.pid);
    answers
}

/// Reads an answer. `None` if the process ended instead.
fn hear(pid: u32, channel: &StatusChannel, room: &mut u64) -> Option<Answer> {
    let process = match channel.receive() {
        Ok(Received::Message(ReportReply::File, mut fds)) => fds
            .pop()
            .ok_or_else(|| unintelligible("there is none"))
            .and_then(|fd| read_report(fd, MAX_REPORT.min(*room)))
            .and_then(|text| {
                *room = room.saturating_sub(text.len() as u64);
                if text.bytes().filter(|byte| *byte == b'{').count() > MAX_OBJECTS {
                    return Err(unintelligible(format_args!(
                        "it has more than {MAX_OBJECTS} objects"
                    )));
                }
                serde_json::from_str(&text).map_err(unintelligible)
            })
            // A process can report on itself only.
            .map(|process: Process<Report>| Process { pid, ..process }),
        Ok(Received::Message(ReportReply::None(why), _)) => {
            let message = format!("it cannot report: {}", clipped(&why));
            Err(Error::new(ErrorKind::Other, message))
        }
        Ok(Received::Malformed(why)) => Err(unintelligible(why)),
        Ok(Received::Closed) => return None,
        Err(error) => Err(error),
    };
    Some(Answer { pid, process })
}

fn silent(pid: u32) -> Answer {
    let message = format!("it does not answer within {} s", ANSWER_LIMIT.as_secs());
    let error = Error::new(ErrorKind::Busy, message).hint("it hangs or is stopped");
    let process = Err(error);
    Answer { pid, process }
}

/// The error for a process whose answer cannot be understood.
fn unintelligible(what: impl std::fmt::Display) -> Error {
    // It may quote the answer.
    let what = clipped(&what.to_string());
    Error::new(
        ErrorKind::Protocol,
        format!("its answer makes no sense: {what}"),
    )
}

fn clipped(text: &str) -> String {
    match text.char_indices().nth(MAX_COMPLAINT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
