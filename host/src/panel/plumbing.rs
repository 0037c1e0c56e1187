//! What each order does on the panel: making ports, plugging and unplugging them.
//!
//! Each port and each learning bridge has a *place*: a random name ([`new_place`]). The names of
//! the interfaces on the panel are made of a letter and a place:
//!
//! | Interface | Name for the place `x` |
//! |---|---|
//! | a port | `px` |
//! | the tap through which a worker serves a port, and the bridge between the two | `tx`, `bx` |
//! | a learning bridge, whatever it does with VLANs, and its tap | `hx`, `xx` |
//! | the bridge of a cable between two ports | `c` and a hash of both places ([`cable_name`]) |
//!
//! The hash makes a cable's bridge known to both of its ends only: two ports are on one bridge if
//! each end has named the other's place.
//!
//! Bridges without ports are deleted when a port is unplugged: deletion takes the kernel tens of
//! milliseconds, and nothing waits for an unplugged port. When many sessions end together, those
//! without the lock leave the bridges to the one that has it. When both ends of a cable end at
//! once, neither unplugs its port, and the bridge stays. So an end that plugs its port into each
//! [`SWEEP`]th bridge deletes such bridges, too. A learning bridge has a port as long as its maker
//! holds the tap or a port is plugged in; the panel service of its maker outlives the tap, and
//! deletes the bridge if no port is left.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vdens_plugin_kit::tap::{Header, MAX_MTU};
use vdens_plugin_kit::wire::hello::Nonce;

use crate::error::{Error, Result};
use crate::ipc::{BridgeVlans, Order};
use crate::sys::netlink::{LinkView, Netlink, PANEL_MTU, UNTAGGED};

/// A bridge with two ports remembers no address: it is a cable, what goes in at one end comes out
/// at the other.
const CABLE: u32 = 0;
/// The longest time that a bridge remembers an address; far below what the kernel's clock can
/// count.
const LONGEST_AGEING: u32 = 1_000_000;

/// Of so many bridges that the panel makes in a row, one is the occasion to delete those without
/// ports. Without a port, a bridge is some kilobytes of the kernel's memory.
const SWEEP: u32 = 32;

/// Why an order needs the registry's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// It does not: it makes and deletes no bridge.
    Unneeded,
    /// To delete bridges. A process without the lock leaves them to the next one that has it.
    Useful,
    /// To use a bridge that has no port yet. Without the lock, another process could delete it.
    Needed,
}

/// Why an order needs the registry's lock.
pub(super) fn lock_for(order: &Order) -> Lock {
    match order {
        Order::AddPort { .. }
        | Order::AddPair { .. }
        | Order::AddTap { .. }
        | Order::SetVlans { .. } => Lock::Unneeded,
        Order::Unplug { .. } => Lock::Useful,
        Order::Plug { .. } | Order::Serve { .. } | Order::Bridge { .. } | Order::Attach { .. } => {
            Lock::Needed
        }
    }
}

