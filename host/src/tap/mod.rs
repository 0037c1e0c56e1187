//! `vdens-tap`: a tap that plugs a virtual machine into a VNL.
//!
//! QEMU starts this program as the helper of a tap back end, and takes the tap from a socket. So an
//! unmodified QEMU that runs as an ordinary user is plugged into anything that a VNL names, with
//! all offloads.
//!
//! # Theory of operation
//!
//! The tap is a port on the user's panel. In place of a member's virtual Ethernet pair it has a
//! tap, and is plugged and served as any other port: the kernel carries the frames on a bridge with
//! the peer's port, or a worker moves them.
//!
//! The program stays in the background, as the link's supervisor ([`supervisor`]). It starts the
//! worker again if that ends. It holds the machine's process, and ends with it. The kernel deletes
//! the tap when the machine closes it.
//!
//! The guest does not see the link's carrier: QEMU has no way to learn of it from a tap.

mod handover;
mod supervisor;

use crate::cli::VdensTap;
use crate::cli::config::Config;
use crate::cli::mistakes::{self, CommandLine};
use crate::cli::vnls;
use crate::error::Result;
use crate::ipc::background;
use crate::panel::{Panel, new_place};
use crate::sys::runtime;
use crate::sys::signals::Signals;
use crate::worker::Job;
use crate::worker::target::LinkTarget;
use handover::Machine;
use supervisor::Supervisor;
use vdens_plugin_kit::PanelAddress;

/// The MTU in bytes that plugins are told of. The guest chooses its own.
const MTU: u32 = 1500;

/// Plugs the machine that has started this program into the VNL. Returns when it has the tap.
///
/// # Errors
/// The program was not started by a virtual machine monitor, the link cannot be opened, or the
/// panel cannot be used.
pub fn run(cli: &VdensTap, config: &Config) -> Result<()> {
    let machine = Machine::at(cli.fd, cli.use_vnet)?;
    let plugins = cli.links.plugins(&cli.common, config)?;
    let line = CommandLine::VdensTap;
    mistakes::check(&cli.vnl, line, &plugins, cli.links.wait.is_some())?;
    let target = LinkTarget::Vnl(vnls::resolve(&cli.vnl, config.defaults.vnl.as_deref())?);
    target
        .scheme()
        .map_or(Ok(()), |scheme| plugins.check(scheme))?;
    runtime::complain();
    let is_carried = cli.links.uses_panel(config);
    background::start(|starter| {
        let signals = Signals::block()?;
        let panel = Panel::acquire()?;
        let place = new_place()?;
        let job = Job {
            // A machine has one of these processes for each of its taps.
            interface: format!("tap-{}", std::process::id()),
            label: machine.to_string(),
            mtu: MTU,
            target,
            wait: cli.links.wait.unwrap_or_default(),
            plugins,
            panel_address: is_carried.then(|| PanelAddress {
                panel: panel.id(),
                place: place.clone(),
            }),
            nearby: None,
        };
        Supervisor::run(job, place, machine, panel, &signals, starter)
    })
}
