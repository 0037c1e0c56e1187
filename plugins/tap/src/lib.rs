//! `tap://NAME`: a tap interface of the host.
//!
//! Without root it is a persistent tap that belongs to the user
//! (`ip tuntap add mode tap name NAME user USER`). [`Tap`] does the work. This module parses the
//! VNL, and leaves a persistent tap as it found it: with carrier, without offloads.

use std::os::fd::BorrowedFd;

use vdens_plugin_kit::tap::Tap;
use vdens_plugin_kit::vnl::{Keys, Spec};
use vdens_plugin_kit::{
    Capabilities, Link, OpenRequest, Result, RxBatch, State, Status, TxBatch, export_plugin,
};

const KEYS: Keys = Keys::new(&[]);

struct HostTap(Tap);

impl Link for HostTap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        self.0.recv(batch)
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        self.0.send(batch)
    }

    fn other_side(&mut self, state: State) {
        self.0.other_side(state);
    }

    fn state(&self) -> State {
        self.0.state()
    }

    fn status(&self) -> Status {
        let mut status = self.0.status();
        status.reason = "a tap of the host cannot be plugged into the panel".into();
        status.extra.insert("tap".into(), self.0.name().into());
        status
    }
}

impl Drop for HostTap {
    fn drop(&mut self) {
        self.0.other_side(State::UP);
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let spec = Spec::path_grammar(request.argument(), &KEYS)?;
    spec.no_nested()?;
    Ok(Box::new(HostTap(Tap::open(spec.target_str()?)?)))
}

export_plugin! {
    scheme: "tap",
    description: "a tap interface of the host",
    capabilities: Capabilities::ONE_END.and(Capabilities::SUPER_FRAMES),
    needs: "device:/dev/net/tun",
    open: open,
}
