//! Processes that end with the value that stands for them.
//!
//! Theory of operation. Output goes to unnamed files, so that nobody blocks on a pipe. Waiting is a poll on
//! a pidfd: it ends at the moment the process does, which start-up times need, and by a signal to
//! the benchmark, which then unwinds and cleans up. A process is ended by its id: SIGTERM, so that it can
//! clean up itself, then SIGKILL to it and to what it started, as found below it in the process table.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;
use tempfile::tempfile;

use crate::Result;

/// How long a process may take to end when it is told to.
const FAREWELL: Duration = Duration::from_secs(3);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Turns the signals that end a program into an error of whatever waits, so that everything is cleaned up.
pub(crate) fn catch_signals() -> Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(interrupt),
        SaFlags::empty(),
        SigSet::empty(),
    );
    for signal in [
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGHUP,
    ] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// An error if the benchmark is to end.
pub(crate) fn check_interrupted() -> Result<()> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => Err("interrupted".into()),
        false => Ok(()),
    }
}

/// Sleeps, unless the benchmark is to end.
pub(crate) fn pause(time: Duration) -> Result<()> {
    sleep(time);
    check_interrupted()
}

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if Instant::now() > deadline {
            return Err(format!("not after {limit:?}: {what}").into());
        }
        pause(Duration::from_millis(5))?;
    }
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Proc {
    child: Child,
    pidfd: OwnedFd,
    label: String,
    /// Itself and what was below it when it was told to end: ids and times of birth.
    family: Vec<(u32, String)>,
    stdout: File,
    stderr: File,
}

impl Proc {
    /// Starts a command with its output kept. Its standard input stays open and silent: vde_switch ends with it.
    pub(crate) fn spawn(mut command: Command) -> Result<Self> {
        let label = label(&command);
        let (stdout, stderr) = (tempfile()?, tempfile()?);
        command
            .stdin(Stdio::piped())
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?);
        let mut child = command
            .spawn()
            .map_err(|error| format!("cannot run {label}: {error}"))?;
        let pidfd = pidfd_open(child.id()).inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })?;
        Ok(Self {
            child,
            pidfd,
            label,
            family: Vec::new(),
            stdout,
            stderr,
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output, if it succeeds within a time.
    pub(crate) fn output(mut self, limit: Duration) -> Result<String> {
        let status = self.wait(limit)?;
        match status.success() {
            true => contents(&self.stdout),
            false => Err(self.complaint(&status.to_string())),
        }
    }

    /// What it wrote to standard output, whatever its status.
    pub(crate) fn any_output(mut self, limit: Duration) -> Result<String> {
        self.wait(limit)?;
        contents(&self.stdout)
    }

    /// An error if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.complaint(&format!("ended with {status}"))),
        }
    }

    fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        match self.ends(limit)? {
            true => Ok(self.child.wait()?),
            false => Err(self.complaint(&format!("did not end within {limit:?}"))),
        }
    }

    /// Whether it ends within a time.
    pub(crate) fn ends(&self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            check_interrupted()?;
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(events) => return Ok(events > 0),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn complaint(&self, what: &str) -> Box<dyn std::error::Error> {
        let said = contents(&self.stderr).unwrap_or_default();
        let last = said.lines().rfind(|line| !line.trim().is_empty());
        let last = last.map(|line| format!(": {line}")).unwrap_or_default();
        format!("{}: {what}{last}", self.label).into()
    }

    fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Tells it to end, having noted whom it would leave behind.
    fn terminate(&mut self, table: &Table) {
        if !self.has_ended() {
            let family = table.family(self.id());
            self.family = family
                .iter()
                .filter_map(|id| Some((*id, born(*id)?)))
                .collect();
            let _ = kill(pid(self.id()), Signal::SIGTERM);
        }
    }

    /// Waits for its end, and ends what is left.
    fn end(&mut self) {
        let deadline = Instant::now() + FAREWELL;
        while !self.has_ended() && Instant::now() < deadline {
            sleep(Duration::from_millis(2));
        }
        for (member, birth) in self.family.drain(..) {
            // Somebody else may have got the id meanwhile.
            if born(member) == Some(birth) {
                let _ = kill(pid(member), Signal::SIGKILL);
            }
        }
        let _ = self.child.wait();
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.terminate(&Table::read());
        }
        self.end();
    }
}

/// Many processes, which are all told to end before the first is waited for.
#[derive(Debug, Default)]
pub(crate) struct Procs(pub(crate) Vec<Proc>);

impl Drop for Procs {
    fn drop(&mut self) {
        let table = Table::read();
        for proc in &mut self.0 {
            proc.terminate(&table);
        }
        for proc in &mut self.0 {
            proc.end();
        }
    }
}

fn pid(id: u32) -> Pid {
    // Process ids have at most 22 bits.
    Pid::from_raw(id.cast_signed())
}

fn label(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    words.join(" ")
}

fn contents(file: &File) -> Result<String> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn pidfd_open(id: u32) -> Result<OwnedFd> {
    // SAFETY: the call takes two integers; the process is a child not waited for, so the id is its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd)?) })
}

/// Who is whose child.
#[derive(Debug)]
struct Table(BTreeMap<u32, Vec<u32>>);

impl Table {
    fn read() -> Self {
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for process in processes() {
            let parent = stat(process, 1).and_then(|parent| parent.parse().ok());
            if let Some(parent) = parent {
                children.entry(parent).or_default().push(process);
            }
        }
        Self(children)
    }

    /// A process and all below it.
    fn family(&self, id: u32) -> Vec<u32> {
        let mut family = vec![id];
        let mut next = 0;
        while let Some(member) = family.get(next) {
            family.extend(self.0.get(member).into_iter().flatten());
            next += 1;
        }
        family
    }
}

/// A process and all below it.
pub(crate) fn family(id: u32) -> Vec<u32> {
    Table::read().family(id)
}

/// All process ids.
pub(crate) fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// When a process was started, as the kernel tells it.
fn born(id: u32) -> Option<String> {
    stat(id, 19)
}

/// A word of a process' line of state, counted from the one behind its name: the state, the parent, …
fn stat(id: u32, word: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name may contain anything, parentheses too.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(word).map(str::to_owned)
}

/// The name of a process' program.
pub(crate) fn name(id: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}
