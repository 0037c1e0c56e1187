//! The machine: what it has, who runs what, and namespaces.
//!
//! Theory of operation. Everything lives in a directory below `/tmp`: a copy of the programs in `bin`, which the
//! ordinary user may not be able to read where they were built; sockets and switches in `w`; a home and a run-time
//! directory for each user. When root runs the benchmark, products run as `vdens-test` (and
//! `vdens-test2` where two users meet), otherwise as the user. A [`Node`] is a network namespace, known by a process in it.
//! Whatever is run inside goes through [`Tool::Enter`](crate::tools::Tool::Enter).

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use tempfile::TempDir;

use crate::process::{Proc, family, name, processes, wait_for};
use crate::{Result, tell};

/// How long anything that should happen at once may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

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
    pub(crate) pid: u32,
    /// Whether it belongs to a user namespace, and who made that; otherwise it is root's.
    pub(crate) user: Option<Who>,
    pub(crate) interface: String,
    pub(crate) address: String,
}

#[derive(Debug)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

/// The benchmark's corner of the machine.
#[derive(Debug)]
pub(crate) struct Lab {
    directory: TempDir,
    /// The users' runtime directories: in memory, as systemd's are.
    runtime: TempDir,
    first: Account,
    second: Option<Account>,
    counter: Cell<u32>,
    /// Whether our vdens knows `--no-panel`.
    pub(crate) has_panel: bool,
}

