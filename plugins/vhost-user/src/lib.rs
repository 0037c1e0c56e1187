//! `vhost-user://PATH`: the network card of a virtual machine, by the crate `vdens-vhost-device`.

use vdens_plugin_kit::{Capabilities, export_plugin};

export_plugin! {
    scheme: "vhost_user",
    description: "the network card of a virtual machine: vhost-user://PATH",
    capabilities: Capabilities::SUPER_FRAMES.and(Capabilities::ONE_END),
    needs: "sockets:{dir}",
    open: vdens_vhost_device::open,
}
