//! The tests' lab, for the benchmark: makers, users and namespaces.
//!
//! Theory of operation. Everything lives in a [`vdens_tests::Lab`], with a copy of this program in
//! its `bin`. Each user has a runtime directory in memory, as a login has. When root runs the
//! benchmark, products run as `vdens-test` (and `vdens-test2` where two users meet), otherwise as
//! the user. A [`Node`] is a network namespace, known by a process in it. Commands get inside
//! through [`Tool::Enter`](crate::tools::Tool::Enter).

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vdens_tests::{Cmd, User, family, name};

use crate::process::{Proc, wait_for};
use crate::{Result, tell};

pub(crate) use vdens_tests::installed;

/// How long anything that should happen at once may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// How long a process may take to end after those who started it: the parts of `nat://` have four
/// seconds.
const ENDING: Duration = Duration::from_secs(8);

/// The programs of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maker {
    Ours,
    Debian,
}

/// Who runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Whoever runs the benchmark.
    Caller,
    /// The ordinary user.
    First,
    /// Another one.
    Second,
}

/// A network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// A process in it.
    pub(crate) pid: i32,
    /// Whether it belongs to a user namespace, and who made that; otherwise it is root's.
    pub(crate) user: Option<Who>,
    pub(crate) interface: String,
    pub(crate) address: String,
}

impl Node {
    /// Does something in this thread while it is in the namespace.
    pub(crate) fn within<T>(&self, run: impl FnOnce() -> T) -> Result<T> {
        let _home = Home(File::open("/proc/thread-self/ns/net")?);
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid))?;
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(run())
    }
}

/// The network namespace to which this thread returns, a panic included.
struct Home(File);

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.0, CloneFlags::CLONE_NEWNET) {
            tell(&format!("vdens-bench: cannot leave a namespace: {error}"));
        }
    }
}

/// The benchmark's corner of the machine.
#[derive(Debug)]
pub(crate) struct Lab {
    kit: vdens_tests::Lab,
    runtime: TempDir,
    second: Option<User>,
    counter: Cell<u32>,
    /// Whether our vdens knows `--no-panel`.
    pub(crate) has_panel: bool,
    /// Whether our switch knows the key `storm`, which older builds do not.
    pub(crate) has_storm_guard: bool,
}

impl Lab {
    /// Sets up a lab with the programs found in `programs`.
    pub(crate) fn new(programs: &Path) -> Result<Self> {
        let kit = vdens_tests::Lab::with_programs(programs);
        let runtime = tempfile::Builder::new()
            .prefix("vb-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir_in(kit.dir()))?;
        fs::copy(std::env::current_exe()?, kit.bin().join("tool"))?;
        // Both users make sockets in the working directory.
        fs::set_permissions(kit.dir(), Permissions::from_mode(0o777))?;
        let mut lab = Self {
            kit,
            runtime,
            second: User::named("vdens-test2").filter(|_| is_root()),
            counter: Cell::new(0),
            has_panel: false,
            has_storm_guard: false,
        };
        for who in [Some(Who::First), lab.second.as_ref().map(|_| Who::Second)] {
            let Some(who) = who else { continue };
            let directory = lab.runtime(who);
            fs::create_dir(&directory)?;
            fs::set_permissions(&directory, Permissions::from_mode(0o700))?;
            if is_root() {
                let user = lab.account(who);
                std::os::unix::fs::chown(&directory, Some(user.uid), Some(user.gid))?;
            }
        }
        let vdens = lab.program(Maker::Ours, "vdens");
        let help = Proc::spawn(lab.command(Who::First, &vdens, ["--help"])).output(PATIENCE)?;
        lab.has_panel = help.contains("--no-panel");
        let vnl = format!("switch://{}[storm=off]", lab.unique("probe"));
        let probe = Proc::spawn(lab.command(Who::First, &vdens, [vnl.as_str(), "true"]));
        lab.has_storm_guard = probe.output(PATIENCE).is_ok();
        Ok(lab)
    }

    fn runtime(&self, who: Who) -> PathBuf {
        self.runtime.path().join(&self.account(who).name)
    }

    /// The benchmark's own program, where every user may run it.
    pub(crate) fn tool(&self) -> PathBuf {
        self.kit.bin().join("tool")
    }

    /// A path for a socket or a switch that there was not before.
    pub(crate) fn unique(&self, name: &str) -> String {
        let number = self.counter.get() + 1;
        self.counter.set(number);
        self.kit.path(&format!("{name}.{number}"))
    }

    /// The ordinary user's name.
    pub(crate) fn user(&self) -> &str {
        &self.kit.user().name
    }

    /// Whether there are two users to act as.
    pub(crate) fn has_two_users(&self) -> bool {
        self.second.is_some()
    }

    /// The path of a program of the product.
    pub(crate) fn program(&self, maker: Maker, name: &str) -> PathBuf {
        match maker {
            Maker::Ours => self.kit.bin().join(name),
            Maker::Debian => Path::new("/usr/bin").join(name),
        }
    }

    fn account(&self, who: Who) -> User {
        match (who, &self.second) {
            (Who::Caller, _) if is_root() => User::root(),
            (Who::Second, Some(second)) => second.clone(),
            _ => self.kit.user().clone(),
        }
    }

    /// A command in the caller's namespaces.
    pub(crate) fn command<S: AsRef<OsStr>>(
        &self,
        who: Who,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Cmd<'_> {
        let command = self.kit.command(program, arguments);
        let command = command.env("XDG_RUNTIME_DIR", self.runtime(who));
        command.by(self.account(who))
    }

    /// A command inside a node, with the capabilities of its maker; `who` runs it in a node
    /// of root's.
    pub(crate) fn inside<S: AsRef<OsStr>>(
        &self,
        node: &Node,
        who: Who,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Cmd<'_> {
        let who = node.user.unwrap_or(who);
        let mut words = vec![format!("--pid={}", node.pid)];
        words.extend(node.user.map(|_| "--user".to_owned()));
        if who != Who::Caller && is_root() {
            let user = self.account(who);
            words.extend([format!("--uid={}", user.uid), format!("--gid={}", user.gid)]);
        }
        words.extend(["--".to_owned(), program.display().to_string()]);
        let enter = self.kit.command(self.tool(), ["tool", "enter"]);
        let enter = enter.args(words).args(arguments);
        // It becomes the user once it is inside.
        let enter = enter.env("XDG_RUNTIME_DIR", self.runtime(who));
        enter.by(self.account(Who::Caller))
    }

    /// A tool of the benchmark inside a node.
    pub(crate) fn tool_inside(&self, node: &Node, words: &str) -> Proc<'_> {
        let words = std::iter::once("tool").chain(words.split_whitespace());
        Proc::spawn(self.inside(node, Who::Caller, &self.tool(), words))
    }

