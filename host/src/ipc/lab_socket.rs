//! The socket by which `vdectl lab` reaches a lab's supervisor: in the directory `labs-…` of the
//! user's runtime directory. Whoever has the lab's name ([`names`]) is the supervisor.

use super::listener::{self, Listener};
use super::{Channel, FromLab, ToLab};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::names::{self, Kind};
use crate::sys::runtime;

/// The supervisor's end of a connection.
pub(crate) type Asker = Channel<FromLab, ToLab>;

/// The directory's name. Process ids are only unique within their namespace.
fn directory() -> Result<String> {
    Ok(format!("labs-{}", runtime::namespace("pid")?))
}

/// Makes the socket of this process.
///
/// # Errors
/// The runtime directory cannot be used.
pub(crate) fn listen() -> Result<Listener> {
    Listener::start(&directory()?)
}

/// Connects to the supervisor of a lab.
///
/// # Errors
/// There is no such lab.
pub(crate) fn connect_to(name: &str) -> Result<Channel<ToLab, FromLab>> {
    names::check(name)?;
    let found = names::find(name)?.filter(|found| found.kind == Kind::Lab);
    let supervisor = found.ok_or_else(|| none(name))?.holder;
    if supervisor == 0 {
        let message = format!("the lab '{name}' runs in another PID namespace");
        return Err(Error::new(ErrorKind::Unsupported, message).hint("look for it there"));
    }
    let socket = listener::connect_to(&directory()?, supervisor)?;
    socket.map(Channel::from).ok_or_else(|| none(name))
}

/// The error if there is no such lab.
pub(crate) fn none(name: &str) -> Error {
    let error = Error::new(ErrorKind::NotFound, format!("no lab '{name}' is running"));
    error.hint("vdectl lab status lists those that are")
}
