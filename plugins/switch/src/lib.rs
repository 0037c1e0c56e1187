//! `switch://DIR`: an Ethernet switch whose ports are the processes that plug into its directory.
//! It is the fabric of `vdens-fabric`, which here learns behind which port each station is.

use vdens_fabric::{CAPABILITIES, Kind};
use vdens_plugin_kit::{Link, OpenRequest, Result};

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    vdens_fabric::open(Kind::Switch, request)
}

vdens_plugin_kit::export_plugin! {
    scheme: "switch",
    description: "an Ethernet switch in a directory: switch://DIR",
    capabilities: CAPABILITIES,
    needs: "sockets:{dir} sockets:{runtime} sockets:{tmp}",
    open: open,
}
