//! `hub://DIR`: an Ethernet hub whose ports are the processes that plug into its directory. It is
//! the fabric of `vdens-fabric`, which here forwards every frame to all other ports.

use vdens_fabric::{CAPABILITIES, Kind};
use vdens_plugin_kit::{Link, OpenRequest, Result};

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    vdens_fabric::open(Kind::Hub, request)
}

vdens_plugin_kit::export_plugin! {
    scheme: "hub",
    description: "an Ethernet hub in a directory: hub://DIR",
    capabilities: CAPABILITIES,
    needs: "sockets:{dir} sockets:{runtime} sockets:{tmp}",
    open: open,
}
