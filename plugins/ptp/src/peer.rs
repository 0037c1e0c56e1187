//! What this end and its peer agree on, to find a better way for frames than one by one.
//!
//! # Theory of operation
//!
//! Whenever a far end appears, a [`Negotiation`] with it begins. If it is a legacy one, everything
//! stays as it was. If it is one of ours,
//!
//! * and both interfaces are on one panel, each end has its own plugged into their cable and says
//!   whether that worked. From then on the kernel carries the frames, unless either end has said no;
//! * each end may be sent super-frames as far as its host takes them.
//!
//! Only an end of this very user has a place on this user's panel, so one of another user is told no
//! place, whatever it says.
//!
//! What a message asks for is done at the next [`Peer::act`], not before, because an interface cannot
//! be plugged until the link is open.

use std::os::unix::process::parent_id;
use std::time::{Duration, Instant};

use vdens_plugin_kit::log::{debug, warn};
use vdens_plugin_kit::negotiation::{Event, Negotiation, Received};
use vdens_plugin_kit::wire::hello::{Body, Cable, Nonce};
use vdens_plugin_kit::{
    Frame, FrameAction, Host, MAX_LEGACY_FRAME, MAX_LEGACY_MTU, Offloads, PanelAddress,
    Peer as Credentials, State, Status,
};

/// How long a far end that has introduced itself may take for its proof. Until then there is no carrier:
/// the interface would be served through user space for a moment, and plugged right after.
const PROOF: Duration = Duration::from_millis(150);

/// Whether the kernel carries the frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Plugging {
    /// No: there is nobody to be plugged together with.
    #[default]
    No,
    /// It is to be tried at the next [`Peer::act`].
    Due,
    /// Yes.
    Plugged,
    /// No, though both interfaces are on one panel: why.
    Failed(String),
}

/// The conversation with a far end, from its appearance on.
#[derive(Debug)]
pub(crate) struct Peer {
    host: Host,
    /// What the host takes.
    host_takes: Offloads,
    /// `None` while there is no far end.
    negotiation: Option<Negotiation>,
    plugging: Plugging,
    /// Whether the far end has said if it could be plugged.
    has_tried: bool,
    is_foreign: bool,
    /// When a far end introduced itself that is still to prove itself.
    introduced: Option<Instant>,
}

impl Peer {
    pub(crate) fn new(host: Host) -> Self {
        Self {
            host,
            host_takes: Offloads::NONE,
            negotiation: None,
            plugging: Plugging::No,
            has_tried: false,
            is_foreign: false,
            introduced: None,
        }
    }

    /// Forgets the far end, which is gone.
    pub(crate) fn forget(&mut self) {
        self.negotiation = None;
        self.plugging = Plugging::No;
        self.has_tried = false;
        self.introduced = None;
    }

    /// Greets a far end that has appeared on a cable; `is_foreign` if it is another user's.
    pub(crate) fn greet(&mut self, cable: Cable, is_foreign: bool) {
        self.forget();
        self.is_foreign = is_foreign;
        let port = self.host.port();
        // Where there is an interface, this is a worker: people know its parent, vdens.
        let process = match port.interface.is_empty() {
            true => std::process::id(),
            false => parent_id(),
        };
        let panel_address = port.panel_address.filter(|_| !is_foreign);
        match Nonce::new() {
            Ok(nonce) => {
                let mut negotiation = Negotiation::on_cable(cable, nonce, panel_address, process);
                negotiation.set_host_offloads(self.host_takes);
                self.negotiation = Some(negotiation);
            }
            Err(error) => warn!("the far end is treated as a legacy one: {error}"),
        }
    }

    /// Whether the far end is known to be one of ours.
    pub(crate) fn is_known(&self) -> bool {
        let negotiation = self.negotiation.as_ref();
        negotiation.is_some_and(Negotiation::is_proven)
    }