    /// Runs a shell script inside a node.
    pub(crate) fn sh(&self, node: &Node, script: &str) -> Result<()> {
        let shell = self.inside(node, Who::Caller, Path::new("/bin/sh"), ["-ec", script]);
        Proc::spawn(shell).output(PATIENCE).map(drop)
    }

    /// The node that a vdens makes for its `sleep`, once it is there.
    pub(crate) fn node_of(&self, proc: &Proc<'_>, who: Who, number: usize) -> Result<Node> {
        let pid = wait_for("the command in its namespace", PATIENCE, || {
            if let Err(error) = proc.check() {
                return Some(Err(error));
            }
            let sleeping = |id: &i32| name(*id).as_deref() == Some("sleep");
            family(proc.id()).into_iter().find(sleeping).map(Ok)
        })??;
        Ok(Node {
            pid,
            user: Some(who),
            interface: "vde0".to_owned(),
            address: address(number),
        })
    }

    /// A bare network namespace, and the process that holds it: root's, or the user's in a user
    /// namespace.
    pub(crate) fn bare_node(&self, number: usize) -> Result<(Proc<'_>, Node)> {
        let namespaces = if is_root() { "-n" } else { "-Urn" };
        let holder = Path::new("/usr/bin/unshare");
        let holder = self.command(Who::Caller, holder, [namespaces, "sleep", "86400"]);
        let holder = Proc::spawn(holder);
        let mut node = self.node_of(&holder, Who::First, number)?;
        node.user = (!is_root()).then_some(Who::First);
        Ok((holder, node))
    }

    /// Everything the benchmark has started and that is still there.
    pub(crate) fn remains(&self) -> Vec<i32> {
        let processes = self.kit.processes().into_iter();
        processes.map(|(pid, _)| pid).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // All values that stand for processes are gone: these got away from their parents, unless
        // they are about to end.
        let deadline = Instant::now() + ENDING;
        while !self.kit.processes().is_empty() && Instant::now() < deadline {
            sleep(Duration::from_millis(50));
        }
        for (id, line) in self.kit.processes() {
            tell(&format!("vdens-bench: left behind: {line} ({id})"));
            let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
        }
        // Debian's programs leave their sockets, which the kit would report.
        for entry in fs::read_dir(self.kit.dir()).into_iter().flatten().flatten() {
            self.kit.expect(&entry.file_name().to_string_lossy());
        }
    }
}

/// The address of the node with a number.
pub(crate) fn address(number: usize) -> String {
    format!("10.77.{}.{}", number / 250, number % 250 + 1)
}

pub(crate) fn is_root() -> bool {
    User::is_root()
}
