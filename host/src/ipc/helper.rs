//! Work that a process leaves to a child, because the work changes the process that does it: the
//! child enters or makes namespaces, and hands descriptors back.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::{Channel, HelperReply, Nothing};
use crate::error::{EXIT_FAILURE, Error, ErrorKind, Result};
use crate::sys::child::{Child, end_all, exit_child};

/// How long the work may take. The kernel makes no network namespace while it removes others.
const WORK_LIMIT: Duration = Duration::from_secs(30);

/// How long the child may take to end once it has answered.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Runs `work` in a child and returns the descriptors that it results in. For processes that have
/// loaded no plugin.
///
/// # Errors
/// What `work` reports, or the child died, or it has not finished for 30 seconds.
pub(crate) fn in_child(work: impl FnOnce() -> Result<Vec<OwnedFd>>) -> Result<Vec<OwnedFd>> {
    in_child_within(WORK_LIMIT, work)
}

fn in_child_within(
    limit: Duration,
    work: impl FnOnce() -> Result<Vec<OwnedFd>>,
) -> Result<Vec<OwnedFd>> {
    let (channel, theirs) = Channel::<Nothing, HelperReply>::pair()?;
    let Some(child) = Child::fork()? else {
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
    let answer = channel.receive_within(limit).map_err(|error| {
        child.kill();
        match error.kind {
            ErrorKind::Busy => Error::new(
                ErrorKind::Busy,
                format!("a helper process has not finished within {limit:?}"),
            )
            .hint("the kernel is busy or stuck: dmesg may say with what"),
            _ => error,
        }
    });
    end_all([child], END_LIMIT);
    match answer?.well_formed()? {
        Some((HelperReply::Done, fds)) => Ok(fds),
        Some((HelperReply::Failed(error), _)) => Err(error),
        None => Err(Error::closed("a helper process died")
            .hint("a container's seccomp filter may kill it: allow unshare(2) and setns(2) there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_that_hangs_is_given_up() {
        let error = in_child_within(Duration::from_millis(50), || {
            loop {
                std::thread::sleep(Duration::from_secs(60));
            }
        });
        let error = error.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Busy);
        assert!(error.to_string().contains("within 50ms"), "{error}");
    }
}
