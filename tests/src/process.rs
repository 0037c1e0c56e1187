//! Commands and the processes they become.
//!
//! Standard output and error go to unnamed files, not pipes: a process that outlives its parent
//! blocks nobody, and what was said so far can be read at any time. A process leads a group of
//! its own. It ends as a person would end it, with SIGTERM to itself, so that what it should have
//! cleaned up shows in the lab; only what is left of its group after that is killed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::{Lab, Netns, PATIENCE, Session, User, becomes_true};

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
}

/// What a process left behind.
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

    /// Runs the command as somebody else; the tests must run as root.
    pub fn by(mut self, user: User) -> Self {
        self.user = user;
        self
    }

    /// Runs the command in a network namespace that the test made as root.
    pub fn inside(mut self, netns: &Netns<'_>) -> Self {
        self.netns = Some(netns.name().to_owned());
        self
    }

    /// Starts the command with nothing on its standard input.
    pub fn spawn(self) -> Proc<'lab> {
        self.start(Stdio::null()).0
    }

    /// Starts the command with its standard input in the caller's hand.
    pub fn spawn_piped(self) -> (Proc<'lab>, ChildStdin) {
        let (proc, stdin) = self.start(Stdio::piped());
        (proc, stdin.expect("standard input is piped"))
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

    /// Runs the command, which must refuse to work as the product refuses: with a status of its own, one
    /// line on standard error that starts with its name and contains all of `words`, and nothing else.
    #[track_caller]
    pub fn refused(self, words: &[&str]) -> Output {
        let label = self.label();
        let output = self.run();
        let line = output.stderr.trim_end_matches('\n');
        let own_status = match line.split_once(": ") {
            Some(("vdens" | "vdectl", _)) => output.code() == Some(125),
            Some(("vde_plug", _)) => output.code().is_some_and(|code| code != 0),
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

    fn start(self, stdin: Stdio) -> (Proc<'lab>, Option<ChildStdin>) {
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
            child,
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
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let state = waitid(Id::Pid(Pid::from_raw(self.pid())), flags);
        // Once its status was taken there is no such child.
        state == Ok(WaitStatus::StillAlive)
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

    #[track_caller]
    pub(crate) fn output_within(&mut self, limit: Duration) -> Output {
        let ended = self.ends_within(limit);
        let (stdout, stderr) = (self.stdout(), self.stderr());
        assert!(
            ended,
            "still running after {limit:?}: {}\n{stdout}{stderr}",
            self.label
        );
        Output {
            status: self.child.wait().unwrap(),
            stdout,
            stderr,
        }
    }

    /// Ends it with SIGTERM.
    ///
    /// # Panics
    /// When it does not obey.
    #[track_caller]
    pub fn terminate(self) -> Output {
        self.signal(Signal::SIGTERM);
        self.wait(FAREWELL)
    }

    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        becomes_true(limit, || !self.is_running())
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }
}

impl Drop for Proc<'_> {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Signal::SIGTERM);
            if !self.ends_within(FAREWELL) {
                // It may be gone by now, which is what is wanted.
                let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
            }
        }
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
