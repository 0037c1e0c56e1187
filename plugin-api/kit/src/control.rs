//! Requests to a link that runs: a socket of its own, for what `vdectl` changes in it.
//!
//! # Theory of operation
//!
//! ABI 1 has no call by which a host could ask a link for something of the link's own. So such a
//! link has a datagram socket, `control`, in a directory of its own: `vdens-SCHEME-…` in the
//! runtime directory, or where temporary files are. The directory is closed to other users, and
//! [`find`] looks at no other. The link adds [`ControlSocket::fd`] to what it waits for, and serves
//! [`ControlSocket::next_request`].
//!
//! A request is JSON in one datagram, and so is the answer ([`ask`], [`Question`]). The answer goes
//! to a socket beside the link's. Paths, unlike addresses of the kernel's choice, lead from one
//! network namespace to another (unix(7)).
//!
//! A process that is killed leaves its directory behind. Those that [`ControlSocket::open`] made
//! have the process's id in their name, so the next process that opens or asks removes them.

use std::env;
use std::fmt::Display;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, recv, recvfrom, send,
    sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bound_socket::{Access, BoundSocket, Occupant, probe};
use crate::{Error, ErrorKind, Result};

/// The name of each socket.
const NAME: &str = "control";

/// The longest request, in bytes.
const LONGEST_REQUEST: usize = 4096;

/// The longest answer, in bytes.
const LONGEST_ANSWER: usize = 1 << 20;

/// How long a link has to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// A link's socket for requests. Dropping it removes what it made.
#[derive(Debug)]
pub struct ControlSocket {
    socket: OwnedFd,
    _path: BoundSocket,
    /// Dropped last: it is empty then.
    _directory: Option<Directory>,
}

/// Who asked.
#[derive(Debug)]
pub struct Asker(UnixAddr);

impl ControlSocket {
    /// Makes a socket for a link of this scheme, in a new directory.
    ///
    /// # Errors
    /// Neither the runtime directory nor that of temporary files can be written.
    pub fn open(scheme: &str) -> Result<Self> {
        remove_stale(scheme);
        let directory = Directory::new(scheme)?;
        let mut control = Self::in_directory(&directory.0)?;
        control._directory = Some(directory);
        Ok(control)
    }

    /// Makes a socket in a directory of the caller's, whose name starts with `vdens-SCHEME-`.
    ///
    /// # Errors
    /// The directory is gone, or has one.
    pub fn in_directory(directory: &Path) -> Result<Self> {
        let socket = datagram(SockFlag::SOCK_NONBLOCK)
            .map_err(|errno| Error::io("make a socket", &errno.into()))?;
        let access = Access {
            mode: 0o600,
            group: None,
        };
        let path = BoundSocket::bind(&socket, &directory.join(NAME), access)?;
        Ok(Self {
            socket,
            _path: path,
            _directory: None,
        })
    }

    /// What is readable when there is a request.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next request, and who asks. The answer to one that makes no sense is its `error`.
    pub fn next_request<R: DeserializeOwned>(&self) -> Option<(R, Asker)> {
        let mut buffer = [0; LONGEST_REQUEST];
        loop {
            match recvfrom::<UnixAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, Some(from))) => match serde_json::from_slice(&buffer[..length]) {
                    Ok(request) => return Some((request, Asker(from))),
                    Err(error) => {
                        let answer = serde_json::json!({ "error": error.to_string() });
                        self.answer(&Asker(from), &answer);
                    }
                },
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// Answers. An asker who no longer waits does not get the answer.
    pub fn answer(&self, asker: &Asker, answer: &impl Serialize) {
        if let Ok(bytes) = serde_json::to_vec(answer) {
            let flags = MsgFlags::MSG_DONTWAIT;
            let _ = sendto(self.socket.as_raw_fd(), &bytes, &asker.0, flags);
        }
    }
}

/// A directory of this process's own, closed to others. Dropping it removes it.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn new(scheme: &str) -> Result<Self> {
        let mut failed = io::Error::from(io::ErrorKind::NotFound);
        for place in places() {
            // A process has as many as it has links.
            let made = (0_u16..).find_map(|number| {
                let path = place.join(format!("{}{}-{number}", prefix(scheme), process::id()));
                match DirBuilder::new().mode(0o700).create(&path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                    result => Some(result.map(|()| Self(path))),
                }
            });
            match made {
                Some(Ok(directory)) => return Ok(directory),
                Some(Err(error)) => failed = error,
                None => {}
            }
        }
        Err(Error::io("make a directory for requests", &failed))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Somebody may be asking: then it is removed as a stale one.
        let _ = fs::remove_dir(&self.0);
    }
}

