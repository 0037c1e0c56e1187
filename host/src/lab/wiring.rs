//! The links that the kernel carries: pairs of virtual Ethernet interfaces between two nodes, or
//! between a node and a switch. They are made in large batches, and no process serves them.
//!
//! A switch is a bridge in the lab's *fabric*, a network namespace below the panel's user namespace
//! that holds nothing else. It exists as long as the supervisor holds it. In the fabric the ports
//! are called `p` and their index.
//!
//! The supervisor gives each interface its index, so that it need not ask for it. The indices of a
//! lab differ from each other: a pair with equal ones would be slow to announce its carrier
//! ([`port_index`](crate::panel::port_index)).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipnet::IpNet;
use netlink_packet_route::route::RouteMessage;

use super::shape::{Cable, Interface, Plug};
use crate::error::{Error, Result};
use crate::panel::Panel;
use crate::sys::netlink::{Batch, Netlink, VethEnd};

/// The first index. The kernel's own interfaces have lower ones.
const FIRST_INDEX: u32 = 100;

/// How long a switch remembers an address, in seconds.
const AGEING: u32 = 300;

/// A network namespace, and a connection to its configuration.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) namespace: OwnedFd,
    pub(super) netlink: Netlink,
}

/// The links of a lab that the kernel carries.
#[derive(Debug, Default)]
pub(super) struct Wiring {
    /// Where the switches are, once there is one.
    fabric: Option<Network>,
    /// The last index that was given.
    last: u32,
    /// The indices of the nodes' interfaces.
    interfaces: BTreeMap<Interface, u32>,
    /// The routes over interfaces that are made anew.
    routes: BTreeMap<Interface, Vec<RouteMessage>>,
    /// Interfaces that are to be set up with the next addresses.
    down: Vec<Interface>,
    /// The indices of the bridges.
    bridges: BTreeMap<String, u32>,
}

impl Wiring {
    /// The index of a node's interface, if this lab has made it.
    pub(super) fn index(&self, interface: &Interface) -> Option<u32> {
        self.interfaces.get(interface).copied()
    }

    /// Where the switches are, if there is one.
    pub(super) fn fabric(&self) -> Option<&Network> {
        self.fabric.as_ref()
    }

