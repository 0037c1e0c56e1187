//! What is done on the panel, by a child that has entered it: making ports, plugging and unplugging.
//!
//! Interfaces there are named by what they are and the process and number they belong to: `p12n0` is
//! port 0 of process 12, `t12n0` the tap through which it is served and `b12n0` the bridge between the
//! two; `c12n0` is the bridge of a cable whose one end is that port. Bridges left without ports are swept
//! whenever something is unplugged.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vdens_plugin_api::tap::Tap;

use crate::error::{Error, Result};
use crate::netlink::Netlink;

/// The largest MTU of a tap, in bytes: a member's own interface decides what is sent.
const TAP_MTU: u32 = 65_521;

/// How long a bridge remembers an address, in seconds.
const AGEING: u32 = 300;

/// What is to be done. Names are those of interfaces on the panel, without their first letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Make a port, unplugged, and the member's interface of the name given.
    AddPort(String, String),
    /// Plug a port into the cable whose other end is the other port.
    Plug(String, String),
    /// Plug a port into a bridge of its own with a tap, and hand the tap over.
    Serve(String),
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
            ["unplug", port] => Some(Self::Unplug(port.into())),
            _ => None,
        }
    }

    /// Carries the order out in the calling process's network namespace.
    pub(super) fn carry_out(&self, namespace: Option<BorrowedFd<'_>>) -> Result<Option<OwnedFd>> {
        let netlink = Netlink::open()?;
        match self {
            Self::AddPort(port, interface) => {
                let namespace = namespace
                    .ok_or_else(|| Error::closed("a port is to be made for no namespace"))?;
                let name = format!("p{port}");
                netlink.add_veth(&name, index(port), interface, namespace)?;
                Ok(None)
            }
            Self::Plug(port, peer) => {
                let bridge = format!("c{}", port.min(peer));
                netlink.add_bridge(&bridge, AGEING)?;
                netlink.set_up(&bridge)?;
                attach(&netlink, port, &bridge)?;
                Ok(None)
            }
            Self::Serve(port) => {
                let bridge = format!("b{port}");
                netlink.add_bridge(&bridge, AGEING)?;
                netlink.set_up(&bridge)?;
                let tap = Tap::open(&format!("t{port}"))?;
                netlink.set_mtu(tap.name(), TAP_MTU)?;
                netlink.set_bridge(tap.name(), Some(&bridge))?;
                netlink.set_up(tap.name())?;
                attach(&netlink, port, &bridge)?;
                let tap = tap.as_fd().try_clone_to_owned();
                tap.map(Some)
                    .map_err(|error| Error::io("hand a tap over", &error))
            }
            Self::Unplug(port) => {
                let port = format!("p{port}");
                netlink.set_down(&port)?;
                netlink.set_bridge(&port, None)?;
                sweep(&netlink)?;
                Ok(None)
            }
        }
    }
}

/// The number of a port's interface: larger than any in a member, because the kernel tells of the carrier
/// of a veth at once only if its number and its peer's differ, and else up to a second later.
fn index(port: &str) -> u32 {
    let numbers = port.split_once('n');
    let numbers = numbers.and_then(|(pid, number)| Some((pid.parse().ok()?, number.parse().ok()?)));
    let (pid, number): (u32, u32) = numbers.unwrap_or_default();
    (pid << 8 | number & 0xff) & i32::MAX as u32
}

fn attach(netlink: &Netlink, port: &str, bridge: &str) -> Result<()> {
    let port = format!("p{port}");
    netlink.set_bridge(&port, Some(bridge))?;
    netlink.set_up(&port)?;
    sweep(netlink)
}

/// Deletes the bridges that have no port.
fn sweep(netlink: &Netlink) -> Result<()> {
    let links = netlink.links()?;
    let is_bridge = |name: &str| name.starts_with(['b', 'c']);
    let is_used = |index: u32| links.iter().any(|link| link.bridge == Some(index));
    let empty = links
        .iter()
        .filter(|link| is_bridge(&link.name) && !is_used(link.index));
    for bridge in empty {
        netlink.delete(&bridge.name)?;
    }
    Ok(())
}
