//! Rust: building what a test needs, and lending the toolchain to the ordinary user.
//!
//! A user may not be able to read the toolchain, the registry's crates or the repository, when
//! these are root's. So [`Cmd::with_rust`] runs a command in a mount namespace in which they are
//! where the user can: the toolchain in the lab, a copy of the registry's index and crates as the
//! user's `CARGO_HOME`, and the repository at its own path. Nothing is fetched from the network.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Cmd, Lab, User};

/// Makes the toolchain ($1) appear at $2, and the repository ($4) readable where it is, with the
/// help of $3. Then runs the rest as the user whose ids are $5 and $6.
const BORROW: &str = r#"
mount --bind "$1" "$2"
part=$4; closed=
while [ "$part" != / ]; do
    [ $(( 0$(stat -c %a "$part") & 1 )) = 1 ] || closed=$part
    part=$(dirname "$part")
done
if [ -n "$closed" ]; then
    mount --bind "$4" "$3"
    mount -t tmpfs -o mode=755 tmpfs "$closed"
    mkdir -p "$4"
    mount --bind "$3" "$4"
fi
uid=$5; gid=$6; shift 6
exec setpriv --reuid "$uid" --regid "$gid" --clear-groups -- "$@"
"#;

/// What makes Cargo quick: no debug information, which no test reads, no optimizations, and no
/// preparations for building again.
const QUICK: [(&str, &str); 3] = [
    ("CARGO_PROFILE_DEV_DEBUG", "0"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ("CARGO_INCREMENTAL", "0"),
];

impl Cmd<'_> {
    /// Runs the command with Rust, offline, as whoever runs the tests has it.
    ///
    /// # Panics
    /// When there is no Rust.
    pub fn with_rust(self, lab: &Lab) -> Self {
        let sysroot = PathBuf::from(said(rustc().args(["--print", "sysroot"])).trim());
        let path = |rust: &Path| {
            let path = lab.environment(lab.user()).into_iter();
            let path: Vec<_> = path.filter(|(name, _)| *name == "PATH").collect();
            // First, because a system may have a Rust of its own.
            format!("{}:{}", rust.join("bin").display(), path[0].1)
        };
        let offline = self.env("CARGO_NET_OFFLINE", "true");
        let offline = QUICK
            .iter()
            .fold(offline, |cmd, (name, value)| cmd.env(name, value));
        if !User::is_root() {
            let home = cargo_home();
            return offline.env("PATH", path(&sysroot)).env("CARGO_HOME", home);
        }
        let [rust, repository, home] = ["rust", "repository", "cargo"].map(|name| lab.aside(name));
        for place in [&rust, &repository, &home] {
            std::fs::create_dir_all(place).unwrap();
        }
        let registry = home.join("registry");
        std::fs::create_dir_all(&registry).unwrap();
        for part in ["index", "cache"] {
            let from = cargo_home().join("registry").join(part);
            said(Command::new("cp").arg("-r").args([&from, &registry]));
        }
        let (uid, gid) = (lab.user().uid, lab.user().gid);
        let owner = format!("{uid}:{gid}");
        said(Command::new("chown").args(["-R", &owner]).arg(&home));
        let root = repository_root();
        let words = ["unshare", "-m", "--", "sh", "-ec", BORROW, "sh"].map(Into::into);
        let words = words.into_iter().chain([
            sysroot.into_os_string(),
            rust.clone().into_os_string(),
            repository.into_os_string(),
            root.into_os_string(),
            uid.to_string().into(),
            gid.to_string().into(),
        ]);
        offline
            .env("PATH", path(&rust))
            .env("CARGO_HOME", home)
            .env("USER", &lab.user().name)
            .env("LOGNAME", &lab.user().name)
            .by(User::root())
            .behind(words.collect())
    }
}

/// Where the repository is.
fn repository_root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().unwrap()
}

fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

/// Runs a command that must succeed; what it wrote to standard output.
#[track_caller]
fn said(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:#?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The second compiler, which `tests/setup.sh` installs: the system's, of another version than the
/// one that builds the host.
pub const SECOND_RUSTC: &str = "/usr/bin/rustc";

/// Runs `cargo build` with these arguments on a manifest of the repository, as the user who runs
/// the tests, with `rustc` or with the compiler that builds the host. What it builds stays for the
/// next time.
///
/// # Panics
/// When that fails.
#[track_caller]
pub fn build(rustc: Option<&str>, manifest: &str, target: &Path, arguments: &[&str]) {
    let mut command = quick_cargo();
    if let Some(rustc) = rustc {
        assert!(
            Path::new(rustc).exists(),
            "{rustc} is missing: run tests/setup.sh as root"
        );
        command.env("RUSTC", rustc);
    }
    said(
        command
            .args(["build", "--quiet", "--locked", "--manifest-path"])
            .arg(repository_root().join(manifest))
            .arg("--target-dir")
            .arg(target)
            .args(arguments),
    );
}

/// Cargo as whoever runs the tests has it, without what Cargo told this process.
fn quick_cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let inherited = std::env::vars_os().map(|(name, _)| name);
    for name in inherited.filter(|name| name.to_string_lossy().starts_with("CARGO_PKG_")) {
        command.env_remove(name);
    }
    command.env_remove("RUSTC");
    command.envs(QUICK);
    command
}

/// Runs Cargo's `command` on the workspace.
///
/// # Panics
/// When that fails.
#[track_caller]
pub fn cargo(command: &str, target: &Path, arguments: &[&str]) {
    said(
        quick_cargo()
            .args([command, "--quiet", "--manifest-path"])
            .arg(repository_root().join("Cargo.toml"))
            .arg("--target-dir")
            .arg(target)
            .args(arguments),
    );
}
