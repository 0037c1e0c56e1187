//! Commands and the processes they become.
//!
//! Standard output and error go to unnamed files, not pipes: a process that outlives its parent
//! blocks nobody, and its output so far can be read at any time. A process leads a group of
//! its own. It ends as a person would end it, with SIGTERM to itself, so that what it should have
//! cleaned up shows in the lab; only what is left of its group after that is killed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::{Lab, Netns, PATIENCE, Session, User, stretched};

/// How long a process may take to clean up and end.
const FAREWELL: Duration = Duration::from_secs(4);

/// A command line, and who runs it where.
#[derive(Debug)]
#[must_use]
pub struct Cmd<'lab> {
    lab: &'lab Lab,
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    user: User,
    netns: Option<String>,
    leaves_group: bool,
}

/// The outcome of a process.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// The exit status, `None` if a signal ended the process itself.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl<'lab> Cmd<'lab> {
    pub(crate) fn new(
        lab: &'lab Lab,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Self {
        Self {
            lab,
            argv: vec![program.as_ref().to_owned()],
            env: Vec::new(),
            user: lab.user().clone(),
            netns: None,
            leaves_group: false,
        }
        .args(args)
    }

    /// Appends arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.argv
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let entry = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.env.push(entry);
        self
    }

    /// Runs the command as another user; the tests must run as root.
    pub fn by(mut self, user: User) -> Self {
        self.user = user;
        self
    }

    /// Runs the command in a network namespace that the test made as root.
    pub fn inside(mut self, netns: &Netns<'_>) -> Self {
        self.netns = Some(netns.name().to_owned());
        self
    }

    /// Has what is left of the process's group killed when the process ends: Debian's vdens leaves
    /// its command behind.
    pub fn leaving_its_group(mut self) -> Self {
        self.leaves_group = true;
        self
    }

    /// Starts the command with nothing on its standard input.
    pub fn spawn(self) -> Proc<'lab> {
        self.start(Stdio::null(), |_| ()).0
    }

    /// Starts the command with its standard input as a pipe, after a last change to it.
    pub fn spawn_changed(self, change: impl FnOnce(&mut Command)) -> (Proc<'lab>, ChildStdin) {
        let (proc, stdin) = self.start(Stdio::piped(), change);
        (proc, stdin.expect("standard input is piped"))
    }

    /// Starts the command with its standard input as a pipe.
    pub fn spawn_piped(self) -> (Proc<'lab>, ChildStdin) {
        self.spawn_changed(|_| ())
    }

    /// Starts the command, which ends in a POSIX shell reading its standard input, as a session.
    pub fn session(self) -> Session<'lab> {
        let (proc, stdin) = self.spawn_piped();
        Session::new(proc, stdin)
    }

    /// Runs the command to its end.
    #[track_caller]
    pub fn run(self) -> Output {
        self.spawn().wait(PATIENCE)
    }

    /// Runs the command to its end, which must be a success; what it wrote to standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        let label = self.label();
        let output = self.run();
        assert!(output.status.success(), "{label}: {output:#?}");
        output.stdout
    }

    /// Runs the command, which must refuse to work as the product refuses: with a status of its
    /// own, one line on standard error that starts with its name and contains all of `words`, and
    /// nothing else.
    #[track_caller]
    pub fn refused(self, words: &[&str]) -> Output {
        let label = self.label();
        let output = self.run();
        let line = output.stderr.trim_end_matches('\n');
        let own_status = match line.split_once(": ") {
            Some(("vdens" | "vdectl" | "vdens-tap" | "vdens-nat", _)) => output.code() == Some(125),
            Some(("vde_plug" | "vde_switch", _)) => output.code().is_some_and(|code| code != 0),
            _ => false,
        };
        let names_it = words.iter().all(|word| line.contains(word));
        let is_one_line = !line.contains('\n') && output.stdout.is_empty();
        assert!(
            own_status && names_it && is_one_line,
            "{label}: wanted one line with {words:?}: {output:#?}"
        );
        output
    }

    /// Runs the command on a machine that differs from this one: in a mount namespace that `script`
    /// changes first, as its root, before the user is an ordinary one again.
    pub fn on_changed_machine(self, script: &str) -> Self {
        let back = format!(
            "exec unshare -U --map-user={} --map-group={} -- \"$@\"",
            self.user.uid, self.user.gid
        );
        let script = format!("{script}\n{back}");
        let words = ["unshare", "-Urm", "--", "sh", "-ec", &script, "sh"];
        self.behind(words.iter().map(Into::into).collect())
    }

    /// Puts words in front of the command line.
    pub(crate) fn behind(mut self, mut words: Vec<OsString>) -> Self {
        words.append(&mut self.argv);
        self.argv = words;
        self
    }

    fn label(&self) -> String {
        let words: Vec<_> = self.argv.iter().map(|arg| arg.to_string_lossy()).collect();
        words.join(" ")
    }

    /// The command line as root would type it to have it run in a namespace by the user.
    fn command_line(&self) -> Vec<OsString> {
        let Some(netns) = &self.netns else {
            return self.argv.clone();
        };
        let (uid, gid) = (self.user.uid.to_string(), self.user.gid.to_string());
        let mut line: Vec<OsString> = ["ip", "netns", "exec", netns, "setpriv", "--reuid"]
            .iter()
            .chain(&[uid.as_str(), "--regid", &gid, "--clear-groups", "--"])
            .map(Into::into)
            .collect();
        line.extend_from_slice(&self.argv);
        line
    }

    fn start(
        self,
        stdin: Stdio,
        change: impl FnOnce(&mut Command),
    ) -> (Proc<'lab>, Option<ChildStdin>) {
        let line = self.command_line();
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .env_clear()
            .envs(self.lab.environment(&self.user))
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(self.lab.dir())
            .process_group(0)
            .stdin(stdin)
            .stdout(stdout.try_clone().unwrap())
            .stderr(stderr.try_clone().unwrap());
        if User::is_root() && self.netns.is_none() && self.user.uid != 0 {
            // As root, setting the user id also clears the supplementary groups.
            command.uid(self.user.uid).gid(self.user.gid);
        }
        change(&mut command);
        let label = self.label();
        let mut child = loop {
            match command.spawn() {
                Ok(child) => break child,
                // Another test's child, between fork and exec, still has the copy open for writing.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                Err(error) => panic!("cannot start {label}: {error}"),
            }
        };
        let stdin = child.stdin.take();
        let proc = Proc {
            pidfd: pidfd_open(&child),
            child,
            leaves_group: self.leaves_group,
            label,
            stdout,
            stderr,
            _lab: self.lab,
        };
        (proc, stdin)
    }
}