/// The sockets of this user's links of a scheme. Their links may have ended.
pub fn find(scheme: &str) -> Vec<PathBuf> {
    remove_stale(scheme);
    let is_own = |directory: &PathBuf| {
        directory.symlink_metadata().is_ok_and(|meta| {
            meta.is_dir() && meta.uid() == geteuid().as_raw() && meta.mode() & 0o077 == 0
        })
    };
    let own = directories(scheme).filter(is_own);
    let mut found: Vec<_> = own.map(|directory| directory.join(NAME)).collect();
    found.sort_unstable();
    found
}

/// Those of them that a process has.
pub fn find_of(scheme: &str, process: u32) -> Vec<PathBuf> {
    let prefix = format!("{}{process}-", prefix(scheme));
    let is_of = |path: &PathBuf| {
        let directory = path.parent().and_then(Path::file_name);
        directory.is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
    };
    find(scheme).into_iter().filter(is_of).collect()
}

/// Asks the link whose socket is at `path`, and waits for the answer.
///
/// # Errors
/// The link has ended, does not answer in time, or its answer makes no sense; or the request has
/// more than 4096 bytes.
pub fn ask<A: DeserializeOwned>(path: &Path, request: &impl Serialize) -> Result<A> {
    Question::send(path, request)?.answer()
}

/// A request that was sent to a link, and whose answer is to come. Dropping it gives that up.
#[derive(Debug)]
pub struct Question {
    socket: OwnedFd,
    /// The link's socket.
    path: PathBuf,
    /// Where the answer comes to.
    answers: PathBuf,
}

impl Question {
    /// Sends a request to the link whose socket is at `path`. A process asks a link one at a time.
    ///
    /// # Errors
    /// The link has ended, or the request has more than 4096 bytes.
    pub fn send(path: &Path, request: &impl Serialize) -> Result<Self> {
        let request = serde_json::to_vec(request).map_err(|error| nonsense(path, &error))?;
        if request.len() > LONGEST_REQUEST {
            let length = request.len();
            let message = format!("the request has {length} bytes, more than {LONGEST_REQUEST}");
            return Err(Error::usage(message).hint("ask for less at a time"));
        }
        let cannot = |errno: Errno| Error::path("ask", path, &errno.into());
        let socket = datagram(SockFlag::empty()).map_err(cannot)?;
        let answers = path.with_file_name(format!("answers-{}", process::id()));
        UnixAddr::new(&answers)
            .and_then(|address| bind(socket.as_raw_fd(), &address))
            .map_err(cannot)?;
        let path = path.to_owned();
        let question = Self {
            socket,
            path,
            answers,
        };
        let send = || {
            let socket = &question.socket;
            connect(socket.as_raw_fd(), &UnixAddr::new(&question.path)?)?;
            let limit = TimeVal::seconds(LIMIT.as_secs() as i64);
            setsockopt(socket, sockopt::ReceiveTimeout, &limit)?;
            setsockopt(socket, sockopt::SendTimeout, &limit)?;
            send(socket.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL)
        };
        send().map_err(cannot)?;
        Ok(question)
    }

    /// What is readable when the answer is there.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The answer, for which it waits if need be.
    ///
    /// # Errors
    /// The link does not answer in time, or its answer makes no sense.
    pub fn answer<A: DeserializeOwned>(self) -> Result<A> {
        let mut answer = vec![0; LONGEST_ANSWER];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())
            .map_err(|errno| Error::path("ask", &self.path, &errno.into()))?;
        serde_json::from_slice(&answer[..length]).map_err(|error| nonsense(&self.path, &error))
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // It is there unless the link's directory is gone.
        let _ = fs::remove_file(&self.answers);
    }
}

fn nonsense(path: &Path, error: &dyn Display) -> Error {
    let message = format!("the answer at {} makes no sense: {error}", path.display());
    Error::new(ErrorKind::Protocol, message)
}

fn datagram(flags: SockFlag) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | flags;
    socket(AddressFamily::Unix, SockType::Datagram, flags, None)
}

