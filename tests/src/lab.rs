//! A test's directory on this machine, and the search for what the test left behind.
//!
//! ```text
//! /tmp/vt-XXXXXX/      root's (or the user's, if root does not run the tests)
//!     bin/             the programs and the plugins: nobody but their owner can write here
//!     home/            $HOME
//!     run/             $XDG_RUNTIME_DIR
//!     w/               the working directory: switches, cables, files
//! ```
//!
//! Programs are copied here because the user may not be able to read the repository they were built
//! in. Names are short because a socket's path has at most 107 bytes.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::{Cmd, Netns, PATIENCE, Tmux, User, becomes_true, stretched, wait_until};

/// The programs of this repository.
pub const PROGRAMS: [&str; 5] = ["vdens", "vde_plug", "vde_switch", "vdens-tap", "vdectl"];

/// The program that a plugin starts, and the library for VDE's programs.
const HELPERS: [&str; 2] = ["vdens-nat", "libvdeplug.so"];

/// A test's directory, user and commands. Dropping it fails the test if anything was left behind.
#[derive(Debug)]
pub struct Lab {
    directory: TempDir,
    user: User,
    /// Paths that may be left, because the test or a foreign program made them.
    expected: RefCell<BTreeSet<PathBuf>>,
    interfaces: BTreeSet<String>,
}

