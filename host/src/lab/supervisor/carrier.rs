//! The carrier of a lab's links: what `up` waits for, and what `vdectl lab events` tells.
//!
//! The links that lead outside get their carrier when their far ends are there, so `up` and `apply`
//! wait for that, but not for ever. Meanwhile the supervisor asks the kernel again and again.
//!
//! While somebody watches the lab, the kernel tells of every change, through a socket in each
//! node's network namespace and in that of the switches ([`LinkMonitor`]).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::parts::Parts;
use crate::error::{Error, Result};
use crate::ipc::MAX_FDS;
use crate::ipc::status::lab::Happening;
use crate::lab::shape::Cable;
use crate::lab::wiring::Network;
use crate::sys::netlink::LinkMonitor;

/// How long `up` and `apply` wait for the carrier of links that lead outside. A network behind
/// `nat://` takes a few tenths of a second, and a far end that starts later any time.
const LIMIT: Duration = Duration::from_secs(5);
/// How often the kernel is asked meanwhile.
const PAUSE: Duration = Duration::from_millis(20);

/// Whether new links that lead outside have their carrier.
#[derive(Debug)]
pub(super) enum Carrier {
    /// Their workers still open them.
    Opening(Vec<Cable>),
    /// They are open. Until then they may be without.
    Awaited(Vec<Cable>, Instant),
    /// They have it, or it took too long.
    Settled,
}

impl Carrier {
    /// Of a lab that gets these cables.
    pub(super) fn of(cables: &[Cable]) -> Self {
        let leads_outside =
            |cable: &&Cable| matches!(cable, Cable::Outside { .. } | Cable::Uplink { .. });
        Self::Opening(cables.iter().filter(leads_outside).cloned().collect())
    }

    /// When to look again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        matches!(self, Self::Awaited(..)).then(|| Instant::now() + PAUSE)
    }
}

/// Where interfaces are watched: a node, or the network of the switches.
pub(super) type Place = Option<String>;

/// A network whose interfaces are watched.
#[derive(Debug)]
pub(super) struct Watched {
    monitor: LinkMonitor,
    /// The interfaces, and whether they had carrier.
    carrier: BTreeMap<String, bool>,
}

impl Parts<'_> {
    /// Looks whether the new links that lead outside have their carrier. Returns those that took
    /// too long.
    pub(super) fn await_carrier(&mut self) -> Vec<Cable> {
        let (cables, limit) = match &mut self.carrier {
            Carrier::Opening(cables) if self.outside.is_settled() => {
                (std::mem::take(cables), Instant::now() + LIMIT)
            }
            Carrier::Awaited(cables, limit) => (std::mem::take(cables), *limit),
            Carrier::Opening(_) | Carrier::Settled => return Vec::new(),
        };
        let lacking = cables.into_iter().filter(|cable| !self.has_carrier(cable));
        let lacking: Vec<Cable> = lacking.collect();
        if lacking.is_empty() || Instant::now() >= limit {
            self.carrier = Carrier::Settled;
            return lacking;
        }
        self.carrier = Carrier::Awaited(lacking, limit);
        Vec::new()
    }

    /// Whether an interface of a link that leads outside has carrier.
    pub(super) fn has_carrier(&self, cable: &Cable) -> bool {
        let (network, name) = match cable {
            Cable::Uplink { .. } => (self.wiring.fabric(), self.outside.interface(cable)),
            _ => match cable.plugs().first() {
                Some(plug) => (
                    self.nodes.network(&plug.interface.node).ok(),
                    Some(plug.interface.name.as_str()),
                ),
                None => (None, None),
            },
        };
        let links = network.map(|network| network.netlink.links());
        let mut links = links.and_then(Result::ok).into_iter().flatten();
        links.any(|link| Some(link.name.as_str()) == name && link.is_running)
    }

    /// Watches the networks of the lab, if somebody wants to know, and else no more.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(super) fn watch(&mut self, is_wanted: bool) -> Result<()> {
        if !is_wanted {
            self.watched.clear();
            return Ok(());
        }
        let nodes = self.nodes.names().cloned().map(Some);
        let places = nodes.chain(self.wiring.fabric().map(|_| None));
        let fresh: Vec<Place> = places
            .filter(|place| !self.watched.contains_key(place))
            .collect();
        for places in fresh.chunks(MAX_FDS) {
            let networks = places.iter().map(|place| self.network(place));
            let networks: Vec<&Network> = networks.collect::<Result<_>>()?;
            let namespaces: Vec<BorrowedFd<'_>> =
                networks.iter().map(|it| it.namespace.as_fd()).collect();
            let monitors = self
                .panel
                .in_networks(&namespaces, || Ok(vec![LinkMonitor::open()?.into()]))?;
            let mut watched = Vec::new();
            for (monitor, network) in monitors.into_iter().zip(networks) {
                let views = network.netlink.interfaces()?;
                watched.push(Watched {
                    monitor: monitor.into(),
                    carrier: views.into_iter().map(|it| (it.name, it.carrier)).collect(),
                });
            }
            self.watched.extend(places.iter().cloned().zip(watched));
        }
        Ok(())
    }

    fn network(&self, place: &Place) -> Result<&Network> {
        match place {
            Some(node) => self.nodes.network(node),
            None => self
                .wiring
                .fabric()
                .ok_or_else(|| Error::closed("the lab has no switch")),
        }
    }

    /// The places that are watched.
    pub(super) fn watched(&self) -> impl Iterator<Item = &Place> {
        self.watched.keys()
    }

    /// The descriptor that tells of changes at a place.
    pub(super) fn watched_fd(&self, place: &Place) -> Option<BorrowedFd<'_>> {
        self.watched
            .get(place)
            .map(|watched| watched.monitor.as_fd())
    }

    /// Reads what has changed at a place.
    pub(super) fn read_changes(&mut self, place: &Place) {
        let Some(watched) = self.watched.get_mut(place) else {
            return;
        };
        for (name, carrier) in watched.monitor.changes() {
            if watched
                .carrier
                .insert(name.clone(), carrier)
                .unwrap_or(false)
                == carrier
            {
                continue;
            }
            let interface = match place {
                Some(node) => Some(format!("{node}:{name}")),
                // The switches' other interfaces belong to them.
                None => self.outside.uplink(&name).map(ToString::to_string),
            };
            let change = interface.map(|interface| Happening::Carrier { interface, carrier });
            self.happened.extend(change);
        }
    }

    /// Stops to watch a node that is gone.
    pub(super) fn unwatch(&mut self, node: &str) {
        self.watched.remove(&Some(node.to_owned()));
    }
}