/// A process of a lab, and its group. Dropping it ends it.
#[derive(Debug)]
pub struct Proc<'lab> {
    child: Child,
    pidfd: OwnedFd,
    leaves_group: bool,
    label: String,
    stdout: File,
    stderr: File,
    /// The lab's end looks for what is left, so it comes after this value's.
    _lab: &'lab Lab,
}

impl Proc<'_> {
    /// The process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }

    /// Sends it a signal, and not its group.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it goes on for longer than `limit`.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Output {
        self.output_within(limit)
    }

    /// Waits for its end; see [`Proc::wait`].
    #[track_caller]
    pub fn output_within(&mut self, limit: Duration) -> Output {
        let ended = self.ends_within(limit);
        let (stdout, stderr) = (self.stdout(), self.stderr());
        assert!(
            ended,
            "still running after {limit:?}: {}\n{stdout}{stderr}",
            self.label
        );
        self.end_group();
        Output {
            status: self.child.wait().unwrap(),
            stdout,
            stderr,
        }
    }

    /// Ends it with SIGTERM.
    ///
    /// # Panics
    /// When it goes on.
    #[track_caller]
    pub fn terminate(self) -> Output {
        self.signal(Signal::SIGTERM);
        self.wait(stretched(FAREWELL))
    }

    /// Kills what the process has left, if it is one that leaves something. It must not have been
    /// waited for: until then no other group has its id.
    fn end_group(&mut self) {
        if std::mem::take(&mut self.leaves_group) {
            let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        }
    }

    /// Whether it has ended, at most `limit` from now. Returns at the moment it ends.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so as not to poll with 0 in the last millisecond.
            let timeout = PollTimeout::try_from(left + Duration::from_micros(999));
            let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
                Ok(0) if left.is_zero() => return false,
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return true,
                Err(error) => panic!("poll: {error}"),
            }
        }
    }

    /// The command line.
    pub fn label(&self) -> &str {
        &self.label
    }
}

impl Drop for Proc<'_> {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Signal::SIGTERM);
            if !self.ends_within(stretched(FAREWELL)) {
                // It may be gone by now, which is what is wanted.
                let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
            }
        }
        self.end_group();
        let status = self.child.wait().map_or(-1, ExitStatusExt::into_raw);
        if std::thread::panicking() {
            let (stdout, stderr) = (self.stdout(), self.stderr());
            eprintln!(
                "--- {} (status {status:#x})\n{stdout}{stderr}---",
                self.label
            );
        }
    }
}

/// All of a file, without moving the offset, which the writer shares.
fn contents(file: &File) -> String {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    let read = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(read);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A descriptor that becomes readable when the child ends (pidfd_open(2)).
fn pidfd_open(child: &Child) -> OwnedFd {
    // SAFETY: the call takes two integers. Nobody has waited for the child, so the id is its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    assert!(fd >= 0, "pidfd_open: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just made the descriptor, and nothing else knows it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
}

/// The children of a process (proc_pid_task_children(5)).
pub fn children(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let numbers = children.split_whitespace().map(str::parse);
    numbers.filter_map(Result::ok).collect()
}

/// A process and all below it.
pub fn family(pid: i32) -> Vec<i32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(member) = family.get(next) {
        family.extend(children(*member));
        next += 1;
    }
    family
}

/// The name of a process's program (proc_pid_comm(5)), if it is running.
pub fn name(pid: i32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}
