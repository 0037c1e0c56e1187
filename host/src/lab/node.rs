//! A node: the process that is process 1 of its namespaces.
//!
//! # Theory of operation
//!
//! A node has a user, network, UTS, mount and PID namespace of its own; its user namespace is a
//! child of the panel's. The process that `spawn` has cloned into them maps the ids, mounts a /proc
//! of the PID namespace, a /sys of the network namespace and an empty /run, and sends the network
//! namespace and a connection to its configuration to the supervisor. From then on it is the
//! node's init: it reaps what ends in the node, and does what the supervisor asks for, one request
//! after the other.
//!
//! Commands and services run with the capabilities of a session's command. Their output goes
//! through a pipe to the init, which keeps the end of it and passes that on when they fail. It
//! reads the pipe as long as any process has it open, so nothing that a command leaves in the
//! background loses its output's reader.
//!
//! When the supervisor asks for the end, or its channel closes, the init sends SIGTERM to all
//! processes of the node, waits for its children, and ends. Then the kernel kills what is left. If
//! the supervisor is killed, the kernel kills the init, and so everything in the node.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags};
use nix::sched::CloneFlags;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{
    Gid, Pid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, execv, pipe2, sethostname, setsid,
};

use super::model::Node;
use super::spawn::Inheritance;
use crate::error::{EXIT_FAILURE, EXIT_NOT_RUNNABLE, Error, Result, system};
use crate::ipc::{Channel, FromNode, Received, ToNode};
use crate::namespace::{furnish_node, node_rights};
use crate::sys::child::{Child, Exit, exit_child, reap_strangers};
use crate::sys::netlink::Netlink;
use crate::sys::process::wait;
use crate::sys::signals::Signals;
use crate::sys::user_namespace::{Ids, map_ids};

/// The namespaces of a node.
pub(super) const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWUSER
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWPID);

/// How long processes may take to end after SIGTERM, before they are killed.
const GRACE: Duration = Duration::from_secs(2);

/// How much of a command's output is kept, in bytes. A message has room for its JSON.
const TAIL: usize = 2048;

/// The init's end of its channel.
type NodeChannel = Channel<FromNode, ToNode>;

/// What the user's ids are outside of a node's user namespace.
#[derive(Debug)]
pub(super) struct OuterIds {
    /// The uid and the gid.
    pub(super) outside: (Uid, Gid),
    /// A byte comes here when subordinate ids are mapped, which a process outside does.
    pub(super) mapped: UnixStream,
}

/// The life of a node's init, in the namespaces that it was cloned into. Returns its exit status.
pub(super) fn run(
    node: &Node,
    inheritance: Inheritance,
    ids: OuterIds,
    channel: &NodeChannel,
    signals: &Signals,
) -> i32 {
    let made = set_up(node, inheritance, ids).and_then(|fds| {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        channel.send(&FromNode::Made, &fds)
    });
    // Not before: the limit is also one for descriptors that are on their way, of all nodes.
    let made = made.and_then(|()| inheritance.restore());
    let outcome = made.and_then(|()| Init::new(node, channel, signals).serve());
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            // The supervisor reports it. If that has exited, nothing is left to do.
            let _ = channel.send(&FromNode::Failed(error), &[]);
            EXIT_FAILURE
        }
    }
}

/// Sets the namespaces up. Returns the network namespace and a connection to its configuration.
fn set_up(node: &Node, inheritance: Inheritance, outer: OuterIds) -> Result<[OwnedFd; 2]> {
    let OuterIds {
        outside,
        mut mapped,
    } = outer;
    set_pdeathsig(Signal::SIGKILL).map_err(system("ask for a signal at the parent's death"))?;
    match ids(node) {
        Ids::Own => map_ids((inheritance.uid, inheritance.gid), outside)?,
        Ids::Root => map_ids((Uid::from_raw(0), Gid::from_raw(0)), outside)?,
        Ids::Subordinate => mapped
            .read_exact(&mut [0])
            .map_err(|error| Error::io("wait for subordinate ids", &error))?,
    }
    sethostname(&node.hostname).map_err(system(format_args!(
        "set the host name to '{}'",
        node.hostname
    )))?;
    furnish_node()?;
    node_rights(ids(node)).note()?;
    let network = File::open("/proc/self/ns/net")
        .map_err(|error| Error::io("open the network namespace", &error))?;
    Ok([network.into(), Netlink::open()?.into()])
}

/// Under which ids the user appears in a node.
fn ids(node: &Node) -> Ids {
    match (node.map_auto, node.root) {
        (true, _) => Ids::Subordinate,
        (false, true) => Ids::Root,
        (false, false) => Ids::Own,
    }
}

