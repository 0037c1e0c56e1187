//! Whether another user can have made or changed a file. Such a file must not decide what this user
//! runs or joins.
//!
//! Root and the user of this process are trusted. A check takes the [`Metadata`] of an open file,
//! so that the file that is checked is the file that is read.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid};

/// Why a file is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It belongs to the user with this id, who is neither root nor this user.
    Foreign(u32),
    /// Users besides its owner can write to it.
    Writable,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign(uid) => write!(f, "it belongs to {}", user(*uid)),
            Self::Writable => f.write_str("it can be written by others"),
        }
    }
}

/// Why a file or directory is not trusted, by its owner and its permission bits; `None` if it is.
pub fn fault(meta: &Metadata) -> Option<Fault> {
    foreign(meta).or_else(|| writable_by_others(meta).then_some(Fault::Writable))
}

/// Why a symbolic link is not trusted, by its owner; its permission bits have no meaning.
pub fn foreign(meta: &Metadata) -> Option<Fault> {
    let is_trusted = [0, geteuid().as_raw()].contains(&meta.uid());
    (!is_trusted).then(|| Fault::Foreign(meta.uid()))
}

/// Whether a file is writable by all users, or by a group that is not its owner's private one. A
/// private group has its user's name and is the user's primary group, as usual where the umask is
/// 002.
pub fn writable_by_others(meta: &Metadata) -> bool {
    let private_group = || {
        let user = User::from_uid(Uid::from_raw(meta.uid())).ok().flatten();
        let group = Group::from_gid(Gid::from_raw(meta.gid())).ok().flatten();
        let same_name = user.zip(group).is_some_and(|(user, group)| {
            user.gid == group.gid && user.name == group.name && group.mem.is_empty()
        });
        same_name && (meta.uid() == 0 || meta.gid() == getegid().as_raw())
    };
    meta.mode() & 0o002 != 0 || (meta.mode() & 0o020 != 0 && !private_group())
}

/// A user for a message: `user alice (uid 1000)`, or `uid 1000` if the account has no name here.
pub fn user(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => format!("user {} (uid {uid})", user.name),
        _ => format!("uid {uid}"),
    }
}
