//! `frozen://{VNL}`: the link of another VNL, through every part of ABI 1 that a plugin without the panel meets.
//!
//! Built against `plugin-api` as it was when ABI 1 was frozen, which lies beside this file's directory. Neither is to be changed:
//! if a host refuses what is built from them, it is the host that is wrong.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use vdens_plugin_api::log::info;
use vdens_plugin_api::vnl::{Keys, Spec};
use vdens_plugin_api::{
    Capabilities, Error, Link, OpenRequest, Result, RxBatch, State, TxBatch, export_plugin,
};

const KEYS: Keys = Keys::new(&[]);

struct Through(Box<dyn Link>);

impl Link for Through {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.0.send_fd()
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

    fn is_shared(&self) -> bool {
        self.0.is_shared()
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let spec = Spec::path_grammar(request.argument(), &KEYS)?;
    let inner = spec.nested();
    let inner =
        inner.ok_or_else(|| Error::usage("no VNL in braces").hint("write frozen://{VNL}"))?;
    let port = request.host.port();
    info!("frozen: {} has an MTU of {}", port.interface, port.mtu);
    match request.host.kept() {
        Some(_) => info!("frozen: goes on where another stopped"),
        None => {
            let null =
                File::open("/dev/null").map_err(|error| Error::io("open /dev/null", &error))?;
            // In vde_plug nobody comes after this process.
            let _ = request.host.keep(Some(null.as_fd()));
        }
    }
    Ok(Box::new(Through(request.host.open(inner)?)))
}

export_plugin! {
    scheme: "frozen",
    description: "another link, through ABI 1 as it was frozen",
    capabilities: Capabilities::NESTS,
    open: open,
}