/// What runs a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// The supervisor waits for its end.
    Command,
    /// A service, by its command line.
    Service(String),
}

/// A command that runs.
#[derive(Debug)]
struct Task {
    child: Child,
    kind: Kind,
    output: Output,
}

/// The output of a command, and of what it has left in the background.
#[derive(Debug)]
struct Output {
    /// `None` at its end.
    pipe: Option<File>,
    /// The last bytes.
    tail: Vec<u8>,
}

impl Output {
    /// Reads what has come.
    fn read(&mut self) {
        let mut bytes = [0; 4096];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut bytes) {
                Ok(0) => self.pipe = None,
                Ok(read) => {
                    self.tail.extend_from_slice(&bytes[..read]);
                    let excess = self.tail.len().saturating_sub(TAIL);
                    self.tail.drain(..excess);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    /// The end of it, as text.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.tail);
        let plain = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
        text.trim().chars().map(plain).collect()
    }
}

struct Init<'a> {
    channel: &'a NodeChannel,
    signals: &'a Signals,
    /// Under which ids the user appears.
    ids: Ids,
    tasks: Vec<Task>,
    /// The output of what ended commands have left in the background.
    left: Vec<Output>,
}

impl<'a> Init<'a> {
    fn new(node: &Node, channel: &'a NodeChannel, signals: &'a Signals) -> Self {
        Self {
            channel,
            signals,
            ids: ids(node),
            tasks: Vec::new(),
            left: Vec::new(),
        }
    }

    /// Does what the supervisor asks for, until that is to end the node.
    fn serve(&mut self) -> Result<()> {
        loop {
            let (is_asked, is_signalled) = self.poll(None)?;
            if is_asked && !self.answer()? {
                return self.end();
            }
            if is_signalled {
                while self.signals.next().is_some() {}
                self.reap()?;
            }
        }
    }

    /// Waits until something happens, until `deadline` if there is one, and reads the commands'
    /// output. Returns whether a request and whether signals have come.
    fn poll(&mut self, deadline: Option<Instant>) -> Result<(bool, bool)> {
        let outputs = self.tasks.iter().map(|task| &task.output).chain(&self.left);
        let pipes = outputs.filter_map(|output| output.pipe.as_ref());
        let fds = [self.channel.as_fd(), self.signals.as_fd()].into_iter();
        let fds = fds.chain(pipes.map(AsFd::as_fd));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        wait(&mut fds, deadline)?;
        let is_ready = |at: usize| fds[at].any() == Some(true);
        let ready = (is_ready(0), is_ready(1));
        drop(fds);
        let tasks = self.tasks.iter_mut().map(|task| &mut task.output);
        tasks.chain(&mut self.left).for_each(Output::read);
        self.left.retain(|output| output.pipe.is_some());
        Ok(ready)
    }

    /// Receives a request, does it and answers. `false` if the node is to end.
    fn answer(&mut self) -> Result<bool> {
        let outcome = match self.channel.receive()? {
            Received::Closed | Received::Message(ToNode::End, _) => return Ok(false),
            Received::Malformed(why) => Err(crate::ipc::malformed(why)),
            Received::Message(ToNode::Exec(line), _) => match self.start(Kind::Command, &line) {
                // The answer comes at its end.
                Ok(()) => return Ok(true),
                Err(error) => Err(error),
            },
            Received::Message(ToNode::Hostname(name), _) => {
                sethostname(&name).map_err(system(format_args!("set the host name to '{name}'")))
            }
            Received::Message(ToNode::Sysctl { name, value }, _) => set_parameter(&name, &value),
            Received::Message(ToNode::Start(service), _) => {
                self.start(Kind::Service(service.clone()), &service)
            }
            Received::Message(ToNode::Stop(service), _) => self.stop(&service),
        };
        let answer = outcome.map_or_else(FromNode::Failed, |()| FromNode::Done);
        self.channel.send(&answer, &[]).map(|()| true)
    }

    /// Starts a shell command in a process group of its own.
    fn start(&mut self, kind: Kind, line: &str) -> Result<()> {
        let (output, input) = pipe2(OFlag::O_CLOEXEC).map_err(system("make a pipe"))?;
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(system("make a pipe"))?;
        let words = ["/bin/sh", "-c", line].map(CString::new);
        let words = words.into_iter().collect::<Result<Vec<_>, _>>();
        let words = words.map_err(|_| Error::usage("a command has a NUL byte in it"))?;
        let Some(child) = Child::fork()? else {
            exit_child(|| {
                let _ = setsid();
                let ready = redirect(&input)
                    .and_then(|()| node_rights(self.ids).take())
                    .and_then(|()| self.signals.restore());
                if let Err(error) = ready {
                    crate::output::complain(error);
                    return EXIT_NOT_RUNNABLE;
                }
                let Err(errno) = execv(&words[0], &words);
                crate::output::complain(system("run /bin/sh")(errno));
                EXIT_NOT_RUNNABLE
            });
        };
        let output = Output {
            pipe: Some(File::from(output)),
            tail: Vec::new(),
        };
        self.tasks.push(Task {
            child,
            kind,
            output,
        });
        Ok(())
    }

