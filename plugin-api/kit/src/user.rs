//! Which user's process may be at the far end of a link.
//!
//! # Theory of operation
//!
//! The host opens a broken link again. By then the path may lead to a socket of another user, who
//! would receive all traffic: in /tmp, any user can make a directory where a switch had its own. So
//! a plugin that knows the far end's user calls [`FarUser::check`] before it sends anything, and
//! [`FarUser::remember`] once the link is open.
//!
//! A VNL without the key `user` joins any user's far end at the first open, because the author of
//! the VNL chose the path. Later it joins only the first user, root, and the session's own user.
//! Root can do anything anyway, and vdens does not protect users from themselves. The first user
//! stays the first, so that a switch may change to root and back. The key names the only user
//! instead, or allows `any`.
//!
//! The process remembers the first user of each VNL. The supervisor holds a note of it
//! ([`Host::store_fd`]) for the worker that replaces a dead one. A nested link has no note, because
//! the host keeps descriptors of the outermost link only. The note is a memory file. The control
//! stream would serve too (SO_PEERCRED outlives the peer), but a switch would not see its port
//! close while the supervisor holds that.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Uid, User};

use crate::vnl::user_id;
use crate::{Error, ErrorKind, Host, Result};

/// The first user of each VNL that this process has opened.
static FIRST: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

/// Which user's process may be at the far end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowedUser {
    /// Any user at the first open; later that user, root, and the session's own user.
    #[default]
    First,
    /// This user only.
    Only(u32),
    /// Any user, at each open.
    Any,
}

impl AllowedUser {
    /// The rule in the value of a VNL's key `user`: a name, a number or `any`.
    ///
    /// # Errors
    /// There is no such user.
    pub fn of_key(value: Option<&str>) -> Result<Self> {
        Ok(match value {
            None => Self::First,
            Some("any") => Self::Any,
            Some(name) => Self::Only(user_id(name)?),
        })
    }
}

/// The rule for the user at the far end of a link, and the first user that was there.
#[derive(Clone, Debug)]
pub struct FarUser {
    allowed: AllowedUser,
    vnl: String,
    host: Host,
}

impl FarUser {
    /// A rule for the link of `vnl`, which is opened with the services of `host`.
    pub fn new(allowed: AllowedUser, vnl: &str, host: Host) -> Self {
        Self {
            allowed,
            vnl: vnl.to_owned(),
            host,
        }
    }

    /// Checks that the link may join a far end of user `uid`. The error calls the far end `what`.
    ///
    /// # Errors
    /// The rule does not allow this user.
    pub fn check(&self, what: impl fmt::Display, uid: u32) -> Result<()> {
        let why = match (self.allowed, self.first()) {
            (AllowedUser::Only(only), _) if uid != only => {
                format!("and user {}'s is asked for", Name(only))
            }
            (AllowedUser::First, Some(first)) if !may_follow(first, uid) => {
                format!("and was user {}'s", Name(first))
            }
            _ => return Ok(()),
        };
        let now = match self.allowed {
            AllowedUser::First => " now",
            AllowedUser::Only(_) | AllowedUser::Any => "",
        };
        let name = Name(uid);
        let message = format!("cannot join {what}: it is user {name}'s{now}, {why}");
        let hint = format!("if you trust {name}, say so in the VNL: [user={name}] or [user=any]");
        Err(Error::new(ErrorKind::Permission, message).hint(hint))
    }

    /// Remembers the user of a joined far end, unless there is a first user already.
    pub fn remember(&self, uid: u32) {
        if self.allowed != AllowedUser::First || self.first().is_some() {
            return;
        }
        let stored = note(uid)
            .map_err(|error| Error::io("make a note of the far end's user", &error))
            .and_then(|note| self.host.store_fd(Some(note.as_fd())));
        if let Err(error) = stored {
            log::debug!("{}: no note of the far end's user: {error}", self.vnl);
        }
        remembered().insert(self.vnl.clone(), uid);
    }

