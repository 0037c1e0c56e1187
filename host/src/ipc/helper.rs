//! Work that a process leaves to a child, because the work changes the process that does it: the
//! child enters or makes namespaces, and hands descriptors back.

use std::os::fd::{AsFd, OwnedFd};

use super::{Channel, HelperReply, Nothing};
use crate::error::{EXIT_FAILURE, Error, Result};
use crate::sys::child::{Child, exit_child};

/// Runs `work` in a child and returns the descriptors that it results in. For processes that have
/// loaded no plugin.
///
/// # Errors
/// What `work` reports, or the child died.
pub(crate) fn in_child(work: impl FnOnce() -> Result<Vec<OwnedFd>>) -> Result<Vec<OwnedFd>> {
    let (channel, theirs) = Channel::<Nothing, HelperReply>::pair()?;
    let Some(mut child) = Child::fork()? else {
        exit_child(|| {
            let (message, fds) = match work() {
                Ok(fds) => (HelperReply::Done, fds),
                Err(error) => (HelperReply::Failed(error), Vec::new()),
            };
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            theirs
                .send(&message, &borrowed)
                .map_or(EXIT_FAILURE, |()| 0)
        });
    };
    drop(theirs);
    let answer = channel.receive();
    child.wait(None);
    match answer?.well_formed()? {
        Some((HelperReply::Done, fds)) => Ok(fds),
        Some((HelperReply::Failed(error), _)) => Err(error),
        None => Err(Error::closed("a helper process died")
            .hint("a container's seccomp filter may kill it: allow unshare(2) and setns(2) there")),
    }
}
