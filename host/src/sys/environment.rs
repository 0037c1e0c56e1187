//! Paths that the environment names.

use std::env;
use std::path::PathBuf;

/// The user's home directory.
pub(crate) fn home() -> Option<PathBuf> {
    absolute_variable("HOME")
}

/// An environment variable that holds an absolute path; the XDG specification has others ignored.
pub(crate) fn absolute_variable(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}