    /// The first user that this process or its predecessor joined.
    fn first(&self) -> Option<u32> {
        if self.allowed != AllowedUser::First {
            return None;
        }
        let mut remembered = remembered();
        if let Some(uid) = remembered.get(&self.vnl) {
            return Some(*uid);
        }
        let uid = read_note(&File::from(self.host.take_fd()?))
            .inspect_err(|error| log::warn!("{}: the far end's user: {error}", self.vnl))
            .ok()?;
        remembered.insert(self.vnl.clone(), uid);
        Some(uid)
    }
}

fn remembered() -> MutexGuard<'static, BTreeMap<String, u32>> {
    FIRST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the far end may belong to user `now` after it belonged to user `first`.
pub fn may_follow(first: u32, now: u32) -> bool {
    now == first || now == 0 || now == Uid::effective().as_raw()
}

/// Shows a user's name, or the number of a user without a name.
#[derive(Clone, Copy, Debug)]
pub struct Name(pub u32);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match User::from_uid(Uid::from_raw(self.0)) {
            Ok(Some(user)) => write!(f, "{}", user.name.escape_debug()),
            _ => self.0.fmt(f),
        }
    }
}

/// A memory file that names the first user.
fn note(uid: u32) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("vdens-far-user", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&uid.to_ne_bytes())?;
    Ok(file.into())
}

fn read_note(file: &File) -> io::Result<u32> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: u32 = 40_001;
    const BOB: u32 = 40_002;

    fn far_user(allowed: AllowedUser, vnl: &str) -> FarUser {
        FarUser::new(allowed, vnl, Host::without_services())
    }

    #[test]
    fn keys() {
        let of = |key| AllowedUser::of_key(Some(key));
        assert_eq!(AllowedUser::of_key(None).unwrap(), AllowedUser::First);
        assert_eq!(of("any").unwrap(), AllowedUser::Any);
        assert_eq!(of("root").unwrap(), AllowedUser::Only(0));
        assert_eq!(of("40001").unwrap(), AllowedUser::Only(ALICE));
        assert!(of("no such user").is_err());
    }

    #[test]
    fn the_first_one_may_come_back_and_no_third_one() {
        let own = Uid::effective().as_raw();
        let far = far_user(AllowedUser::First, "test://first");
        far.check("it", ALICE).unwrap();
        far.check("it", BOB).unwrap();
        far.remember(ALICE);
        for _ in 0..2 {
            let error = far.check("the switch /sw", BOB).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Permission);
            let text = error.to_string();
            assert!(
                text.starts_with(
                    "cannot join the switch /sw: it is user 40002's now, and was user 40001's; "
                ) && text.contains("[user=40002]"),
                "{text}"
            );
            for uid in [0, own, ALICE] {
                far.check("it", uid).unwrap();
                far.remember(uid);
            }
        }
        // Another link is another matter.
        far_user(AllowedUser::First, "test://second")
            .check("it", BOB)
            .unwrap();
    }

    #[test]
    fn a_key_is_the_whole_rule() {
        let only = far_user(AllowedUser::Only(ALICE), "test://only");
        for uid in [0, BOB] {
            let text = only.check("it", uid).unwrap_err().to_string();
            assert!(text.contains("and user 40001's is asked for"), "{text}");
        }
        let any = far_user(AllowedUser::Any, "test://only");
        for far in [only, any.clone()] {
            far.check("it", ALICE).unwrap();
            far.remember(ALICE);
        }
        any.check("it", BOB).unwrap();
    }

    #[test]
    fn a_note_is_read_as_often_as_wanted() {
        let file = File::from(note(ALICE).unwrap());
        assert_eq!(read_note(&file).unwrap(), ALICE);
        assert_eq!(read_note(&file).unwrap(), ALICE);
        assert!(read_note(&tempfile().unwrap()).is_err());
    }

    fn tempfile() -> io::Result<File> {
        Ok(File::from(memfd_create("empty", MFdFlags::MFD_CLOEXEC)?))
    }
}