impl Lab {
    /// Sets up the directory with the programs found in `programs`.
    pub(crate) fn new(programs: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("vb-").tempdir_in("/tmp")?;
        let runtime = tempfile::Builder::new()
            .prefix("vb-")
            .tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir_in(directory.path()))?;
        let (first, second) = accounts()?;
        let mut lab = Self {
            directory,
            runtime,
            first,
            second,
            counter: Cell::new(0),
            has_panel: false,
        };
        for shared in [&lab.directory, &lab.runtime] {
            fs::set_permissions(shared.path(), Permissions::from_mode(0o755))?;
        }
        lab.stage(programs)?;
        make_dir(&lab.path("w"), 0o777, &lab.first)?;
        for (number, account) in (1..).zip(std::iter::once(&lab.first).chain(&lab.second)) {
            make_dir(&lab.home(number), 0o700, account)?;
            make_dir(&lab.runtime(number), 0o700, account)?;
        }
        let help = lab.command(Who::First, &lab.program(Maker::Ours, "vdens"), ["--help"]);
        let help = Proc::spawn(help)?.output(PATIENCE)?;
        lab.has_panel = help.contains("--no-panel");
        Ok(lab)
    }

    fn stage(&self, programs: &Path) -> Result<()> {
        let bin = self.path("bin");
        fs::create_dir(&bin)?;
        fs::set_permissions(&bin, Permissions::from_mode(0o755))?;
        let mut count = 0;
        let entries =
            fs::read_dir(programs).map_err(|error| format!("{}: {error}", programs.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let plugin = name.starts_with("libvdens_") && name.ends_with(".so");
            if plugin || name == "vdens" || name == "vde_plug" {
                fs::copy(&path, bin.join(&*name))?;
                count += 1;
            }
        }
        if count < 3 {
            return Err(format!(
                "no vdens, vde_plug and plugins in {}: build them (cargo build --release --workspace), or say where they are with --bin",
                programs.display()
            )
            .into());
        }
        fs::copy(std::env::current_exe()?, self.tool())?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn home(&self, number: u32) -> PathBuf {
        self.path(&format!("home{number}"))
    }

    fn runtime(&self, number: u32) -> PathBuf {
        self.runtime.path().join(format!("run{number}"))
    }

    fn id(&self) -> String {
        let name = self.directory.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The benchmark's own program, where anybody may run it.
    fn tool(&self) -> PathBuf {
        self.path("bin/tool")
    }

    fn work(&self, name: &str) -> String {
        format!("{}/{name}", self.path("w").display())
    }

    /// A path for a socket or a switch that there was not before.
    pub(crate) fn unique(&self, name: &str) -> String {
        let number = self.counter.get() + 1;
        self.counter.set(number);
        self.work(&format!("{name}.{number}"))
    }

    /// The ordinary user's name.
    pub(crate) fn user(&self) -> &str {
        &self.first.name
    }

    /// Whether there are two users to act as.
    pub(crate) fn has_two_users(&self) -> bool {
        self.second.is_some()
    }

    /// The path of a program of the product.
    pub(crate) fn program(&self, maker: Maker, name: &str) -> PathBuf {
        match maker {
            Maker::Ours => self.path("bin").join(name),
            Maker::Debian => Path::new("/usr/bin").join(name),
        }
    }

    fn account(&self, who: Who) -> Option<&Account> {
        match who {
            Who::Caller => None,
            Who::First => Some(&self.first),
            Who::Second => self.second.as_ref(),
        }
    }

    /// A command in the caller's namespaces.
    pub(crate) fn command<S: AsRef<OsStr>>(
        &self,
        who: Who,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(program);
        command.args(arguments);
        self.environment(&mut command, who);
        if let Some(account) = self.account(who)
            && is_root()
        {
            // The standard library drops supplementary groups when root becomes somebody else.
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    /// A command inside a node, with the capabilities of whoever made it; `who` runs it in a node of root's.
    pub(crate) fn inside<S: AsRef<OsStr>>(
        &self,
        node: &Node,
        who: Who,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let who = node.user.unwrap_or(who);
        let mut command = Command::new(self.tool());
        command
            .args(["tool", "enter", "--pid"])
            .arg(node.pid.to_string());
        if node.user.is_some() {
            command.arg("--user");
        }
        if let Some(account) = self.account(who)
            && is_root()
        {
            command.args(["--uid", &account.uid.to_string()]);
            command.args(["--gid", &account.gid.to_string()]);
        }
        command.arg("--").arg(program).args(arguments);
        self.environment(&mut command, who);
        command
    }

    /// A tool of the benchmark inside a node.
    pub(crate) fn tool_inside(&self, node: &Node, words: &str) -> Result<Proc> {
        let words = std::iter::once("tool").chain(words.split_whitespace());
        Proc::spawn(self.inside(node, Who::Caller, &self.tool(), words))
    }

    /// Runs a shell script inside a node.
    pub(crate) fn sh(&self, node: &Node, script: &str) -> Result<()> {
        let shell = self.inside(node, Who::Caller, Path::new("/bin/sh"), ["-ec", script]);
        Proc::spawn(shell)?.output(PATIENCE).map(drop)
    }

    fn environment(&self, command: &mut Command, who: Who) {
        let number = if who == Who::Second { 2 } else { 1 };
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", self.home(number))
            .env("XDG_RUNTIME_DIR", self.runtime(number))
            .env("LC_ALL", "C.UTF-8")
            .env("VDENS_BENCH", self.id())
            .current_dir(self.path("w"))
            .process_group(0);
        if let Some(account) = self.account(who) {
            command.env("USER", &account.name).env("SHELL", "/bin/sh");
        }
    }

    /// The node that a vdens makes for its `sleep`, once it is there.
    pub(crate) fn node_of(&self, proc: &mut Proc, who: Who, number: usize) -> Result<Node> {
        let id = proc.id();
        let mut ended = None;
        let found = wait_for("the command in its namespace", PATIENCE, || {
            if let Err(error) = proc.check() {
                ended = Some(error);
                return Some(None);
            }
            let sleeping = |id: &u32| name(*id).as_deref() == Some("sleep");
            family(id).into_iter().find(sleeping).map(Some)
        })?;
        match (found, ended) {
            (Some(pid), _) => Ok(Node {
                pid,
                user: Some(who),
                interface: "vde0".to_owned(),
                address: address(number),
            }),
            (None, Some(error)) => Err(error),
            (None, None) => Err("no command in the namespace".into()),
        }
    }

    /// A bare network namespace, and the process that holds it: root's, or the user's in a user namespace.
    pub(crate) fn bare_node(&self, number: usize) -> Result<(Proc, Node)> {
        let namespaces = if is_root() { "-n" } else { "-Urn" };
        let holder = self.command(
            Who::Caller,
            Path::new("/usr/bin/unshare"),
            [namespaces, "sleep", "86400"],
        );
        let mut holder = Proc::spawn(holder)?;
        let mut node = self.node_of(&mut holder, Who::First, number)?;
        node.user = (!is_root()).then_some(Who::First);
        Ok((holder, node))
    }

    /// Everything the benchmark has started and that is still there.
    pub(crate) fn remains(&self) -> Vec<u32> {
        let mark = format!("VDENS_BENCH={}\0", self.id()).into_bytes();
        let ours = |id: &u32| {
            let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
            environment.windows(mark.len()).any(|bytes| bytes == mark)
        };
        processes().filter(ours).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // All values that stand for processes are gone: these got away from their parents.
        for id in self.remains() {
            tell(&format!(
                "vdens-bench: left behind: {} ({id})",
                name(id).unwrap_or_default()
            ));
            let _ = kill(Pid::from_raw(id.cast_signed()), Signal::SIGKILL);
        }
    }
}

fn make_dir(path: &Path, mode: u32, owner: &Account) -> Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    if is_root() {
        chown(path, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}

/// The address of the node with a number.
pub(crate) fn address(number: usize) -> String {
    format!("10.77.{}.{}", number / 250, number % 250 + 1)
}

pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}

/// Whether a program is installed.
pub(crate) fn installed(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .any(|directory| Path::new(directory).join(program).exists())
}

fn accounts() -> Result<(Account, Option<Account>)> {
    let account = |user: User| Account {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
    };
    if is_root() {
        let first = User::from_name("vdens-test")?
            .ok_or("no user vdens-test to run vdens as: run tests/setup.sh, or the benchmark as an ordinary user")?;
        let second = User::from_name("vdens-test2")?;
        Ok((account(first), second.map(account)))
    } else {
        let user = User::from_uid(geteuid())?.ok_or("the current user has no name")?;
        Ok((account(user), None))
    }
}
