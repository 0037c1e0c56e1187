//! Starts nodes: many namespaces, quickly.
//!
//! The supervisor forks *spawners*. A spawner enters the panel's user namespace, which the
//! supervisor itself must not, and clones the nodes' inits, each straight into its new namespaces.
//! The inits become the supervisor's own children (CLONE_PARENT, clone(2)), so the spawners end
//! when they have started their nodes. There is a spawner for each processor, because the kernel
//! makes the namespaces within the call.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Pid, Uid, getegid, geteuid};

use super::model::Node;
use super::node;
use crate::error::{EXIT_FAILURE, Error, Result, system};
use crate::ipc::{Channel, FromNode, FromSpawner, Nothing, ToNode};
use crate::panel::{self, Panel};
use crate::sys::child::{Child, end_all, exit_child, fork_sibling};
use crate::sys::signals::Signals;
use crate::sys::user_namespace::map_all_ids;

/// The fewest nodes that are worth a spawner.
const FEWEST: usize = 8;
/// The most spawners. More would wait for the kernel's locks.
const MOST: usize = 4;

/// How long the kernel may take to make a node's namespaces. It does so for one after the other, on
/// the whole machine.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a spawner may take to end.
const END_LIMIT: Duration = Duration::from_secs(2);

/// What nodes have from the process that the user started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inheritance {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// How many files a process may open. The supervisor raises that for itself.
    pub(super) files: u64,
}

impl Inheritance {
    /// What this process has. From then on it may open as many files as it may allow itself.
    ///
    /// # Errors
    /// Never on Linux.
    pub(super) fn take() -> Result<Self> {
        let (files, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(system(LIMIT_OF_FILES))?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(system(LIMIT_OF_FILES))?;
        Ok(Self {
            uid: geteuid(),
            gid: getegid(),
            files,
        })
    }

    /// Gives a node's process the limits of the process that the user started.
    ///
    /// # Errors
    /// Never on Linux.
    pub(super) fn restore(self) -> Result<()> {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(system(LIMIT_OF_FILES))?;
        setrlimit(Resource::RLIMIT_NOFILE, self.files.min(most), most)
            .map_err(system(LIMIT_OF_FILES))
    }
}

const LIMIT_OF_FILES: &str = "set the limit of open files";

/// A node that was started.
pub(super) type Started = (Pid, Channel<ToNode, FromNode>);

/// Starts nodes. Adds those that were started to `started`, in the order of `nodes`, even if
/// another one fails. `forget` drops, in a forked process, what the supervisor holds.
///
/// # Errors
/// A limit does not allow so many.
pub(super) fn start(
    nodes: &[&Node],
    panel: &Panel,
    (signals, inheritance): (&Signals, Inheritance),
    forget: &mut dyn FnMut(),
    started: &mut Vec<Started>,
) -> Result<()> {
    let processors = available_parallelism().map_or(1, Into::into);
    let spawners = nodes.len().div_ceil(FEWEST).min(processors).clamp(1, MOST);
    let mut running = Vec::new();
    for nodes in nodes.chunks(nodes.len().div_ceil(spawners).max(1)) {
        let (channel, theirs) = Channel::<Nothing, FromSpawner>::pair()?;
        let Some(child) = Child::fork()? else {
            forget();
            running.clear();
            drop(channel);
            exit_child(|| spawn(nodes, panel, (signals, inheritance), &theirs));
        };
        running.push((child, channel, nodes));
    }
    let mut outcome = Ok(());
    for (_, channel, nodes) in &running {
        for node in *nodes {
            let next = receive(channel).map_err(|error| super::of_node(&node.name, error));
            match next {
                Ok(next) => started.push(next),
                Err(error) => {
                    outcome = outcome.and(Err(error));
                    break;
                }
            }
        }
    }
    end_all(running.into_iter().map(|(child, ..)| child), END_LIMIT);
    outcome
}

fn receive(channel: &Channel<Nothing, FromSpawner>) -> Result<Started> {
    match channel.receive_within(LIMIT)?.well_formed()? {
        Some((FromSpawner::Started { pid }, mut fds)) => {
            let fd = fds
                .pop()
                .ok_or_else(|| Error::closed("a descriptor was lost"))?;
            Ok((Pid::from_raw(pid), Channel::from(fd)))
        }
        Some((FromSpawner::Failed(error), _)) => Err(error),
        None => Err(Error::closed("the process that starts nodes died")),
    }
}

/// The life of a spawner. Returns its exit status.
fn spawn(
    nodes: &[&Node],
    panel: &Panel,
    (signals, inheritance): (&Signals, Inheritance),
    channel: &Channel<FromSpawner, Nothing>,
) -> i32 {
    let mut outcome = panel::enter(panel.user_namespace(), CloneFlags::CLONE_NEWUSER);
    let mut left = nodes.iter();
    while outcome.is_ok()
        && let Some(node) = left.next()
    {
        outcome = spawn_one(node, signals, inheritance, channel);
    }
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            // If the supervisor has exited, nobody needs to know.
            let _ = channel.send(&FromSpawner::Failed(error), &[]);
            EXIT_FAILURE
        }
    }
}

/// Starts a node's init, and sends the supervisor its end of the channel to it.
fn spawn_one(
    node: &Node,
    signals: &Signals,
    inheritance: Inheritance,
    channel: &Channel<FromSpawner, Nothing>,
) -> Result<()> {
    let cannot = |error| Error::io("map subordinate ids", &error);
    // The panel of a lab with subordinate ids shows the user as root.
    let outside = (geteuid(), getegid());
    let (ours, theirs) = Channel::<ToNode, FromNode>::pair()?;
    let (mapped, mut map) = UnixStream::pair().map_err(cannot)?;
    let Some(pid) = fork_sibling(node::NAMESPACES)? else {
        drop((ours, map));
        let ids = node::OuterIds { outside, mapped };
        exit_child(|| node::run(node, inheritance, ids, &theirs, signals));
    };
    drop(mapped);
    if node.map_auto {
        map_all_ids(pid)?;
        map.write_all(&[0]).map_err(cannot)?;
    }
    let pid = pid.as_raw();
    channel.send(&FromSpawner::Started { pid }, &[ours.as_fd()])
}

/// Waits until each of the nodes has set up its namespaces, and returns what it has sent: the
/// network namespace, and a connection to its configuration.
///
/// # Errors
/// One could not.
pub(super) fn await_made<'a>(
    nodes: impl Iterator<Item = (&'a str, &'a Channel<ToNode, FromNode>)>,
) -> Result<Vec<[OwnedFd; 2]>> {
    let deadline = Instant::now() + LIMIT;
    nodes
        .map(|(name, channel)| {
            let left = deadline.saturating_duration_since(Instant::now());
            let made =
                channel
                    .receive_within(left)
                    .and_then(|received| match received.well_formed()? {
                        Some((FromNode::Made, fds)) => <[_; 2]>::try_from(fds)
                            .map_err(|_| Error::closed("descriptors were lost")),
                        Some((FromNode::Failed(error), _)) => Err(error),
                        Some((other, _)) => Err(crate::ipc::malformed(format_args!("{other:?}"))),
                        None => Err(Error::closed("its process died")),
                    });
            made.map_err(|error| super::of_node(name, error))
        })
        .collect()
}