impl Lab {
    /// Sets up a lab.
    ///
    /// # Panics
    /// When the programs have not been built.
    #[expect(
        clippy::new_without_default,
        reason = "making a lab copies programs and makes directories"
    )]
    pub fn new() -> Self {
        let target = target();
        let lab = Self::with_programs(&target);
        let faulty = lab.bin().join("libvdens_test_faulty.so");
        fs::copy(target.join("libfaulty.so"), faulty).unwrap();
        lab
    }

    /// Sets up a lab with the programs and plugins of a directory.
    ///
    /// # Panics
    /// When they are not there.
    pub fn with_programs(programs: &Path) -> Self {
        // A shell starts background jobs with these ignored, and their children would inherit it.
        for ignored in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
            // SAFETY: the default disposition runs no code of this process.
            let _ = unsafe { signal(ignored, SigHandler::SigDfl) };
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix("vt-").rand_bytes(6);
        let directory = builder.tempdir_in("/tmp").unwrap();
        open_to_all(directory.path());
        let lab = Self {
            directory,
            user: User::ordinary(),
            expected: RefCell::default(),
            interfaces: interfaces(),
        };
        fs::create_dir(lab.bin()).unwrap();
        open_to_all(&lab.bin());
        copy_programs(&products(programs), &lab.bin());
        for directory in [lab.home(), lab.runtime_dir(), lab.dir()] {
            fs::create_dir(&directory).unwrap();
            lab.give(&directory);
        }
        fs::set_permissions(lab.runtime_dir(), fs::Permissions::from_mode(0o700)).unwrap();
        lab
    }

    /// The lab's name on this machine.
    pub fn id(&self) -> &str {
        let name = self.directory.path().file_name();
        name.and_then(OsStr::to_str).expect("a plain name")
    }

    /// The ordinary user.
    pub fn user(&self) -> &User {
        &self.user
    }

    /// The working directory.
    pub fn dir(&self) -> PathBuf {
        self.directory.path().join("w")
    }

    /// Where the programs and plugins are.
    pub fn bin(&self) -> PathBuf {
        self.directory.path().join("bin")
    }

    /// The user's home.
    pub fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// Another path in the lab, where the user may not write.
    pub fn aside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The user's drop-in directory for plugins, which is made if it is not there.
    pub fn drop_in(&self) -> PathBuf {
        let directory = self.home().join(".local/share/vdens/plugins");
        self.command("mkdir", ["-p"]).args([&directory]).ok();
        directory
    }

    /// Puts a plugin for `scheme` into the drop-in directory; its path.
    pub fn drop_plugin(&self, file: &Path, scheme: &str) -> PathBuf {
        let plugin = self.drop_in().join(format!("libvdens_{scheme}.so"));
        fs::copy(file, &plugin).unwrap();
        self.give(&plugin);
        plugin
    }

    fn runtime_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// The path of something in the working directory.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir().display())
    }

    /// The VNL of something in the working directory.
    pub fn vnl(&self, scheme: &str, name: &str) -> String {
        format!("{scheme}://{}", self.path(name))
    }

    /// Makes a file of the user's in the working directory; its path.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        self.give(Path::new(&path));
        self.expect(name);
        path
    }

    /// Makes a directory of the user's in the working directory; its path.
    pub fn mkdir(&self, name: &str) -> String {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        self.give(Path::new(&path));
        self.expect(name);
        path
    }

    /// Waits until something is in the working directory. If it is a socket to connect to, then one
    /// can.
    #[track_caller]
    pub fn wait_for(&self, name: &str) {
        let path = self.dir().join(name);
        let here = || path.symlink_metadata().is_ok() && !is_about_to_listen(&path);
        wait_until(&path.display().to_string(), PATIENCE, here);
    }

    /// Allows a path in the working directory to be left: a foreign program leaves it.
    pub fn expect(&self, name: &str) {
        self.expected.borrow_mut().insert(self.dir().join(name));
    }

    /// Makes the user the owner of a file.
    pub fn give(&self, path: &Path) {
        if User::is_root() {
            chown(path, Some(self.user.uid), Some(self.user.gid)).unwrap();
        }
    }

    /// vdens, as built from this repository.
    pub fn vdens(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Cmd<'_> {
        self.command(self.bin().join("vdens"), args)
    }

    /// vde_plug, as built from this repository.
    pub fn vde_plug(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Cmd<'_> {
        self.command(self.bin().join("vde_plug"), args)
    }

    /// vdectl, as built from this repository.
    pub fn vdectl(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Cmd<'_> {
        self.command(self.bin().join("vdectl"), args)
    }

    /// One of Debian's programs, though there may be one of ours by that name.
    pub fn debian(
        &self,
        program: &str,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Cmd<'_> {
        self.command(Path::new("/usr/bin").join(program), args)
    }

    /// Any command.
    pub fn command(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Cmd<'_> {
        Cmd::new(self, program, args)
    }

    /// A shell script that the user runs.
    pub fn sh(&self, script: &str) -> Cmd<'_> {
        self.command("sh", ["-ec", script])
    }

    /// A network namespace, made by root.
    pub fn netns(&self) -> Netns<'_> {
        Netns::new(self, "")
    }

    /// A further one, whose name ends in `suffix`.
    pub fn further_netns(&self, suffix: &str) -> Netns<'_> {
        Netns::new(self, suffix)
    }

    /// A terminal with a shell of the user's.
    pub fn tmux(&self) -> Tmux<'_> {
        Tmux::new(self)
    }

    /// A login's environment.
    pub(crate) fn environment(&self, user: &User) -> Vec<(&'static str, String)> {
        let bin = self.bin();
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        vec![
            ("PATH", format!("{}:{path}", bin.display())),
            ("HOME", self.home().display().to_string()),
            ("XDG_RUNTIME_DIR", self.runtime_dir().display().to_string()),
            ("USER", user.name.clone()),
            ("LOGNAME", user.name.clone()),
            ("SHELL", "/bin/sh".to_owned()),
            ("TERM", "xterm".to_owned()),
            ("LC_ALL", "C.UTF-8".to_owned()),
            ("VDENS_LAB", self.id().to_owned()),
        ]
    }

    /// Whether a process of the lab is running, and not stopped, whose command line starts with
    /// `words`.
    pub fn is_running(&self, words: &str) -> bool {
        let is_stopped = |pid: i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains(") T ")
        };
        let mut processes = self.processes().into_iter();
        processes.any(|(pid, line)| line.starts_with(words) && !is_stopped(pid))
    }

    /// The lab's processes: id and command line.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let mark = format!("VDENS_LAB={}\0", self.id()).into_bytes();
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let directory = entry.ok()?.path();
            let pid = directory.file_name()?.to_str()?.parse().ok()?;
            // Processes end meanwhile, and those of other users cannot be read.
            let environment = fs::read(directory.join("environ")).ok()?;
            let found = environment.windows(mark.len()).any(|bytes| bytes == mark);
            let line = fs::read_to_string(directory.join("cmdline")).ok()?;
            found.then(|| (pid, line.replace('\0', " ")))
        });
        processes.collect()
    }

    /// What is left of the lab, a line each.
    fn leaks(&self) -> Vec<String> {
        let expected = self.expected.borrow();
        // A lab whose set-up failed may not have them.
        let below = |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten();
        let paths = below(self.dir())
            .chain(below(self.runtime_dir()))
            .map(|entry| entry.path())
            .filter(|path| !expected.contains(path));
        let strays = ["/tmp", "/var/tmp", "/run"]
            .into_iter()
            .filter_map(|directory| fs::read_dir(directory).ok())
            .flat_map(Iterator::flatten)
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with("vdenode_") || name.starts_with("vde.") || name == self.id()
            })
            .filter(|path| path != self.directory.path());
        let netns = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let netns = netns
            .map(|entry| entry.path())
            .filter(|path| path.to_string_lossy().contains(self.id()));
        let mut leaks: Vec<String> = self
            .processes()
            .iter()
            .map(|(pid, line)| format!("process {pid}: {line}"))
            .chain(paths.chain(strays).map(|path| path.display().to_string()))
            .chain(netns.map(|path| path.display().to_string()))
            .collect();
        let new = interfaces();
        leaks.extend(
            new.difference(&self.interfaces)
                .map(|name| format!("interface {name}")),
        );
        leaks
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A panicking test kills its processes, so they may leave something.
        let patience = match std::thread::panicking() {
            true => Duration::ZERO,
            false => stretched(Duration::from_secs(4)),
        };
        let clean = becomes_true(patience, || self.leaks().is_empty());
        let leaks = self.leaks();
        for (pid, _) in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if !clean && !std::thread::panicking() {
            panic!("left behind:\n  {}", leaks.join("\n  "));
        }
    }
}

