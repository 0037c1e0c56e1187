//! What is done on the panel, by a child that has entered it: making ports, plugging and
//! unplugging.
//!
//! Each port and learning bridge has a place, a random name ([`new_place`]). Interfaces on the
//! panel are called by what they are and their place: for the place `x`, `px` is a port, `tx` the
//! tap through which it is served and `bx` the bridge between the two. A learning bridge is `hx`
//! with the tap `xx`. The bridge of a cable is called `c` and a name made of the places of both its
//! ports ([`cable_name`]): a port is on one bridge with another only if each of the two ends has
//! named the other's place.
//!
//! Bridges left without ports are deleted whenever something is unplugged, and not before: the
//! kernel takes tens of milliseconds for that, and nobody waits for a port that is unplugged. Where
//! many sessions end together, those that would have to wait for the lock leave the bridges to the
//! one that has it. A learning bridge has a port as long as its maker holds the tap or something is
//! plugged in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vdens_plugin_kit::tap::MAX_MTU;
use vdens_plugin_kit::wire::hello::Nonce;

use crate::error::{Error, Result};
use crate::ipc::Order;
use crate::sys::netlink::{LinkView, Netlink};

/// A bridge with two ports remembers no address: it is a cable, what goes in at one end comes out
/// at the other.
const CABLE: u32 = 0;
/// The longest time that a bridge remembers an address; far below what the kernel's clock can
/// count.
const LONGEST_AGEING: u32 = 1_000_000;

/// What an order needs the registry's lock for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// Nothing: it is about no bridge.
    Unneeded,
    /// To delete bridges. Whoever has no lock leaves them to the next process that has.
    Useful,
    /// To use a bridge that has no port yet, which another process would delete.
    Needed,
}

/// What an order needs the registry's lock for.
pub(super) fn lock_for(order: &Order) -> Lock {
    match order {
        Order::AddPort { .. } => Lock::Unneeded,
        Order::Unplug { .. } => Lock::Useful,
        Order::Plug { .. } | Order::Serve { .. } | Order::Bridge { .. } | Order::Attach { .. } => {
            Lock::Needed
        }
    }
}

/// Executes an order. `netlink` is a connection to the panel, where `open_tap` opens taps.
/// `namespace` is the member's, for a port; `is_locked` says whether the registry is locked.
pub(super) fn execute(
    order: &Order,
    netlink: &Netlink,
    open_tap: impl Fn(&str) -> Result<OwnedFd>,
    namespace: Option<BorrowedFd<'_>>,
    is_locked: bool,
) -> Result<Option<OwnedFd>> {
    // A bridge with a tap on it.
    let tapped_bridge = |bridge: &str, ageing: u32, tap: &str| {
        netlink.add_bridge(bridge, ageing)?;
        let fd = open_tap(tap)?;
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
            let namespace =
                namespace.ok_or_else(|| Error::closed("a port is to be made for no namespace"))?;
            netlink.add_veth(&interface_of(port), *index, interface, namespace)?;
            let watch = netlink.as_fd().try_clone_to_owned();
            watch
                .map(Some)
                .map_err(|error| Error::io("watch the panel", &error))
        }
        Order::Plug { port, peer } => {
            let bridge = cable_name(port, peer);
            netlink.add_bridge(&bridge, CABLE)?;
            plug(netlink, port, &bridge)?;
            Ok(None)
        }
        Order::Serve { port } => {
            let bridge = format!("b{port}");
            let tap = tapped_bridge(&bridge, CABLE, &format!("t{port}"))?;
            attach(netlink, port, &bridge)?;
            Ok(Some(tap))
        }
        Order::Bridge { bridge, ageing } => {
            let (bridge, tap) = (format!("h{bridge}"), format!("x{bridge}"));
            let ageing = (*ageing).min(LONGEST_AGEING);
            tapped_bridge(&bridge, ageing, &tap).map(Some)
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
pub fn interface_of(port: &str) -> String {
    format!("p{port}")
}

/// A place for a port or a bridge that nobody can guess: 64 random bits as 13 letters and digits.
///
/// # Errors
/// The kernel has no random numbers.
pub fn new_place() -> Result<String> {
    Ok(spell(Nonce::new()?.0))
}

/// The bridge of the cable between two ports. Both ends must have named each other for their ports
/// to be on it: who names a wrong place has a bridge to itself.
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

/// The number of interface `number` of process `pid` on the panel: larger than any in a member,
/// because the kernel tells of the carrier of a veth at once only if its number and its peer's
/// differ, and else up to a second later.
pub fn port_index(pid: u32, number: usize) -> u32 {
    (pid << 8 | number as u32 & 0xff) & i32::MAX as u32
}

/// Makes a port one of a bridge that others use too. Its own, if it was served, still has the tap,
/// and is of no more use.
fn plug(netlink: &Netlink, port: &str, bridge: &str) -> Result<()> {
    attach(netlink, port, bridge)?;
    netlink.delete(&format!("b{port}"))
}

fn attach(netlink: &Netlink, port: &str, bridge: &str) -> Result<()> {
    let port = interface_of(port);
    netlink.set_bridge(&port, Some(bridge))?;
    netlink.set_up(&port)
}

/// Takes a port off its bridge. If it `may_delete` bridges, it deletes those that are of no use:
/// those without another port, and the port's own cable, which leads nowhere now. The other end's
/// port may be on that still, for the interface of an end that was killed goes a moment later.
fn unplug(netlink: &Netlink, port: &str, may_delete: bool) -> Result<()> {
    let links = may_delete.then(|| netlink.links()).transpose()?;
    let links = links.unwrap_or_default();
    match netlink
        .set_down(port)
        .and_then(|()| netlink.set_bridge(port, None))
    {
        // The member's interface was deleted, as at a session's end: the port went with it.
        Err(error) if error.errno == libc::ENODEV => {}
        outcome => outcome?,
    }
    let own = links.iter().find(|link| link.name == port);
    let own = own.and_then(|link| link.bridge);
    let used = |bridge: &LinkView| {
        let mut ports = links
            .iter()
            .filter(|link| link.bridge == Some(bridge.index));
        ports.any(|link| link.name != port)
    };
    let is_own_cable =
        |bridge: &LinkView| own == Some(bridge.index) && bridge.name.starts_with('c');
    let useless = links
        .iter()
        .filter(|link| is_bridge(&link.name) && (is_own_cable(link) || !used(link)));
    netlink.delete_all(useless)
}

fn is_bridge(name: &str) -> bool {
    name.starts_with(['b', 'c', 'h'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panel::check_place;

    #[test]
    fn places_are_places_and_no_two_are_the_same() {
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