/// Executes an order over `netlink`, a connection to the panel, where `open_tap` opens a tap.
/// `namespace` is the member's network namespace, for an order that makes a port; for one that
/// makes a pair, the panel's. `is_locked` says whether the registry is locked.
pub(super) fn execute(
    order: &Order,
    netlink: &Netlink,
    open_tap: impl Fn(&str, Header) -> Result<OwnedFd>,
    namespace: Option<BorrowedFd<'_>>,
    is_locked: bool,
) -> Result<Option<OwnedFd>> {
    // A bridge with a tap on it.
    let tapped_bridge = |bridge: &str, ageing: u32, vlans: BridgeVlans, tap: &str| {
        netlink.add_bridge(bridge, ageing)?;
        match vlans {
            BridgeVlans::Ignored => {}
            BridgeVlans::Filtered => netlink
                .set_vlan_filtering(bridge)
                .inspect_err(|_| drop(netlink.delete(bridge)))?,
            BridgeVlans::Dropped => netlink.set_group(bridge, UNTAGGED)?,
        }
        let fd = open_tap(tap, Header::Vnet)?;
        // A bridge drops what is longer than the MTU of the port it is for.
        netlink.set_mtu(tap, MAX_MTU)?;
        netlink.set_bridge(tap, Some(bridge))?;
        netlink.set_up(tap)?;
        Ok(fd)
    };
    match order {
        Order::AddPort {
            port,
            index,
            interface,
        } => {
            let namespace = namespace.ok_or_else(|| {
                Error::closed("the order to make a port came without a namespace")
            })?;
            netlink.add_veth(&interface_of(port), *index, interface, namespace)?;
            let watch = netlink.as_fd().try_clone_to_owned();
            watch
                .map(Some)
                .map_err(|error| Error::io("watch the panel", &error))
        }
        Order::AddPair { port, opposite } => {
            let namespace =
                namespace.ok_or_else(|| Error::closed("a pair was ordered without a namespace"))?;
            let opposite = interface_of(opposite);
            // The kernel chooses both indices.
            netlink.add_veth(&interface_of(port), 0, &opposite, namespace)?;
            netlink.set_mtu(&opposite, PANEL_MTU)?;
            netlink.set_big_tcp(&opposite)?;
            Ok(None)
        }
        Order::AddTap { port, has_header } => {
            let tap = interface_of(port);
            let header = match has_header {
                true => Header::Vnet,
                false => Header::None,
            };
            let fd = open_tap(&tap, header)?;
            // A bridge drops what is longer than the MTU of the port it is for.
            netlink.set_mtu(&tap, MAX_MTU)?;
            Ok(Some(fd))
        }
        Order::Plug { port, peer } => {
            let bridge = cable_name(port, peer);
            netlink.add_bridge(&bridge, CABLE)?;
            plug(netlink, port, &bridge)?;
            // The kernel numbers the interfaces that it makes one after another.
            if netlink.index(&bridge)?.is_multiple_of(SWEEP) {
                sweep(netlink)?;
            }
            Ok(None)
        }
        Order::Serve { port } => {
            let bridge = format!("b{port}");
            let tap = tapped_bridge(&bridge, CABLE, BridgeVlans::Ignored, &format!("t{port}"))?;
            attach(netlink, port, &bridge)?;
            Ok(Some(tap))
        }
        Order::Bridge {
            bridge,
            ageing,
            vlans,
        } => {
            let (bridge, tap) = (format!("h{bridge}"), format!("x{bridge}"));
            let ageing = (*ageing).min(LONGEST_AGEING);
            tapped_bridge(&bridge, ageing, *vlans, &tap).map(Some)
        }
        Order::SetVlans {
            bridge,
            port,
            untagged,
            tagged,
        } => {
            let tap = || format!("x{bridge}");
            let port = port.as_deref().map_or_else(tap, interface_of);
            netlink.set_vlans(&port, &format!("h{bridge}"), *untagged, tagged)?;
            // Such a port takes no tag, not even its own VLAN's.
            let group = if tagged.is_empty() { UNTAGGED } else { 0 };
            netlink.set_group(&port, group)?;
            Ok(None)
        }
        Order::Attach { port, bridge } => {
            plug(netlink, port, &format!("h{bridge}"))?;
            Ok(None)
        }
        Order::Unplug { port } => {
            unplug(netlink, &interface_of(port), is_locked)?;
            Ok(None)
        }
    }
}

/// The name of a port's interface.
pub(crate) fn interface_of(port: &str) -> String {
    format!("p{port}")
}

/// A place for a port or a bridge that nobody can guess: 64 random bits as 13 letters and digits.
///
/// # Errors
/// The kernel has no random numbers.
pub(crate) fn new_place() -> Result<String> {
    Ok(spell(Nonce::new()?.0))
}

/// The name of the bridge of the cable between two ports. An end that names a wrong place gets a
/// bridge that no other port is on.
fn cable_name(port: &str, peer: &str) -> String {
    let (first, second) = (port.min(peer), port.max(peer));
    // FNV-1a (RFC 9923): the places are random, so the name need not be hard to compute.
    let bytes = first.bytes().chain([0]).chain(second.bytes());
    let name = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("c{}", spell(name))
}

