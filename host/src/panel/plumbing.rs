//! What is done on the panel, by a child that has entered it: making ports, plugging and unplugging.
//!
//! Interfaces there are named by what they are and the process and number they belong to: `p12n0` is
//! port 0 of process 12, `t12n0` the tap through which it is served and `b12n0` the bridge between the
//! two; `c12n0` is the bridge of a cable whose one end is that port. A hub, that is number 3 of the hubs that
//! process 12 has made, is the bridge `h12n3` with the tap `x12n3`. Bridges left without ports are swept whenever
//! something is unplugged: a hub has one as long as its maker holds the tap or something is plugged in.

use std::os::fd::{BorrowedFd, OwnedFd};

use vdens_plugin_api::tap::{MAX_MTU, Tap};

use crate::carrier::LinkWatch;
use crate::error::{Error, Result};
use crate::netlink::Netlink;

/// A bridge with two ports remembers no address: it is a cable, what goes in at one end comes out at the other.
const CABLE: u32 = 0;
/// The longest time that a hub does; far below what the kernel's clock can count.
const LONGEST_AGEING: u32 = 1_000_000;

/// What is to be done. Names are those of interfaces on the panel, without their first letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Make a port, unplugged, and the member's interface of the name given, and hand over a watch
    /// over the panel's interfaces.
    AddPort(String, String),
    /// Plug a port into the cable whose other end is the other port.
    Plug(String, String),
    /// Plug a port into a bridge of its own with a tap, and hand the tap over.
    Serve(String),
    /// Make a hub that remembers an address for so many seconds, none at 0, and hand its tap over.
    Hub(String, u32),
    /// Plug a port into a hub.
    Attach(String, String),
    /// Unplug a port: it is down and on no bridge.
    Unplug(String),
}

impl Order {
    /// The order as words, for the way between processes.
    pub fn encode(&self) -> String {
        match self {
            Self::AddPort(port, interface) => format!("add {port} {interface}"),
            Self::Plug(port, peer) => format!("plug {port} {peer}"),
            Self::Serve(port) => format!("serve {port}"),
            Self::Hub(hub, ageing) => format!("hub {hub} {ageing}"),
            Self::Attach(port, hub) => format!("attach {port} {hub}"),
            Self::Unplug(port) => format!("unplug {port}"),
        }
    }

    /// The order that the words mean.
    pub fn decode(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        match words[..] {
            ["add", port, interface] => Some(Self::AddPort(port.into(), interface.into())),
            ["plug", port, peer] => Some(Self::Plug(port.into(), peer.into())),
            ["serve", port] => Some(Self::Serve(port.into())),
            ["hub", hub, ageing] => Some(Self::Hub(hub.into(), ageing.parse().ok()?)),
            ["attach", port, hub] => Some(Self::Attach(port.into(), hub.into())),
            ["unplug", port] => Some(Self::Unplug(port.into())),
            _ => None,
        }
    }

    /// Whether a bridge is made, used or left.
    pub(super) fn is_about_a_bridge(&self) -> bool {
        !matches!(self, Self::AddPort(..))
    }

    /// Carries the order out in the calling process's network namespace.
    pub(super) fn carry_out(&self, namespace: Option<BorrowedFd<'_>>) -> Result<Option<OwnedFd>> {
        let netlink = Netlink::open()?;
        match self {
            Self::AddPort(port, interface) => {
                let namespace = namespace
                    .ok_or_else(|| Error::closed("a port is to be made for no namespace"))?;
                let name = interface_of(port);
                netlink.add_veth(&name, index(port), interface, namespace)?;
                LinkWatch::open().map(|watch| Some(watch.into()))
            }
            Self::Plug(port, peer) => {
                let bridge = format!("c{}", port.min(peer));
                netlink.add_bridge(&bridge, CABLE)?;
                netlink.set_up(&bridge)?;
                plug(&netlink, port, &bridge)?;
                Ok(None)
            }
            Self::Serve(port) => {
                let bridge = format!("b{port}");
                let tap = tapped_bridge(&netlink, &bridge, CABLE, &format!("t{port}"))?;
                attach(&netlink, port, &bridge)?;
                Ok(Some(tap))
            }
            Self::Hub(hub, ageing) => {
                let (bridge, tap) = (format!("h{hub}"), format!("x{hub}"));
                let ageing = (*ageing).min(LONGEST_AGEING);
                tapped_bridge(&netlink, &bridge, ageing, &tap).map(Some)
            }
            Self::Attach(port, hub) => {
                plug(&netlink, port, &format!("h{hub}"))?;
                Ok(None)
            }
            Self::Unplug(port) => {
                let port = interface_of(port);
                netlink.set_down(&port)?;
                netlink.set_bridge(&port, None)?;
                sweep(&netlink)?;
                Ok(None)
            }
        }
    }
}

/// The name of a port's interface.
pub fn interface_of(port: &str) -> String {
    format!("p{port}")
}

/// The number of a port's interface: larger than any in a member, because the kernel tells of the carrier
/// of a veth at once only if its number and its peer's differ, and else up to a second later.
fn index(port: &str) -> u32 {
    let numbers = port.split_once('n');
    let numbers = numbers.and_then(|(pid, number)| Some((pid.parse().ok()?, number.parse().ok()?)));
    let (pid, number): (u32, u32) = numbers.unwrap_or_default();
    (pid << 8 | number & 0xff) & i32::MAX as u32
}

/// Makes a bridge with a tap on it.
fn tapped_bridge(netlink: &Netlink, bridge: &str, ageing: u32, tap: &str) -> Result<OwnedFd> {
    netlink.add_bridge(bridge, ageing)?;
    netlink.set_up(bridge)?;
    let tap = Tap::open(tap)?;
    // A bridge drops what is longer than the MTU of the port it is for.
    netlink.set_mtu(tap.name(), MAX_MTU)?;
    netlink.set_bridge(tap.name(), Some(bridge))?;
    netlink.set_up(tap.name())?;
    Ok(tap.into())
}

/// Makes a port one of a bridge that others use too. Its own, if it was served, still has the tap, and is of no more use.
fn plug(netlink: &Netlink, port: &str, bridge: &str) -> Result<()> {
    attach(netlink, port, bridge)?;
    netlink.delete(&format!("b{port}"))
}

fn attach(netlink: &Netlink, port: &str, bridge: &str) -> Result<()> {
    let port = interface_of(port);
    netlink.set_bridge(&port, Some(bridge))?;
    netlink.set_up(&port)?;
    sweep(netlink)
}

/// Deletes the bridges that have no port.
fn sweep(netlink: &Netlink) -> Result<()> {
    let links = netlink.links()?;
    let is_bridge = |name: &str| name.starts_with(['b', 'c', 'h']);
    let is_used = |index: u32| links.iter().any(|link| link.bridge == Some(index));
    let empty = links
        .iter()
        .filter(|link| is_bridge(&link.name) && !is_used(link.index));
    for bridge in empty {
        netlink.delete(&bridge.name)?;
    }
    Ok(())
}
