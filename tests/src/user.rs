//! The accounts that tests run commands as.

use nix::unistd::{Uid, geteuid};

/// An account of this machine.
#[derive(Clone, Debug)]
pub struct User {
    /// The login name.
    pub name: String,
    /// The user id.
    pub uid: u32,
    /// The primary group's id.
    pub gid: u32,
}

impl User {
    /// The ordinary user whom the product serves: `vdens-test` when the tests run as root,
    /// otherwise whoever runs them.
    ///
    /// # Panics
    /// When there is no such account.
    pub fn ordinary() -> Self {
        if Self::is_root() {
            Self::named("vdens-test").expect("no user vdens-test: run tests/setup.sh as root")
        } else {
            let user = nix::unistd::User::from_uid(geteuid());
            user.unwrap().expect("the current user has no name").into()
        }
    }

    /// Another ordinary user, who owns nothing of the first.
    ///
    /// # Panics
    /// When there is no such account.
    pub fn other() -> Self {
        Self::named("vdens-test2").expect("no user vdens-test2: run tests/setup.sh as root")
    }

    /// Root.
    pub fn root() -> Self {
        let (name, uid, gid) = ("root".to_owned(), 0, 0);
        Self { name, uid, gid }
    }

    /// Whether the tests run as root, and so can run commands as any user.
    pub fn is_root() -> bool {
        geteuid() == Uid::from_raw(0)
    }

    /// The account of a name.
    pub fn named(name: &str) -> Option<Self> {
        nix::unistd::User::from_name(name).unwrap().map(Self::from)
    }
}

impl From<nix::unistd::User> for User {
    fn from(user: nix::unistd::User) -> Self {
        Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        }
    }
}