/// A number in base 32.
fn spell(mut number: u64) -> String {
    const DIGITS: usize = u64::BITS.div_ceil(5) as usize;
    let digits = (0..DIGITS).map(|_| {
        let digit = (number & 31) as u32;
        number >>= 5;
        char::from_digit(digit, 32).unwrap_or('0')
    });
    digits.collect()
}

/// The index on the panel of the port of process `pid`'s interface `number`. It is larger than any
/// index in a member: if both ends of a veth pair have the same index, the kernel announces changes
/// of carrier up to a second late (`linkwatch_urgent_event` in net/core/link_watch.c).
pub(crate) fn port_index(pid: u32, number: usize) -> u32 {
    (pid << 8 | number as u32 & 0xff) & i32::MAX as u32
}

/// Plugs a port into a bridge that other ports use, too. Deletes the bridge through which it was
/// served, if there is one.
fn plug(netlink: &Netlink, port: &str, bridge: &str) -> Result<()> {
    attach(netlink, port, bridge)?;
    netlink.delete(&format!("b{port}"))
}

fn attach(netlink: &Netlink, port: &str, bridge: &str) -> Result<()> {
    let port = interface_of(port);
    netlink.set_bridge(&port, Some(bridge))?;
    netlink.set_up(&port)
}

/// Sets a port down and takes it off its bridge. If it `may_delete` bridges, it deletes those
/// without another port, and the bridge of the port's own cable, which leads nowhere now. The other
/// end's port may still be on that bridge: the interface of a killed session exists for a moment
/// longer.
fn unplug(netlink: &Netlink, port: &str, may_delete: bool) -> Result<()> {
    let links = may_delete.then(|| netlink.links()).transpose()?;
    let links = links.unwrap_or_default();
    match netlink
        .set_down(port)
        .and_then(|()| netlink.set_bridge(port, None))
    {
        // The member's interface was deleted, as at a session's end, and the port with it.
        Err(error) if error.errno == libc::ENODEV => {}
        outcome => outcome?,
    }
    let own = links.iter().find(|link| link.name == port);
    let own = own.and_then(|link| link.bridge);
    let is_own_cable =
        |bridge: &LinkView| own == Some(bridge.index) && bridge.name.starts_with('c');
    let is_doomed = |link: &&LinkView| is_own_cable(link) || is_unused(link, &links, port);
    netlink.delete_all(links.iter().filter(is_doomed))
}

/// Deletes the bridges without ports. The registry must be locked.
pub(super) fn sweep(netlink: &Netlink) -> Result<()> {
    let links = netlink.links()?;
    netlink.delete_all(links.iter().filter(|link| is_unused(link, &links, "")))
}

/// Whether a link is a bridge without a port other than `port`.
fn is_unused(bridge: &LinkView, links: &[LinkView], port: &str) -> bool {
    let is_port = |link: &LinkView| link.bridge == Some(bridge.index) && link.name != port;
    bridge.name.starts_with(['b', 'c', 'h']) && !links.iter().any(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panel::check_place;

    #[test]
    fn places_are_valid_and_differ() {
        let (one, other) = (new_place().unwrap(), new_place().unwrap());
        assert!(check_place(&one).is_ok() && one != other, "{one} {other}");
        assert_eq!(one.len(), 13);
    }

    #[test]
    fn a_cable_s_name_comes_from_both_ends() {
        assert_eq!(cable_name("a", "b"), cable_name("b", "a"));
        let others = [
            cable_name("a", "c"),
            cable_name("c", "b"),
            cable_name("ab", ""),
        ];
        assert!(others.iter().all(|other| *other != cable_name("a", "b")));
        assert!(cable_name("a", "b").len() < vdens_plugin_kit::tap::MAX_INTERFACE_NAME);
    }
}
