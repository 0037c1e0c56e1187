//! The parts of a lab that there are, and how they become what the lab is to be.
//!
//! [`Parts::rebuild`] performs a [`Difference`] in one call: it ends nodes, starts them, and
//! connects them. `shape` says at any time what there is. So whatever fails, the next difference
//! has what is missing. What the nodes have to do themselves is queued ([`Nodes`]).
//!
//! Links to the outside get their interfaces when their workers have opened them
//! ([`Parts::make_interfaces`]).

use std::collections::{BTreeMap, BTreeSet};
use std::iter;

use nix::unistd::Pid;
use vdens_impairment::Keys;
use vdens_impairment::request::Request;

use super::carrier::{Carrier, Place, Watched};
use super::links::Down;
use super::nodes::Nodes;
use crate::error::{Error, Result};
use crate::ipc::status::lab::Happening;
use crate::lab::difference::Difference;
use crate::lab::machine;
use crate::lab::model::{Lab, Node};
use crate::lab::of_node;
use crate::lab::outside::{NodeTap, Outside, Surroundings};
use crate::lab::shape::{Cable, Interface, Plug, Shape};
use crate::lab::spawn::Inheritance;
use crate::lab::wiring::Wiring;
use crate::panel::Panel;
use crate::plugins::host_services::InstalledPlugins;
use crate::sys::signals::Signals;

/// The parts of a lab.
pub(super) struct Parts<'a> {
    signals: &'a Signals,
    inheritance: Inheritance,
    pub(super) panel: Panel,
    pub(super) wiring: Wiring,
    pub(super) outside: Outside,
    pub(super) nodes: Nodes,
    /// The lab as it is.
    pub(super) shape: Shape,
    /// The links that were taken down, by the interface at their first end.
    pub(super) down: BTreeMap<Interface, Down>,
    /// The carrier of links that lead outside.
    pub(super) carrier: Carrier,
    /// The networks whose interfaces are watched.
    pub(super) watched: BTreeMap<Place, Watched>,
    /// What has happened, until it is told.
    pub(super) happened: Vec<Happening>,
}

impl<'a> Parts<'a> {
    /// No parts yet, of a lab that is to be this one.
    ///
    /// # Errors
    /// The user can have no panel.
    pub(super) fn new(
        lab: &Lab,
        inheritance: Inheritance,
        plugins: InstalledPlugins,
        signals: &'a Signals,
    ) -> Result<Self> {
        // A panel with subordinate ids belongs to the lab alone.
        let panel = match lab.nodes.iter().any(|node| node.map_auto) {
            true => Panel::with_subordinate_ids()?,
            false => Panel::acquire()?,
        };
        Ok(Self {
            signals,
            inheritance,
            panel,
            wiring: Wiring::default(),
            outside: Outside::new(plugins),
            nodes: Nodes::default(),
            shape: Shape::default(),
            down: BTreeMap::new(),
            carrier: Carrier::Settled,
            watched: BTreeMap::new(),
            happened: Vec::new(),
        })
    }

    /// Makes the lab what it is to be, but for what the nodes have to do, which it queues. Returns
    /// what changes, a line each. `forget` drops, in a forked process, what the caller holds.
    ///
    /// # Errors
    /// Something cannot be made. What does not depend on it may be there.
    pub(super) fn rebuild(
        &mut self,
        target: &Shape,
        forget: &mut dyn FnMut(),
    ) -> Result<Vec<String>> {
        let change = Difference::between(&self.shape, target);
        self.take_apart(&change)?;
        self.start_nodes(&change, forget)?;
        self.wiring
            .add_switches(&change.add_switches, &self.panel)?;
        let added = change.add_switches.iter().cloned();
        self.shape.switches.extend(added);
        self.connect(&change, forget)?;
        for [old, new] in &change.impair {
            let keys = |cable: &Cable| Keys::parse(cable.impairments().unwrap_or_default());
            let request = Request::Set {
                replace: false,
                words: keys(old)?.changes_to(&keys(new)?),
            };
            self.impair([old, new], &request)?;
        }
        self.carrier = Carrier::of(&change.connect);
        self.nodes.queue(&change.work);
        self.shape = target.clone();
        let changes = change.summary();
        self.happened.push(Happening::Changing {
            changes: changes.clone(),
        });
        Ok(changes)
    }