    /// Whether the far end is known to be one of ours, and has been plugged if it can be.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_known() && (self.has_tried || !self.has_common_panel())
    }

    fn has_common_panel(&self) -> bool {
        let negotiation = self.negotiation.as_ref();
        let panel = |panel_address: &PanelAddress| panel_address.panel;
        let ours = negotiation.and_then(Negotiation::panel_address).map(panel);
        let theirs = negotiation
            .and_then(Negotiation::peer_panel_address)
            .map(panel);
        ours.is_some() && ours == theirs
    }

    /// Takes in a received frame.
    pub(crate) fn receive(&mut self, frame: Frame<'_>) -> FrameAction {
        let Some(negotiation) = &mut self.negotiation else {
            return FrameAction::Keep;
        };
        let received = negotiation.receive(frame.bytes());
        match negotiation.is_introduced() {
            true => self.introduced = self.introduced.or_else(|| Some(Instant::now())),
            false => self.introduced = None,
        }
        if let Received::Message(Some(event)) = received {
            match event {
                Event::Proven => self.plugging = Plugging::Due,
                Event::Restarted => {
                    self.plugging = Plugging::No;
                    self.has_tried = false;
                }
                Event::Plugged => self.has_tried = true,
                Event::Declined => {
                    self.has_tried = true;
                    self.plugging = Plugging::Failed("the peer cannot be plugged in".into());
                }
                Event::Offloads => {}
            }
        }
        received.action()
    }

    /// Does what has become possible.
    pub(crate) fn act(&mut self) {
        let is_possible = self.has_common_panel();
        let Some(negotiation) = &mut self.negotiation else {
            return;
        };
        if self.plugging != Plugging::Due {
            return;
        }
        self.plugging = Plugging::No;
        if let Some(theirs) = negotiation.peer_panel_address().filter(|_| is_possible) {
            let plugged = self.host.plug(&theirs.place);
            self.plugging = match plugged {
                Ok(()) => {
                    debug!("plugged into the peer's interface");
                    Plugging::Plugged
                }
                Err(error) => {
                    debug!("not plugged: {error}");
                    Plugging::Failed(error.to_string())
                }
            };
            negotiation.announce(match self.plugging {
                Plugging::Plugged => Body::Plugged,
                _ => Body::Declined,
            });
        }
    }

    /// Learns what the host takes.
    pub(crate) fn host_takes(&mut self, offloads: Offloads) {
        self.host_takes = offloads;
        if let Some(negotiation) = &mut self.negotiation {
            negotiation.set_host_offloads(offloads);
        }
    }

    /// The next message to the far end.
    pub(crate) fn next_message(&mut self) -> Option<Vec<u8>> {
        self.negotiation.as_mut()?.next_message()
    }

    /// The message that was next has been sent.
    pub(crate) fn message_sent(&mut self) {
        if let Some(negotiation) = &mut self.negotiation {
            negotiation.message_sent();
        }
    }

    /// The longest datagram to expect, in bytes.
    pub(crate) fn max_datagram(&self) -> usize {
        let negotiation = self.negotiation.as_ref();
        negotiation.map_or(MAX_LEGACY_FRAME, Negotiation::max_datagram)
    }

    /// What is known of the far end, beside the `credentials` that the kernel gives.
    pub(crate) fn status(&self, credentials: Credentials) -> Status {
        let negotiation = self.negotiation.as_ref();
        let ours: Option<&PanelAddress> = negotiation.and_then(Negotiation::panel_address);
        let theirs = negotiation.and_then(Negotiation::peer_panel_address);
        let reason = match (&self.plugging, ours, theirs) {
            (Plugging::Plugged, ..) => "",
            _ if !self.is_known() => "the peer is a legacy one",
            _ if self.is_foreign => "the peer belongs to another user",
            (_, None, _) => "this end is not on the panel",
            (_, _, None) => "the peer is not on the panel",
            _ if !self.has_common_panel() => "the peer is on another panel",
            (Plugging::Failed(why), ..) => why,
            _ => "",
        };
        let description = match self.is_known() {
            true => "vdens",
            false => "a legacy program",
        };
        let process = negotiation.and_then(Negotiation::peer_process);
        let takes = negotiation.map_or(Offloads::NONE, Negotiation::peer_offloads);
        let is_limited = takes == Offloads::NONE;
        Status {
            peer: Some(Credentials {
                description: description.into(),
                pid: credentials.pid.or(process),
                ..credentials
            }),
            reason: reason.into(),
            max_mtu: is_limited.then_some(MAX_LEGACY_MTU),
            ..Status::default()
        }
    }

    /// The link's state while there is a far end.
    pub(crate) fn state(&self) -> State {
        if self.introduced.is_some_and(|at| at.elapsed() < PROOF) {
            return State::DOWN;
        }
        match (&self.plugging, &self.negotiation) {
            (Plugging::Plugged, _) => State::PLUGGED,
            (_, negotiation) => State {
                offloads: negotiation
                    .as_ref()
                    .map_or(Offloads::NONE, Negotiation::peer_offloads),
                ..State::UP
            },
        }
    }
}