    /// Ends a service.
    fn stop(&mut self, service: &str) -> Result<()> {
        let is_it = |task: &Task| matches!(&task.kind, Kind::Service(line) if line == service);
        let Some(at) = self.tasks.iter().position(is_it) else {
            // It has ended by itself.
            return Ok(());
        };
        let mut task = self.tasks.swap_remove(at);
        let group = task.child.pid();
        for signal in [Signal::SIGTERM, Signal::SIGCONT] {
            // It may have ended meanwhile.
            let _ = killpg(group, signal);
        }
        if !task.child.has_ended_by(Some(Instant::now() + GRACE)) {
            let _ = killpg(group, Signal::SIGKILL);
        }
        task.child.wait(None);
        self.left.push(task.output);
        Ok(())
    }

    /// Reaps what has ended, and reports commands and services.
    fn reap(&mut self) -> Result<()> {
        let known: Vec<Pid> = self.tasks.iter().map(|task| task.child.pid()).collect();
        reap_strangers(|pid| known.contains(&pid));
        let ended = self
            .tasks
            .extract_if(.., |task| task.child.reap().is_some());
        let ended: Vec<Task> = ended.collect();
        for mut task in ended {
            task.output.read();
            let status = task.child.exit().map_or(EXIT_FAILURE, Exit::code);
            let output = task.output.text();
            let message = match task.kind {
                Kind::Command => FromNode::Executed { status, output },
                Kind::Service(service) => FromNode::ServiceEnded {
                    service,
                    status,
                    output,
                },
            };
            self.channel.send(&message, &[])?;
            self.left.push(task.output);
        }
        // Reaping a known child uncovers the strangers behind it.
        reap_strangers(|pid| self.tasks.iter().any(|task| task.child.pid() == pid));
        Ok(())
    }

    /// Ends all processes of the node.
    fn end(&mut self) -> Result<()> {
        let all = Pid::from_raw(-1);
        for signal in [Signal::SIGTERM, Signal::SIGCONT] {
            // There may be none.
            let _ = kill(all, signal);
        }
        let deadline = Instant::now() + GRACE;
        while has_children() && Instant::now() < deadline {
            let (_, is_signalled) = self.poll(Some(deadline))?;
            if is_signalled {
                while self.signals.next().is_some() {}
                reap_strangers(|_| false);
            }
        }
        Ok(())
    }
}

/// Whether this process has children.
fn has_children() -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, flags).is_ok()
}

/// Makes standard input empty, and the others `output`.
fn redirect(output: &OwnedFd) -> Result<()> {
    let null = open(
        "/dev/null",
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    );
    null.and_then(|null| dup2_stdin(&null))
        .and_then(|()| dup2_stdout(output))
        .and_then(|()| dup2_stderr(output))
        .map_err(system("redirect a command's output"))
}

/// Sets a kernel parameter.
fn set_parameter(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(parameter_path(name));
    fs::write(&path, value)
        .map_err(|error| Error::io(format_args!("set {name} to '{value}'"), &error))
}

/// The path of a kernel parameter below /proc/sys. As in sysctl(8), the first separator decides:
/// with `/` a dot is part of a name, with `.` a slash stands for a dot in a name.
fn parameter_path(name: &str) -> String {
    match name.find(['.', '/']).map(|at| &name[at..=at]) {
        Some(".") => {
            let swapped = |c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            };
            name.chars().map(swapped).collect()
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_named_as_sysctl_names_them() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
            ),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
            ),
            ("x", "x"),
        ] {
            assert_eq!(parameter_path(name), path, "{name}");
        }
    }

    #[test]
    fn the_end_of_the_output_is_kept() {
        let (from, to) = nix::unistd::pipe().unwrap();
        let mut output = Output {
            pipe: Some(File::from(from)),
            tail: Vec::new(),
        };
        let mut text = "x".repeat(3 * TAIL);
        text.push_str("\u{1b}[1mlast\n");
        nix::unistd::write(&to, text.as_bytes()).unwrap();
        drop(to);
        output.read();
        assert!(output.pipe.is_none() && output.tail.len() == TAIL);
        assert!(output.text().ends_with("x [1mlast"), "{}", output.text());
        let longest = serde_json::to_string(&"\"".repeat(TAIL)).unwrap();
        assert!(longest.len() < 8000);
    }
}