    /// Configures an interface that was made by other means, and sets it up.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn adopt(&mut self, plug: &Plug, network: &Network) -> Result<()> {
        let (name, netlink) = (&plug.interface.name, &network.netlink);
        netlink.set_mac(name, plug.mac)?;
        if let Some(mtu) = plug.mtu {
            netlink.set_mtu(name, mtu)?;
        }
        netlink.set_up(name)?;
        let index = netlink.index(name)?;
        self.interfaces.insert(plug.interface.clone(), index);
        Ok(())
    }

    /// Makes an interface in the fabric a port of a switch.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn plug_in(&self, interface: &str, switch: &str) -> Result<()> {
        let fabric = self.fabric.as_ref().ok_or_else(no_fabric)?;
        let bridge = self.bridges.get(switch).ok_or_else(no_fabric)?;
        let bridge = bridge_name(*bridge);
        fabric.netlink.set_bridge(interface, Some(&bridge))?;
        fabric.netlink.set_up(interface)
    }

    /// Sets the switch's end of a port up or down, which belongs to this interface of a node.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn set_port(&self, interface: &Interface, is_up: bool) -> Result<()> {
        let fabric = self.fabric.as_ref().ok_or_else(no_fabric)?;
        let index = self.index(interface).ok_or_else(no_fabric)?;
        match is_up {
            true => fabric.netlink.set_up(&port_name(index)),
            false => fabric.netlink.set_down(&port_name(index)),
        }
    }

    /// An index that no interface of the lab has.
    pub(super) fn next_index(&mut self) -> u32 {
        self.last = (self.last + 1).max(FIRST_INDEX);
        self.last
    }

    /// Makes switches.
    ///
    /// # Errors
    /// The kernel has no bridges, or a limit does not allow it.
    pub(super) fn add_switches(&mut self, names: &[String], panel: &Panel) -> Result<()> {
        for name in names {
            let index = self.next_index();
            let fabric = match &mut self.fabric {
                Some(fabric) => fabric,
                none => {
                    let (namespace, netlink) = panel.make_network()?;
                    none.insert(Network { namespace, netlink })
                }
            };
            let bridge = bridge_name(index);
            fabric.netlink.add_switch(&bridge, index, AGEING)?;
            self.bridges.insert(name.clone(), index);
        }
        Ok(())
    }

    /// Removes switches, which have no ports any more.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn remove_switches(&mut self, names: &[String]) -> Result<()> {
        for name in names {
            if let (Some(index), Some(fabric)) = (self.bridges.remove(name), &self.fabric) {
                fabric.netlink.delete(&bridge_name(index))?;
            }
        }
        Ok(())
    }

    /// Connects cables that the kernel carries, and skips others. `nodes` finds a node's network.
    ///
    /// # Errors
    /// The kernel refuses one. Others are made all the same.
    pub(super) fn connect<'a>(
        &mut self,
        cables: &[Cable],
        panel: &Panel,
        nodes: impl Fn(&str) -> Result<&'a Network>,
    ) -> Result<()> {
        let mut batch = Batch::default();
        let mut ports = Batch::default();
        for cable in cables {
            match cable {
                Cable::Direct([a, b]) => {
                    let (near, far) = (self.new_end(a), self.new_end(b));
                    let near = veth(a, near, nodes(&a.interface.node)?.namespace.as_fd());
                    let far = veth(b, far, nodes(&b.interface.node)?.namespace.as_fd());
                    batch.add_veth(&near, &far, None);
                    self.down.push(b.interface.clone());
                }
                Cable::Port { plug, switch } => {
                    let (port, index) = (self.next_index(), self.new_end(plug));
                    let far = veth(plug, index, nodes(&plug.interface.node)?.namespace.as_fd());
                    let bridge = self.bridges.get(switch).copied();
                    let fabric = self.fabric.as_ref().ok_or_else(no_fabric)?;
                    let name = port_name(index);
                    let near = VethEnd {
                        name: &name,
                        index: port,
                        namespace: fabric.namespace.as_fd(),
                        mac: None,
                        mtu: plug.mtu,
                    };
                    batch.add_veth(&near, &far, bridge);
                    ports.open_bridge_port(port, &name);
                    self.down.push(plug.interface.clone());
                }
                Cable::Impaired { .. } | Cable::Outside { .. } | Cable::Uplink { .. } => {}
            }
        }
        panel.perform(batch)?;
        match &self.fabric {
            Some(fabric) => fabric.netlink.perform(ports),
            None => Ok(()),
        }
    }

    /// Notes a new interface of a node, and returns its index.
    fn new_end(&mut self, plug: &Plug) -> u32 {
        let index = self.next_index();
        self.interfaces.insert(plug.interface.clone(), index);
        index
    }

    /// Remembers the routes over interfaces that are made anew, which are lost with them.
    pub(super) fn save_routes<'a>(
        &mut self,
        (cut, connect): (&[Cable], &[Cable]),
        nodes: impl Fn(&str) -> Result<&'a Network>,
    ) {
        let interfaces = |cables: &[Cable]| -> BTreeSet<Interface> {
            let plugs = cables.iter().flat_map(Cable::plugs);
            plugs.map(|plug| plug.interface.clone()).collect()
        };
        for interface in interfaces(cut).intersection(&interfaces(connect)) {
            if let (Some(index), Ok(network)) = (self.index(interface), nodes(&interface.node)) {
                match network.netlink.routes(index) {
                    Ok(routes) => drop(self.routes.insert(interface.clone(), routes)),
                    Err(error) => log::warn!("{interface}: its routes are lost: {error}"),
                }
            }
        }
    }

    /// Adds the routes again that were lost with interfaces which are there now.
    pub(super) fn restore_routes<'a>(&mut self, nodes: impl Fn(&str) -> Result<&'a Network>) {
        let saved = std::mem::take(&mut self.routes);
        for (interface, routes) in saved {
            let (Some(index), Ok(network)) = (self.index(&interface), nodes(&interface.node))
            else {
                self.routes.insert(interface, routes);
                continue;
            };
            let mut batch = Batch::default();
            for route in routes {
                batch.add_route(route, index, &interface.name);
            }
            if let Err(error) = network.netlink.perform(batch) {
                log::warn!("{interface}: {error}");
            }
        }
    }

    /// Deletes the interfaces of cables, each pair at one end.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn cut<'a>(
        &mut self,
        cables: &[Cable],
        nodes: impl Fn(&str) -> Result<&'a Network>,
    ) -> Result<()> {
        let mut batches: BTreeMap<&str, Batch> = BTreeMap::new();
        for cable in cables {
            let indices: Vec<_> = cable
                .plugs()
                .iter()
                .map(|plug| (plug, self.interfaces.remove(&plug.interface)))
                .collect();
            // The other end of a pair goes with the first.
            let pairs = match cable {
                Cable::Direct(_) | Cable::Port { .. } | Cable::Outside { .. } => 1,
                // Taps go with their last descriptor.
                Cable::Impaired { .. } | Cable::Uplink { .. } => 0,
            };
            for (plug, index) in indices.iter().take(pairs) {
                if let Some(index) = index {
                    let batch = batches.entry(&plug.interface.node).or_default();
                    batch.delete(*index, &plug.interface.name);
                }
            }
        }
        for (node, batch) in batches {
            // The command in the node may have deleted it.
            match nodes(node)?.netlink.perform(batch) {
                Err(error) if error.errno == libc::ENODEV => {}
                outcome => outcome.map_err(|error| super::of_node(node, error))?,
            }
        }
        Ok(())
    }

    /// Changes the addresses of interfaces, and sets new interfaces up, with the loopback
    /// interfaces of new nodes.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub(super) fn address<'a>(
        &mut self,
        fresh: impl Iterator<Item = &'a str>,
        take: &'a [(Interface, IpNet)],
        give: &'a [(Interface, IpNet)],
        nodes: impl Fn(&str) -> Result<&'a Network>,
    ) -> Result<()> {
        let down = std::mem::take(&mut self.down);
        let mut batches: BTreeMap<&str, Batch> = BTreeMap::new();
        for node in fresh {
            batches.entry(node).or_default().set_up(LOOPBACK, "lo");
        }
        for interface in &down {
            if let Some(index) = self.index(interface) {
                let batch = batches.entry(&interface.node).or_default();
                batch.set_up(index, &interface.name);
            }
        }
        for (interface, address) in take {
            if let Some(index) = self.index(interface) {
                let batch = batches.entry(&interface.node).or_default();
                batch.remove_address(index, &interface.name, *address);
            }
        }
        for (interface, address) in give {
            if let Some(index) = self.index(interface) {
                let batch = batches.entry(&interface.node).or_default();
                batch.add_address(index, &interface.name, *address);
            }
        }
        for (node, batch) in batches {
            let outcome = nodes(node)?.netlink.perform(batch);
            outcome.map_err(|error| super::of_node(node, error))?;
        }
        Ok(())
    }

    /// Forgets the interfaces of nodes that have ended.
    pub(super) fn forget(&mut self, nodes: &BTreeSet<String>) {
        self.interfaces
            .retain(|interface, _| !nodes.contains(&interface.node));
        self.routes
            .retain(|interface, _| !nodes.contains(&interface.node));
    }
}

/// The index of the loopback interface in every namespace.
const LOOPBACK: u32 = 1;

fn no_fabric() -> Error {
    Error::closed("the lab has no switch yet")
}

fn bridge_name(index: u32) -> String {
    format!("b{index}")
}

fn port_name(index: u32) -> String {
    format!("p{index}")
}

fn veth<'a>(plug: &'a Plug, index: u32, namespace: BorrowedFd<'a>) -> VethEnd<'a> {
    VethEnd {
        name: &plug.interface.name,
        index,
        namespace,
        mac: Some(plug.mac),
        mtu: plug.mtu,
    }
}