/// Where the directories of links are, best first.
fn places() -> Vec<PathBuf> {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|directory| directory.is_absolute());
    let mut places: Vec<_> = runtime.into_iter().chain([env::temp_dir()]).collect();
    places.dedup();
    places
}

fn prefix(scheme: &str) -> String {
    format!("vdens-{scheme}-")
}

/// What has the name of a directory of a link of this scheme.
fn directories(scheme: &str) -> impl Iterator<Item = PathBuf> {
    let prefix = prefix(scheme);
    let entries = places()
        .into_iter()
        .filter_map(|place| fs::read_dir(place).ok());
    let names = entries.flatten().flatten();
    names
        .filter(move |entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
}

/// Removes what processes have left that were killed.
fn remove_stale(scheme: &str) {
    for directory in directories(scheme) {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        let mut numbers = name[prefix(scheme).len()..]
            .split('-')
            .map(str::parse::<u32>);
        let (Some(Ok(process)), Some(Ok(_)), None) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            continue;
        };
        // It may live where this process cannot see it.
        let path = directory.join(NAME);
        let has_ended =
            || probe(&path).is_ok_and(|found| matches!(found, Occupant::Stale | Occupant::Nothing));
        if !lives(process) && has_ended() {
            // What another user made cannot be removed, and need not be.
            let _ = fs::remove_file(&path);
            let _ = fs::remove_dir(&directory);
        }
    }
}

/// Whether this process sees one of this id that has not ended. One that has ended and whose parent
/// does not know yet is a zombie (proc_pid_stat(5): state Z).
fn lives(process: u32) -> bool {
    let directory = PathBuf::from(format!("/proc/{process}"));
    let stat = fs::read_to_string(directory.join("stat")).unwrap_or_default();
    // The name before the state may have any bytes.
    let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    directory.exists() && !state.starts_with(['Z', 'X'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_request_is_answered_and_nothing_is_left() {
        let control = ControlSocket::open("kit_test").unwrap();
        let directory = control._directory.as_ref().unwrap().0.clone();
        let paths = find("kit_test");
        assert_eq!(paths, [directory.join(NAME)]);
        assert_eq!(find_of("kit_test", process::id()), paths);
        assert!(find_of("kit_test", 1).is_empty());
        let asking = thread::spawn(move || ask::<Vec<u32>>(&paths[0], &"double"));
        let (request, asker) = loop {
            if let Some(next) = control.next_request::<String>() {
                break next;
            }
            thread::yield_now();
        };
        control.answer(&asker, &[4, 2]);
        assert_eq!(
            (request.as_str(), asking.join().unwrap()),
            ("double", Ok(vec![4, 2]))
        );
        drop(control);
        assert!(!directory.exists());
    }

    #[test]
    fn what_a_killed_process_left_is_removed_by_the_next() {
        // No process has this number: it is the largest that there can be (proc(5)).
        let path = places()[0].join("vdens-kit_stale-4194304-0");
        let make = || DirBuilder::new().mode(0o700).create(&path).unwrap();
        make();
        let control = ControlSocket::in_directory(&path).unwrap();
        assert_eq!(find("kit_stale").len(), 1);
        std::mem::forget(control._path);
        drop(control.socket);
        assert!(find("kit_stale").is_empty() && !path.exists());
        make();
        drop(ControlSocket::open("kit_stale").unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn what_a_zombie_left_is_removed_as_well() {
        let mut child = process::Command::new("true").spawn().unwrap();
        let path = places()[0].join(format!("vdens-kit_zombie-{}-0", child.id()));
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while path.exists() && std::time::Instant::now() < deadline {
            find("kit_zombie");
            thread::yield_now();
        }
        let is_there = Path::new(&format!("/proc/{}", child.id())).exists();
        assert!(is_there && !path.exists());
        assert!(child.wait().unwrap().success() && lives(process::id()));
    }

    #[test]
    fn a_request_that_is_too_long_is_not_sent() {
        let error = ask::<u32>(Path::new("/nonexistent/control"), &vec![1; 3000]).unwrap_err();
        assert!(error.message.contains("6001 bytes"), "{error}");
    }

    #[test]
    fn nobody_is_asked_at_a_path_that_is_gone() {
        let error = ask::<u32>(Path::new("/nonexistent/control"), &1).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
    }
}