/// The interfaces of the network namespace that the tests run in.
fn interfaces() -> BTreeSet<String> {
    let entries = fs::read_dir("/sys/class/net").unwrap().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Where this program was built: `target/<profile>/deps/<test>` or `target/<profile>/<program>`
/// runs.
pub fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let target = program.ancestors().skip(1).take(2);
    let mut target = target.filter(|directory| directory.join("vde_plug").exists());
    let target = target.next();
    target
        .expect("vdens and vde_plug are built: run tests/run")
        .to_owned()
}

/// Whether a socket of this path neither listens yet nor is connected: foreign programs bind it
/// first. What this network namespace does not know is ready.
fn is_about_to_listen(path: &Path) -> bool {
    // proc_net(5): unix has flags, type and state. One that listens has the flag __SO_ACCEPTCON;
    // type 2 is datagrams, and state 1 is neither connected nor connecting.
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let of_path = |line: &&str| line.ends_with(&format!(" {}", path.display()));
    let is_early = |line: &str| {
        let mut words = line.split_whitespace().skip(3);
        let [flags, kind, state] = [(); 3].map(|()| words.next().unwrap_or_default());
        flags == "00000000" && kind != "0002" && state == "01"
    };
    let mut sockets = table.lines().filter(of_path).peekable();
    sockets.peek().is_some() && sockets.all(is_early)
}

/// Copies programs to a path, or into a directory. Another process does it: a child that another
/// thread starts meanwhile would inherit a descriptor that writes, and the kernel runs no program
/// that is being written (ETXTBSY).
///
/// # Panics
/// When they cannot be copied.
pub fn copy_programs(programs: &[impl AsRef<OsStr>], to: &Path) {
    let copied = Command::new("cp").args(programs).arg(to).status().unwrap();
    assert!(copied.success(), "cp: {copied}");
}

/// The programs and the stock plugins in a directory: those whose scheme has a page in docs.
fn products(programs: &Path) -> Vec<PathBuf> {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schemes");
    // An older build may have left other plugins there.
    let is_stock = |file: &str| {
        let scheme = file
            .strip_suffix(".so")
            .map(|scheme| scheme.replace('_', "-"));
        scheme.is_some_and(|scheme| pages.join(format!("{scheme}.md")).is_file())
    };
    let is_product = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        PROGRAMS.contains(&&*name)
            || HELPERS.contains(&&*name)
            || name.strip_prefix("libvdens_").is_some_and(is_stock)
    };
    let entries = fs::read_dir(programs).into_iter().flatten().flatten();
    let products: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(is_product)
        .collect();
    let has = |name: &str| products.iter().any(|path| path.ends_with(name));
    assert!(
        // Older versions, which the benchmark may measure, have no vdectl.
        has("vdens") && has("vde_plug") && has("libvdens_null.so"),
        "programs and plugins are missing in {}: run tests/run, which builds them first",
        programs.display()
    );
    products
}

fn open_to_all(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
}
