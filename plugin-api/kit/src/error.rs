//! Errors that can cross the plugin boundary.
//!
//! The user sees a plugin's failure as one line. So an [`Error`] has a message that says what
//! failed, on what and why, and a hint that says what to do next. For programs it has a kind, and
//! the operating system's error number. The same four fields cross the boundary. A kind that the
//! receiver does not know becomes [`ErrorKind::Other`].

use std::fmt;
use std::io;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

/// What went wrong, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u32)]
pub enum ErrorKind {
    /// None of the others.
    Other = 0,
    /// The VNL or an option is malformed.
    Usage = 1,
    /// The thing named does not exist.
    NotFound = 2,
    /// The caller may not use the thing named.
    Permission = 3,
    /// The thing named is in use.
    Busy = 4,
    /// The far end is gone, and the link does not recover by itself: open it again.
    Closed = 5,
    /// This machine, kernel or peer cannot do it.
    Unsupported = 6,
    /// The far end violated the protocol.
    Protocol = 7,
    /// The plugin panicked.
    Panic = 8,
}

impl ErrorKind {
    /// The kind for a number that came across the boundary; unknown numbers are
    /// [`ErrorKind::Other`].
    pub fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Usage,
            2 => Self::NotFound,
            3 => Self::Permission,
            4 => Self::Busy,
            5 => Self::Closed,
            6 => Self::Unsupported,
            7 => Self::Protocol,
            8 => Self::Panic,
            _ => Self::Other,
        }
    }
}

/// A failure, and what the user can do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What went wrong, for programs.
    pub kind: ErrorKind,
    /// The operating system's error number, 0 if there is none.
    pub errno: i32,
    /// What failed, on what, and why. One line, no full stop.
    pub message: String,
    /// What to do next; may be empty. One line, no full stop.
    pub hint: String,
}

impl Error {
    /// An error of `kind` that reads `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            errno: 0,
            message: message.into(),
            hint: String::new(),
        }
    }

    /// A malformed VNL or option.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// The far end is gone.
    pub fn closed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Closed, message)
    }

    /// A system call failed: `action` reads "cannot ACTION", for example `connect to /tmp/sw/ctl`.
    /// If it failed because too many files are open, the hint names the limit.
    pub fn io(action: impl fmt::Display, source: &io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            io::ErrorKind::AddrInUse | io::ErrorKind::ResourceBusy => ErrorKind::Busy,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => ErrorKind::Closed,
            io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Other,
        };
        Self {
            kind,
            errno: source.raw_os_error().unwrap_or(0),
            message: format!("cannot {action}: {}", describe(source)),
            hint: advice(source),
        }
    }

    /// [`Error::io`] on a path: "cannot ACTION PATH".
    pub fn path(action: &str, path: &Path, source: &io::Error) -> Self {
        Self::io(format_args!("{action} {}", path.display()), source)
    }

    /// The same error with the advice `hint`.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

/// The system's description of an error, without Rust's "(os error N)".
fn describe(source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_owned(),
        None => source.to_string(),
    }
}

/// The hint for a failure that concerns every file: none can be opened.
fn advice(source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(libc::EMFILE) => match getrlimit(Resource::RLIMIT_NOFILE) {
            Ok((limit, _)) => format!("raise the limit, which is {limit} (ulimit -n)"),
            Err(_) => "raise the limit (ulimit -n)".into(),
        },
        Some(libc::ENFILE) => "raise the limit of the system (sysctl fs.file-max)".into(),
        _ => String::new(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// The result of a function that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_open_files_are_told_as_the_limit() {
        let text = |errno| Error::io("open x", &io::Error::from_raw_os_error(errno)).to_string();
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(
            text(libc::EMFILE),
            format!(
                "cannot open x: Too many open files; raise the limit, which is {limit} (ulimit -n)"
            )
        );
        assert!(text(libc::ENFILE).contains("fs.file-max"));
        assert_eq!(
            text(libc::ENOENT),
            "cannot open x: No such file or directory"
        );
    }
}
