//! Bridges on the panel that know VLANs (IEEE 802.1Q): their kinds, and what their ports are in.

use std::collections::BTreeSet;

/// A kind of bridge on the panel that looks at the tags of VLANs. A plain one
/// ([`Host::bridge`](crate::Host::bridge)) does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VlanBridge {
    /// It filters VLANs: a frame reaches the ports that are in its VLAN, with or without its tag. A
    /// port is in no VLAN until it is put in some ([`Host::set_vlans`](crate::Host::set_vlans)).
    Filtering,
    /// Its ports drop each frame whose outermost tag names a VLAN. A tag of priority only (VLAN 0)
    /// names none, nor does one of 802.1ad.
    Untagged,
}

/// A port of a bridge on the panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgePort<'a> {
    /// The bridge's own [`tap`](crate::Bridge::tap).
    Tap,
    /// The interface at this place ([`PanelAddress::place`](crate::PanelAddress::place)), which is
    /// attached to the bridge.
    Interface(&'a str),
}

/// The VLANs that a port is in, each a number from 1 to 4094. By default it is in none, so no frame
/// passes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortVlans {
    /// The VLAN whose frames have no tag at the port, in either direction.
    pub untagged: Option<u16>,
    /// Those whose frames have a tag at the port. In the untagged VLAN only frames that come in may
    /// have one.
    pub tagged: BTreeSet<u16>,
}
