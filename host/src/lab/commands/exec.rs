//! `vdectl lab exec` and `enter`.
//!
//! A command in one node has this process's own standard streams. In several nodes it runs at once,
//! without input, and each line of its output is printed behind the node's name, or as a JSON
//! object. The exit status is the highest one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::unistd::pipe2;
use serde::Serialize;

use super::find::{self, FoundNode};
use super::join::{self, Streams};
use crate::error::{EXIT_FAILURE, Error, Result, system};
use crate::lab::of_node;
use crate::lab::spawn::Inheritance;
use crate::namespace::enter::Door;
use crate::output::{Line, report, written};
use crate::sys::child::{Child, Exit};
use crate::sys::process::wait;
use crate::tools::console;

/// Runs a command in the nodes that a pattern means. Returns the highest exit status.
///
/// # Errors
/// There is no such node, or the command cannot be started.
pub fn exec(pattern: &str, command: &[OsString], json: bool) -> Result<i32> {
    let nodes = find::nodes(pattern)?;
    match &nodes[..] {
        [only] if !json && !pattern.contains(['*', '?']) => {
            let door = join::door(only.node.pid);
            let door = door.map_err(|error| of_node(&only.node.name, error))?;
            Ok(door.execute(command).unwrap_or_else(|(status, error)| {
                report("vdectl", error);
                status
            }))
        }
        nodes => exec_all(nodes, command, json),
    }
}

/// Opens the console of a node's virtual machine, or starts the user's shell in a node that has
/// none. Returns the exit status.
///
/// # Errors
/// As for [`exec`].
pub fn enter(node: &str) -> Result<i32> {
    match machine(node)? {
        Some(door) => console::attend(&door).map(|()| 0),
        None => exec(node, &[], false),
    }
}

/// The namespaces of a node that has a machine. `None` if it has none.
///
/// # Errors
/// There is no such node.
pub(crate) fn machine(node: &str) -> Result<Option<Door>> {
    match &find::nodes(node)?[..] {
        [FoundNode { node, .. }] if node.has_machine => {
            let door = join::door(node.pid);
            door.map(Some).map_err(|error| of_node(&node.name, error))
        }
        _ => Ok(None),
    }
}

/// Which of a process's streams a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Stream {
    Output,
    Errors,
}

/// What is printed as JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Event<'a> {
    /// A command has printed a line.
    Line {
        node: &'a str,
        stream: Stream,
        line: &'a str,
    },
    /// A command has ended.
    End { node: &'a str, status: i32 },
}

/// A stream of a command in a node.
#[derive(Debug)]
struct Labelled {
    pipe: File,
    stream: Stream,
    node: String,
    json: bool,
    /// The line that is not complete yet.
    line: Vec<u8>,
}

impl Labelled {
    /// Reads what has come and prints complete lines. `false` at the end.
    fn read(&mut self) -> Result<bool> {
        let mut bytes = [0; 8192];
        let read = match self.pipe.read(&mut bytes) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(_) => 0,
        };
        self.line.extend_from_slice(&bytes[..read]);
        let mut text = String::new();
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            self.add(&mut text, &line[..end]);
        }
        if read == 0 && !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.add(&mut text, &line);
        }
        match self.stream {
            Stream::Errors if !self.json => drop(io::stderr().write_all(text.as_bytes())),
            _ => print(&text)?,
        }
        Ok(read > 0)
    }

    fn add(&self, text: &mut String, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let (node, line) = (&self.node, line.trim_end_matches('\r'));
        text.push_str(&match self.json {
            false => format!("{}: {}\n", Line(node), Line(line)),
            true => json(&Event::Line {
                node,
                stream: self.stream,
                line,
            }),
        });
    }
}

/// An event as a line.
fn json(event: &Event<'_>) -> String {
    // Strings and numbers can always be written.
    let text = serde_json::to_string(event).unwrap_or_default();
    format!("{}\n", Line(text))
}

fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

fn exec_all(nodes: &[FoundNode], command: &[OsString], is_json: bool) -> Result<i32> {
    // Two pipes and a process for each.
    Inheritance::take()?;
    let mut children: BTreeMap<&str, Child> = BTreeMap::new();
    let mut streams = Vec::new();
    for FoundNode { node, .. } in nodes {
        let (output, its_output) = pipe()?;
        let (errors, its_errors) = pipe()?;
        let null = File::open("/dev/null").map_err(|error| Error::io("open /dev/null", &error))?;
        let its = Streams {
            input: null.into(),
            output: its_output,
            errors: its_errors,
        };
        let child = join::door(node.pid).and_then(|door| join::start(&door, command, its));
        let child = child.map_err(|error| of_node(&node.name, error))?;
        children.insert(&node.name, child);
        for (pipe, stream) in [(output, Stream::Output), (errors, Stream::Errors)] {
            streams.push(Labelled {
                pipe: pipe.into(),
                stream,
                node: node.name.clone(),
                json: is_json,
                line: Vec::new(),
            });
        }
    }
    while !streams.is_empty() {
        let fds = streams.iter().map(|stream| stream.pipe.as_fd());
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        wait(&mut fds, None)?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        let mut left = Vec::new();
        for (mut stream, is_ready) in streams.into_iter().zip(ready) {
            if !is_ready || stream.read()? {
                left.push(stream);
            }
        }
        streams = left;
    }
    let mut highest = None;
    for (node, mut child) in children {
        let exit = child.wait(None);
        let status = exit.map_or(EXIT_FAILURE, Exit::code);
        if is_json {
            print(&json(&Event::End { node, status }))?;
        }
        highest = highest.max(Some(status));
    }
    Ok(highest.unwrap_or(EXIT_FAILURE))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).map_err(system("make a pipe"))
}
