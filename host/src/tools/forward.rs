//! `vdectl forward`: ports of the host that lead into a network behind `nat://`, changed while it
//! runs.
//!
//! Each gateway has a socket for requests in a directory of its own (`control` in `vdens-nat-*`),
//! in the runtime directory or where temporary files are. Only directories of this user's that are
//! closed to others are looked at. Requests and answers are JSON in one datagram each
//! (plugins/nat/src/proxy/control.rs). The answer comes to a socket beside the gateway's: paths,
//! unlike addresses of the kernel's choice, lead from one network namespace to another (unix(7)).

use std::env;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result, system};
use crate::output::Text;

/// How long a gateway has to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The longest answer, in bytes: a few thousand forwards.
const LONGEST: usize = 1 << 20;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Begin to forward.
    Add,
    /// Stop it.
    Remove,
}

/// A gateway's answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct Answer {
    /// Why it cannot be done.
    #[serde(skip_serializing)]
    error: Option<String>,
    /// The processes that the gateway belongs to.
    processes: Vec<u32>,
    /// What is forwarded.
    forwards: Vec<String>,
}

/// Lists the forwards of all gateways, or of the one that a process has.
///
/// # Errors
/// The process has none.
pub fn list(of: Option<u32>, json: bool) -> Result<()> {
    let answers: Vec<_> = gateways(of)?
        .into_iter()
        .map(|(_, answer)| answer)
        .collect();
    if json {
        return Text::json(&answers)?.print();
    }
    let mut output = Text::default();
    for answer in answers {
        let processes: Vec<_> = answer.processes.iter().map(ToString::to_string).collect();
        output.line(format_args!("process {}", processes.join(", ")));
        for forward in answer.forwards {
            output.line(format_args!("  {forward}"));
        }
    }
    output.print()
}

/// Adds or removes forwards.
///
/// # Errors
/// There is no gateway or more than one, or it cannot do it: what was done before stays.
pub fn change(of: Option<u32>, change: &Change, forwards: &[String]) -> Result<()> {
    let mut found = gateways(of)?;
    let (path, _) = match (found.pop(), found.is_empty()) {
        (Some(only), true) => only,
        (None, _) => {
            let message = "nothing of yours runs behind nat://";
            return Err(
                Error::new(ErrorKind::NotFound, message).hint("start it with vdens --auto nat://")
            );
        }
        (Some(_), false) => {
            return Err(
                Error::usage("more than one network of yours is behind nat://")
                    .hint("say whose is meant with --of PID; vdectl forward list shows them"),
            );
        }
    };
    for forward in forwards {
        let Some((protocol @ ("tcp" | "udp"), text)) = forward.split_once('=') else {
            return Err(
                Error::usage(format!("'{}' is no forward", forward.escape_debug()))
                    .hint("write tcp=8080:80 or udp=5353:53"),
            );
        };
        let verb = match change {
            Change::Add => "add",
            Change::Remove => "remove",
        };
        let answer = ask(
            &path,
            &serde_json::json!({ verb: [protocol, text] }).to_string(),
        )?;
        if let Some(error) = answer.error {
            return Err(Error::new(ErrorKind::Other, error));
        }
    }
    Ok(())
}

/// The gateways that answer: where their sockets are, and what they say.
fn gateways(of: Option<u32>) -> Result<Vec<(PathBuf, Answer)>> {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let mut directories: Vec<_> = runtime.into_iter().chain([env::temp_dir()]).collect();
    directories.dedup();
    let entries = directories
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten()
        .flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("vdens-nat-")
        })
        .map(|entry| entry.path())
        .filter(|dir| is_own(dir))
        .map(|dir| dir.join("control"))
        // One that does not answer has ended.
        .filter_map(|path| Some((path.clone(), ask(&path, "\"list\"").ok()?)))
        .collect();
    if let Some(of) = of {
        found.retain(|(_, answer)| answer.processes.contains(&of));
        if found.is_empty() {
            let message = format!("process {of} has no network behind nat://");
            return Err(Error::new(ErrorKind::NotFound, message)
                .hint("vdectl forward list shows those that have"));
        }
    }
    Ok(found)
}

/// Whether a directory is this user's and closed to others.
fn is_own(directory: &Path) -> bool {
    directory.symlink_metadata().is_ok_and(|meta| {
        meta.is_dir() && meta.uid() == geteuid().as_raw() && meta.mode() & 0o077 == 0
    })
}

fn ask(path: &Path, request: &str) -> Result<Answer> {
    let answers = path.with_file_name(format!("answers-{}", process::id()));
    let exchange = || {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(&answers)?)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        let limit = TimeVal::seconds(ANSWER_LIMIT.as_secs() as i64);
        setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
        setsockopt(&fd, sockopt::SendTimeout, &limit)?;
        send(fd.as_raw_fd(), request.as_bytes(), MsgFlags::MSG_NOSIGNAL)?;
        let mut answer = vec![0; LONGEST];
        let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        answer.truncate(length);
        Ok::<_, Errno>(answer)
    };
    let answer = exchange();
    // It is there unless the gateway's directory is gone.
    let _ = fs::remove_file(&answers);
    let answer = answer.map_err(system(format_args!(
        "ask the gateway at {}",
        path.display()
    )))?;
    serde_json::from_slice(&answer).map_err(|error| {
        Error::new(
            ErrorKind::Protocol,
            format!("the gateway's answer: {error}"),
        )
    })
}
