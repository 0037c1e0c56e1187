//! Whose a file is. What another user made, or can change, must not decide what this user runs or
//! joins.
//!
//! Trusted are root and the user that this process runs as. A check looks at [`Metadata`] of an
//! open file, so that what is checked is what is read afterwards.

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

/// What is wrong with the owner or the permission bits of a file or directory, if anything is.
pub fn fault(meta: &Metadata) -> Option<Fault> {
    foreign(meta).or_else(|| writable_by_others(meta).then_some(Fault::Writable))
}

/// What is wrong with the owner of a symbolic link, whose permission bits mean nothing.
pub fn foreign(meta: &Metadata) -> Option<Fault> {
    let is_trusted = [0, geteuid().as_raw()].contains(&meta.uid());
    (!is_trusted).then(|| Fault::Foreign(meta.uid()))
}

/// World-writable, or writable by a group that is not the owner's private one. A private group has
/// its user's name and is that user's primary group, the usual set-up where the umask is 002.
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
