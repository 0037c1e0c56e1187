//! `null://`: a link that drops all frames and never receives any.
//!
//! Its descriptor is an eventfd that is never signalled.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};
use vdens_plugin_kit::{
    Capabilities, Error, Link, Offloads, OpenRequest, Result, RxBatch, State, Status, TxBatch,
};

struct Null(EventFd);

impl Link for Null {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn recv(&mut self, _batch: &mut RxBatch<'_>) -> Result<()> {
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        Ok(batch.len())
    }

    /// Dropped frames may have anything left undone.
    fn state(&self) -> State {
        State::UP.with_offloads(Offloads::ALL)
    }

    fn status(&self) -> Status {
        Status {
            reason: "nothing is sent anywhere".into(),
            ..Status::default()
        }
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    if !request.argument().is_empty() {
        return Err(Error::usage(format!(
            "null:// takes no argument, and '{}' is one",
            request.argument()
        )));
    }
    let never = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|errno| Error::io("make an eventfd", &errno.into()))?;
    Ok(Box::new(Null(never)))
}

vdens_plugin_kit::export_plugin! {
    scheme: "null",
    description: "swallows what is sent, receives nothing",
    capabilities: Capabilities::ONE_END,
    needs: "",
    open: open,
}