    fn take_apart(&mut self, change: &Difference) -> Result<()> {
        let anew = (&change.cut[..], &change.connect[..]);
        let nodes = |name: &str| self.nodes.network(name);
        self.wiring.save_routes(anew, nodes);
        let uplinks = self.outside.cut(&change.cut);
        self.wiring.cut(&change.cut, nodes)?;
        for name in uplinks {
            if let Some(fabric) = self.wiring.fabric() {
                fabric.netlink.delete(&name)?;
            }
        }
        self.lose(&change.cut);
        self.nodes.end(&change.end, self.signals);
        for node in &change.end {
            self.unwatch(node);
            let node = node.clone();
            self.happened.push(Happening::NodeEnded { node });
        }
        let names: BTreeSet<String> = change.end.iter().cloned().collect();
        self.wiring.forget(&names);
        self.shape.nodes.retain(|name, _| !names.contains(name));
        self.wiring.remove_switches(&change.remove_switches)?;
        for name in &change.remove_switches {
            self.shape.switches.remove(name);
        }
        Ok(())
    }

    fn start_nodes(&mut self, change: &Difference, forget: &mut dyn FnMut()) -> Result<()> {
        if change.start.is_empty() {
            return Ok(());
        }
        let fresh: Vec<&Node> = change.start.iter().map(|node| &node.node).collect();
        let outside = &mut self.outside;
        let mut forget = || {
            outside.forget();
            forget();
        };
        let from_here = (self.signals, self.inheritance);
        self.nodes
            .start(&fresh, &self.panel, from_here, &mut forget)?;
        for shape in &change.start {
            let node = shape.node.name.clone();
            if let Some(pid) = self.nodes.pid(&node) {
                self.shape.nodes.insert(node.clone(), shape.clone());
                self.happened.push(Happening::NodeStarted { node, pid });
            }
        }
        Ok(())
    }

    fn connect(&mut self, change: &Difference, forget: &mut dyn FnMut()) -> Result<()> {
        let nodes = |name: &str| self.nodes.network(name);
        let connected = self.wiring.connect(&change.connect, &self.panel, nodes);
        if connected.is_err() {
            // What was made is removed, so that it can be made again.
            let _ = self.wiring.cut(&change.connect, nodes);
            return connected;
        }
        self.add_workers(&change.connect, forget)?;
        self.shape.cables.extend(change.connect.iter().cloned());
        let fresh = change.start.iter().map(|node| node.node.name.as_str());
        let nodes = |name: &str| self.nodes.network(name);
        self.wiring
            .address(fresh, &change.take, &change.give, nodes)?;
        self.wiring.restore_routes(nodes);
        for cable in &change.connect {
            match cable {
                // Their interfaces are made later.
                Cable::Outside { .. } | Cable::Uplink { .. } => {}
                Cable::Direct(_) | Cable::Port { .. } | Cable::Impaired { .. } => {
                    self.plug_machines_in(cable)?;
                }
            }
        }
        Ok(())
    }

    /// Plugs the interfaces of machines' nodes into the machines' taps.
    fn plug_machines_in(&self, cable: &Cable) -> Result<()> {
        for plug in cable.plugs() {
            let node = &plug.interface.node;
            if self.shape.has_machine(node) {
                let plugged = self
                    .nodes
                    .network(node)
                    .and_then(|network| machine::plug_in(plug, &self.panel, network));
                plugged.map_err(|error| of_node(node, error))?;
            }
        }
        Ok(())
    }

    /// Makes the interfaces of impaired links, and starts the workers of those that need one.
    fn add_workers(&mut self, cables: &[Cable], forget: &mut dyn FnMut()) -> Result<()> {
        for cable in cables {
            let taps = match cable {
                Cable::Impaired { plugs, .. } => {
                    let make = |plug: &Plug| -> Result<NodeTap> {
                        let network = self.nodes.network(&plug.interface.node)?;
                        let tap = NodeTap::make(&plug.interface.name, &self.panel, network)?;
                        self.wiring.adopt(plug, network)?;
                        Ok(tap)
                    };
                    let [near, far] = plugs.each_ref().map(make);
                    Some([near?, far?])
                }
                _ => None,
            };
            let number = self.wiring.next_index();
            self.outside.add(cable, number, taps, &self.panel)?;
        }
        let nodes = &mut self.nodes;
        let mut surroundings = Surroundings {
            signals: self.signals,
            forget: &mut || {
                nodes.forget();
                forget();
            },
        };
        self.outside.start(&self.panel, &mut surroundings)
    }

