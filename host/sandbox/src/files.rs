//! Landlock: which files a process may use, and whether it may use TCP.
//!
//! A rule holds for a file, or for a directory and everything below it, as it is found when the
//! rules are made: a directory that is removed and made again is another one. Landlock does not
//! govern connecting to the socket at a path, nor changing a file's mode, nor finding out whether
//! a file is there.

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};

/// The newest rules that are made use of. A kernel that has fewer enforces what it has.
const NEWEST: ABI = ABI::V6;

/// What a path is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// To read it.
    Read,
    /// To read and write it, make files there and remove them.
    Write,
    /// To make sockets there, and directories for them, and to remove these.
    Sockets,
    /// To make a file there, and remove it.
    File,
    /// To open a device and control it.
    Device,
}

impl Use {
    fn rights(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        match self {
            Self::Read => read,
            Self::Write => AccessFs::from_all(NEWEST) & !BitFlags::from(AccessFs::Execute),
            Self::Sockets => {
                AccessFs::ReadDir
                    | AccessFs::MakeSock
                    | AccessFs::MakeDir
                    | AccessFs::RemoveFile
                    | AccessFs::RemoveDir
            }
            Self::File => {
                AccessFs::MakeReg
                    | AccessFs::WriteFile
                    | AccessFs::ReadFile
                    | AccessFs::Truncate
                    | AccessFs::RemoveFile
            }
            Self::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
        }
    }
}

/// A path that a process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What for.
    pub usage: Use,
    /// The file or directory. One that does not exist gives no right.
    pub path: PathBuf,
}

impl Rule {
    /// A rule.
    pub fn new(usage: Use, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { usage, path }
    }
}

/// The version of Landlock's interface that the kernel has; `None` if it has no Landlock, or has
/// not enabled it.
pub fn landlock_version() -> Option<u32> {
    /// LANDLOCK_CREATE_RULESET_VERSION (linux/landlock.h).
    const VERSION: libc::c_ulong = 1;
    // SAFETY: with this flag the call takes no memory and makes nothing (landlock_create_ruleset).
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    u32::try_from(version).ok()
}

/// Restricts the calling thread to these rules. Returns whether the kernel has any.
pub(crate) fn enter(rules: &[Rule], network: bool, signals: bool) -> io::Result<bool> {
    let scope = match signals {
        true => BitFlags::from(Scope::AbstractUnixSocket),
        false => Scope::AbstractUnixSocket | Scope::Signal,
    };
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.scope(scope))
        .map_err(io::Error::other)?;
    if !network {
        ruleset = ruleset
            .handle_access(AccessNet::from_all(NEWEST))
            .map_err(io::Error::other)?;
    }
    let mut created = ruleset.create().map_err(io::Error::other)?;
    for Rule { usage, path } in rules {
        // What is not there needs no rule.
        let Ok(file) = PathFd::new(path) else {
            continue;
        };
        let mut rights = usage.rights();
        if !path.is_dir() {
            rights &= AccessFs::from_file(NEWEST);
        }
        created = created
            .add_rule(PathBeneath::new(file, rights))
            .map_err(io::Error::other)?;
    }
    let status = created.restrict_self().map_err(io::Error::other)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}
