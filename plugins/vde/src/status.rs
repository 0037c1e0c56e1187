//! What a person may want to know of a port: whose the switch is, and how frames go there.

use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt};
use vdens_plugin_kit::{MAX_LEGACY_MTU, Peer, Status};

use crate::hub::Switch;

/// The status of the port whose control stream is `control`.
pub(crate) fn of(switch: &Switch, control: &UnixStream) -> Status {
    let credentials = getsockopt(control, sockopt::PeerCredentials).ok();
    let (description, reason) = match (switch.is_ours(), switch.state().plugged) {
        (false, _) => ("a legacy switch", "the switch is a legacy one"),
        (true, true) => ("vdens", ""),
        (true, false) => ("vdens", "this end and the switch have no panel in common"),
    };
    Status {
        peer: Some(Peer {
            description: description.into(),
            uid: credentials.map(|peer| peer.uid()),
            pid: credentials.and_then(|peer| u32::try_from(peer.pid()).ok()),
        }),
        reason: reason.into(),
        max_mtu: Some(MAX_LEGACY_MTU),
        ..Status::default()
    }
}
