//! The control protocol of a switch: what a running `switch://` or `hub://` is asked, and what it
//! answers.
//!
//! # Theory of operation
//!
//! The switch has a socket for requests ([`vdens_plugin_kit::control`], scheme [`SCHEME`]). A
//! request and its answer are one JSON value each, in one datagram each. `vdectl switch` and the
//! console of `vde_switch` are two faces of this protocol, and change nothing by any other way.
//!
//! [`Request::Change`] carries a list of changes, of which the switch makes all or none. Every
//! change takes effect at once, on the clients that are there as well. What is set of a port number
//! outlives its client.
//!
//! An answer has to fit into a datagram, so a list comes in parts: [`Page::from`] says where to go
//! on. A switch that changes meanwhile may show an element twice or not at all.
//!
//! Ports are named by their number, from 1 on; 0 is the switch's own side ([`LOCAL_PORT`]). A VLAN
//! is named by its identifier, 1 to 4094 (IEEE 802.1Q); 0 stands for the frames of no VLAN. As long
//! as no VLAN has been made, the switch forwards tagged frames as they are. From then on it is
//! aware of VLANs: each port has at most one VLAN whose frames are untagged there, which is that of
//! the untagged frames that it receives, and any number of VLANs whose frames are tagged there.
//! Frames of other VLANs neither enter nor leave by it.
//!
//! [`vdens_plugin_kit::control`]: ../vdens_plugin_kit/control/index.html

mod report;
mod request;

pub use report::{
    Answer, Event, Failure, General, Kind, Page, PortReport, StationReport, StpPort, StpReport,
    StpRole, StpState, StpTimes, Traffic, VlanReport, Way,
};
pub use request::{
    Access, Change, Mac, NoMac, PortChange, PortSelection, Request, StormLimit, StpChange,
};

/// The scheme of the switch's control socket. Those of `hub://` have it, too.
pub const SCHEME: &str = "switch";

/// The number of the switch's own side: the host's end of its link.
pub const LOCAL_PORT: u32 = 0;

/// The highest VLAN identifier (IEEE 802.1Q, table 9-2: 4095 is reserved).
pub const MAX_VLAN: u16 = 4094;

/// How many elements of a list one answer has at most: whole, it fits into a datagram.
pub const PAGE: usize = 256;
