//! Taps in the networks of a lab, which the supervisor makes and holds.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use vdens_plugin_kit::tap::Tap;

use crate::error::{Error, Result};
use crate::lab::wiring::Network;
use crate::panel::Panel;
use crate::worker::Nearby;
use crate::worker::carrier::LinkWatch;

/// A tap in a node or in the fabric, and a watch over it.
#[derive(Debug)]
pub(in crate::lab) struct NodeTap {
    name: String,
    pub(super) tap: OwnedFd,
    pub(super) watch: LinkWatch,
}

impl NodeTap {
    /// Makes a tap in a network.
    ///
    /// # Errors
    /// The kernel has no taps, or the name is taken.
    pub(in crate::lab) fn make(name: &str, panel: &Panel, network: &Network) -> Result<Self> {
        let mut fds = panel.in_network(network.namespace.as_fd(), || {
            let tap = Tap::open(name)?.as_fd().try_clone_to_owned();
            let tap =
                tap.map_err(|error| Error::io(format_args!("make the interface {name}"), &error))?;
            Ok(vec![tap, LinkWatch::open()?.into()])
        })?;
        match (fds.pop(), fds.pop()) {
            (Some(watch), Some(tap)) => Ok(Self {
                name: name.to_owned(),
                tap,
                watch: watch.into(),
            }),
            _ => Err(Error::closed("a helper process lost descriptors")),
        }
    }

    /// As the tap that a worker opens as `nearby://`.
    pub(super) fn into_nearby(self) -> Nearby {
        Nearby {
            tap: Arc::new(self.tap),
            watch: Arc::new(self.watch),
            name: self.name,
        }
    }
}
