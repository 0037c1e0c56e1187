//! The symbol `vdens_plugin_panel`: the host's functions for bridges that know VLANs.
//!
//! They came after ABI 1 was frozen. Both doors use them, because the pointer to the host's
//! services is the same in both. The host passes its table when it has loaded the plugin, and the
//! plugin's kit stores it.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use vdens_plugin_c::{self as c, Table, vlan_bridge};

use super::incoming::{NO_HUB, bridge_from, done};
use super::outgoing::{hub_from, place};
use super::{NO_ERROR, argument, c_text, finish, text};
use crate::adapters::export::{contain, leaked};
use crate::plugin::no_vlan_bridges;
use crate::{Bridge, BridgePort, Error, PanelAddress, PortVlans, Result, VlanBridge};

pub use vdens_plugin_c::PanelCalls;

/// The host's table, in a plugin.
static TAKEN: OnceLock<PanelCalls> = OnceLock::new();

/// What a plugin does with the host's table.
///
/// # Safety
/// `calls` is null, or points to a table that is valid for the life of the process.
pub unsafe fn take_panel(calls: *const PanelCalls) {
    // SAFETY: per this function's contract.
    match unsafe { PanelCalls::read(calls) } {
        Ok(calls) => drop(TAKEN.set(calls)),
        Err(error) => log::debug!("no bridges that know VLANs: {error}"),
    }
}

/// Offers this host's table to a plugin.
///
/// # Safety
/// `symbol` is the address of `vdens_plugin_panel` in a library that is never unloaded.
pub(in crate::adapters) unsafe fn offer(symbol: *const ()) {
    // SAFETY: the symbol is a function of this type.
    unsafe {
        let take: c::TakePanel = std::mem::transmute(symbol);
        take(&raw const CALLS);
    }
}

/// [`Host::vlan_bridge`](crate::Host::vlan_bridge), in a plugin.
///
/// # Safety
/// `services` is the pointer of a host's services.
pub(in crate::adapters) unsafe fn make_bridge(
    services: *const c_void,
    expiry: Duration,
    kind: VlanBridge,
) -> Result<Bridge> {
    let make = TAKEN.get().and_then(|calls| calls.vlan_bridge);
    let make = make.ok_or_else(no_vlan_bridges)?;
    let expiry = u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX);
    let kind = match kind {
        VlanBridge::Filtering => vlan_bridge::FILTERING,
        VlanBridge::Untagged => vlan_bridge::UNTAGGED,
    };
    let (mut error, mut hub) = (NO_ERROR, NO_HUB);
    // SAFETY: per this function's contract; the places live until the call returns.
    let result = unsafe { make(services, expiry, kind, &raw mut hub, &raw mut error) };
    done(result, &error, "vlan_bridge()")?;
    // SAFETY: the host filled it in, in this call.
    unsafe { bridge_from(&hub) }
}

/// [`Host::set_vlans`](crate::Host::set_vlans), in a plugin.
///
/// # Safety
/// As for [`make_bridge`].
pub(in crate::adapters) unsafe fn set(
    services: *const c_void,
    bridge: &PanelAddress,
    port: BridgePort<'_>,
    vlans: &PortVlans,
) -> Result<()> {
    let set = TAKEN.get().and_then(|calls| calls.set_vlans);
    let set = set.ok_or_else(no_vlan_bridges)?;
    let place = c_text(&bridge.place)?;
    let port = match port {
        BridgePort::Tap => None,
        BridgePort::Interface(place) => Some(c_text(place)?),
    };
    let port = port.as_ref().map_or(ptr::null(), |port| port.as_ptr());
    let (vlans, mut error) = (raw_vlans(vlans)?, NO_ERROR);
    // SAFETY: per this function's contract; texts and places live until the call returns.
    let result = unsafe {
        let (place, vlans) = (place.as_ptr(), &raw const vlans);
        set(services, bridge.panel, place, port, vlans, &raw mut error)
    };
    done(result, &error, "set_vlans()")
}

/// # Errors
/// A number is that of no VLAN.
fn raw_vlans(vlans: &PortVlans) -> Result<c::PortVlans> {
    let mut all = vlans.untagged.iter().chain(&vlans.tagged);
    if let Some(wrong) = all.find(|vlan| !(1..=4094).contains(*vlan)) {
        return Err(no_vlan(*wrong));
    }
    let mut tagged = [0; 512];
    for vlan in &vlans.tagged {
        tagged[usize::from(vlan / 8)] |= 1 << (vlan % 8);
    }
    Ok(c::PortVlans {
        untagged: vlans.untagged.unwrap_or(0),
        tagged,
    })
}

/// # Errors
/// A number is that of no VLAN.
fn port_vlans(raw: &c::PortVlans) -> Result<PortVlans> {
    let is_set = |vlan: &u16| raw.tagged[usize::from(vlan / 8)] >> (vlan % 8) & 1 != 0;
    let vlans = PortVlans {
        untagged: (raw.untagged != 0).then_some(raw.untagged),
        tagged: (0..4096).filter(is_set).collect(),
    };
    raw_vlans(&vlans).map(|_| vlans)
}

fn no_vlan(number: u16) -> Error {
    Error::usage(format!(
        "{number} is no VLAN; VLANs have numbers from 1 to 4094"
    ))
}

static CALLS: PanelCalls = PanelCalls {
    struct_size: size_of::<PanelCalls>(),
    vlan_bridge: Some(host_bridge),
    set_vlans: Some(host_set),
};

/// # Safety
/// `services` is the pointer of this host's services; other pointers are null or as the header
/// says.
unsafe extern "C" fn host_bridge(
    services: *const c_void,
    expiry: u64,
    kind: u32,
    hub: *mut c::Hub,
    error: *mut c::Error,
) -> c_int {
    let made = contain("vlan_bridge", || {
        let hub = place(hub, "the place for the bridge")?;
        let kind = match kind {
            vlan_bridge::FILTERING => VlanBridge::Filtering,
            vlan_bridge::UNTAGGED => VlanBridge::Untagged,
            _ => return Err(no_vlan_bridges()),
        };
        let expiry = Duration::from_millis(expiry);
        // SAFETY: per this function's contract.
        let bridge = unsafe { leaked(services) }.vlan_bridge(expiry, kind)?;
        Ok((hub, hub_from(bridge)))
    });
    // SAFETY: per this function's contract; the place for the bridge is not null.
    unsafe { finish(made, error, |(hub, filled)| hub.write(filled)) }
}

/// # Safety
/// As for [`host_bridge`].
unsafe extern "C" fn host_set(
    services: *const c_void,
    panel: u64,
    bridge: *const c_char,
    port: *const c_char,
    vlans: *const c::PortVlans,
    error: *mut c::Error,
) -> c_int {
    let set = contain("set_vlans", || {
        // SAFETY: per this function's contract.
        let (place, port, vlans) = unsafe {
            let place = argument(bridge, "the place of the bridge")?.into_owned();
            (place, text(port), vlans.as_ref())
        };
        let vlans = vlans.ok_or_else(|| Error::usage("the VLANs are a null pointer"))?;
        let port = match &port {
            None => BridgePort::Tap,
            Some(place) => BridgePort::Interface(place),
        };
        let (bridge, vlans) = (PanelAddress { panel, place }, port_vlans(vlans)?);
        // SAFETY: per this function's contract.
        unsafe { leaked(services) }.set_vlans(&bridge, port, &vlans)
    });
    // SAFETY: per this function's contract.
    unsafe { finish(set, error, drop) }
}