    /// Makes the interfaces of links to the outside that are open now.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub(super) fn make_interfaces(&mut self) -> Result<()> {
        for (at, cable) in self.outside.without_interface() {
            match &cable {
                Cable::Outside { plug, .. } => {
                    let network = self.nodes.network(&plug.interface.node)?;
                    self.outside.make_interface(at, &self.panel, network)?;
                    self.wiring.adopt(plug, network)?;
                    let addresses = self.shape.addresses.iter();
                    let given: Vec<_> = addresses
                        .filter(|(interface, _)| *interface == plug.interface)
                        .cloned()
                        .collect();
                    let nodes = |name: &str| self.nodes.network(name);
                    self.wiring.address(iter::empty(), &[], &given, nodes)?;
                    self.wiring.restore_routes(nodes);
                    self.plug_machines_in(&cable)?;
                }
                Cable::Uplink { switch, .. } => {
                    let fabric = self
                        .wiring
                        .fabric()
                        .ok_or_else(|| Error::closed(format!("the switch {switch} is gone")))?;
                    let name = self.outside.make_interface(at, &self.panel, fabric)?;
                    if let Some(mtu) = cable.mtu() {
                        fabric.netlink.set_mtu(&name, mtu)?;
                    }
                    self.wiring.plug_in(&name, switch)?;
                }
                // Their interfaces are made with the cable.
                Cable::Direct(_) | Cable::Port { .. } | Cable::Impaired { .. } => {}
            }
            self.outside.give_side(at, &self.panel)?;
        }
        Ok(())
    }

    /// Does what is due for the links that have workers.
    ///
    /// # Errors
    /// A link that never ran has failed.
    pub(super) fn tick(&mut self, forget: &mut dyn FnMut()) -> Result<()> {
        let nodes = &mut self.nodes;
        let mut surroundings = Surroundings {
            signals: self.signals,
            forget: &mut || {
                nodes.forget();
                forget();
            },
        };
        self.outside.tick(&self.panel, &mut surroundings)
    }

    /// Handles the end of a process. Returns the node that is gone, if it was one: its init has
    /// ended, though nobody asked for it. The kernel deletes the node's interfaces, and those at
    /// the other ends of its links.
    ///
    /// # Errors
    /// It was the worker of a link that never ran.
    pub(super) fn reap(&mut self, pid: Pid) -> Result<Option<String>> {
        if self.outside.reap(pid, &self.panel)? {
            return Ok(None);
        }
        let _ = nix::sys::wait::waitpid(pid, None);
        let Some(name) = self.nodes.take_ended(pid) else {
            return Ok(None);
        };
        self.wiring.forget(&BTreeSet::from([name.clone()]));
        self.unwatch(&name);
        self.shape.nodes.remove(&name);
        let is_of = |cable: &&Cable| {
            let mut plugs = cable.plugs().iter();
            plugs.any(|plug| plug.interface.node == name)
        };
        let lost: Vec<Cable> = self.shape.cables.iter().filter(is_of).cloned().collect();
        self.lose(&lost);
        let node = name.clone();
        self.happened.push(Happening::NodeEnded { node });
        Ok(Some(name))
    }

    /// Notes that cables are gone.
    fn lose(&mut self, cables: &[Cable]) {
        self.shape.lose(cables);
        for plug in cables.iter().flat_map(Cable::plugs) {
            self.down.remove(&plug.interface);
        }
    }

    /// Whether all links are as they are to be, so that commands may use them.
    pub(super) fn is_settled(&self) -> bool {
        self.outside.is_settled() && matches!(self.carrier, Carrier::Settled)
    }

    /// Whether a link was taken down.
    pub(super) fn is_down(&self, cable: &Cable) -> bool {
        let first = cable.plugs().first();
        first.is_some_and(|plug| self.down.contains_key(&plug.interface))
    }

    /// Ends all.
    pub(super) fn end(&mut self) {
        self.outside.end();
        self.nodes.end_all(self.signals);
    }
}
