//! Finding out whether the switch is one of ours, and what follows from it: plugging into its
//! bridge, or super-frames.
//!
//! The request for a port carries a nonce of this end's ([`Mark`]). A switch of ours answers with
//! messages that carry it (see [`negotiation`](vdens_plugin_kit::negotiation)); nobody else on a legacy
//! switch knows it, so nobody else can pose as the switch. A legacy switch is told nothing, and sent
//! complete frames only.
//!
//! The interface's port is only ever moved from here, its own side, so it is always where this end
//! believes it to be. The switch is told so that it can stop sending here what the bridge carries;
//! what comes all the same is dropped, so a message that is lost costs the switch some work and
//! nobody a frame.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use vdens_plugin_kit::log::{debug, info};
use vdens_plugin_kit::negotiation::{Event, Negotiation, Received};
use vdens_plugin_kit::wire::control::Mark;
use vdens_plugin_kit::wire::hello::{Body, Nonce, SUPER_PREFIX, is_message};
use vdens_plugin_kit::{
    Frame, FrameAction, Host, MAX_LEGACY_FRAME, Offloads, PanelAddress, Result, State,
};

/// The longest message, in bytes: a header, an envelope, and a place with its length in one byte.
const MAX_MESSAGE: usize = 400;

/// The most messages that a switch sends before its reply.
const GREETINGS: usize = 4;

/// The send buffer asked for towards a switch that takes super-frames, in bytes; the usual one holds
/// four of them.
const SEND_BUFFER: usize = 4 << 20;

/// Whether the kernel carries the frames.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plugging {
    /// No, and it is not going to.
    No,
    /// This interface can be plugged into a bridge, once the link is used.
    Offered(PanelAddress),
    /// Yes.
    Plugged,
}

/// What is known of the switch.
#[derive(Debug)]
pub(crate) struct Switch {
    host: Host,
    negotiation: Negotiation,
    plugging: Plugging,
}

impl Switch {
    /// A switch that has not been asked for a port yet, and the mark for the request.
    pub(crate) fn new(host: Host) -> Result<(Self, Mark)> {
        let nonce = Nonce::new()?;
        let panel = host
            .port()
            .panel_address
            .map_or(0, |panel_address| panel_address.panel);
        let switch = Self {
            host,
            negotiation: Negotiation::as_client(nonce),
            plugging: Plugging::No,
        };
        Ok((switch, Mark { panel, nonce }))
    }

    /// Reads the messages that have come from a switch by the time of its reply. A switch that is
    /// not `trusted` can offer no bridge.
    pub(crate) fn meet(&mut self, data: &UnixDatagram, trusted: bool) {
        let mut bytes = [0; MAX_MESSAGE];
        for _ in 0..GREETINGS {
            let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            let length = recv(data.as_raw_fd(), &mut bytes, peek).unwrap_or(0);
            let message = &bytes[..length];
            if !is_message(message) || message.starts_with(&SUPER_PREFIX) {
                break;
            }
            self.negotiation.receive(message);
            let _ = recv(data.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT);
        }
        let panel = self
            .host
            .port()
            .panel_address
            .map(|panel_address| panel_address.panel);
        let offered = self.negotiation.peer_panel_address().filter(|_| trusted);
        if let Some(bridge) = offered.filter(|bridge| Some(bridge.panel) == panel) {
            self.plugging = Plugging::Offered(bridge.clone());
        }
        self.serve_super_frames(data);
    }

    /// Whether it is one of ours.
    pub(crate) fn is_ours(&self) -> bool {
        self.negotiation.is_proven()
    }

    /// Whether the interface is to be on the panel.
    pub(crate) fn has_bridge(&self) -> bool {
        matches!(self.plugging, Plugging::Offered(_))
    }

    /// Plugs the interface in, once, and tells the switch. To be called when the link is used.
    pub(crate) fn plug(&mut self, data: &UnixDatagram) {
        let Plugging::Offered(bridge) = std::mem::replace(&mut self.plugging, Plugging::No) else {
            return;
        };
        if let Err(error) = self.host.attach(&bridge) {
            debug!("not plugged: {error}");
            return;
        }
        self.plugging = Plugging::Plugged;
        info!(
            "{}: the kernel carries the frames",
            self.host.port().interface
        );
        self.negotiation.announce(Body::Plugged);
        self.speak(data);
    }

    fn is_plugged(&self) -> bool {
        self.plugging == Plugging::Plugged
    }

    /// Learns what the host takes.
    pub(crate) fn host_takes(&mut self, offloads: Offloads) {
        if !self.is_plugged() {
            self.negotiation.set_host_offloads(offloads);
        }
    }

    /// Sends a switch of ours what is to be said. If there is no room, the next call does.
    pub(crate) fn speak(&mut self, data: &UnixDatagram) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while let Some(message) = self.negotiation.next_message() {
            if let Err(errno) = send(data.as_raw_fd(), &message, flags) {
                debug!("the switch was not told: {errno}");
                return;
            }
            self.negotiation.message_sent();
        }
    }

    /// Takes in a received frame.
    pub(crate) fn receive(&mut self, frame: Frame<'_>, data: &UnixDatagram) -> FrameAction {
        if self.is_plugged() {
            return FrameAction::Consume;
        }
        let received = self.negotiation.receive(frame.bytes());
        if received == Received::Message(Some(Event::Offloads)) {
            self.serve_super_frames(data);
        }
        received.action()
    }

    /// Makes room for super-frames, if the switch takes them.
    fn serve_super_frames(&self, data: &UnixDatagram) {
        if self.negotiation.peer_offloads() != Offloads::NONE {
            // A small one is slower, nothing else.
            let _ = setsockopt(data, sockopt::SndBuf, &SEND_BUFFER);
        }
    }

    /// The longest datagram to expect, in bytes.
    pub(crate) fn max_datagram(&self) -> usize {
        self.negotiation.max_datagram()
    }

    /// A frame as the switch takes it; `None` if it is too long.
    pub(crate) fn datagram<'a>(&self, frame: Frame<'a>) -> Option<[&'a [u8]; 2]> {
        if frame.header().gso_type == 0 && frame.bytes().len() > MAX_LEGACY_FRAME {
            return None;
        }
        Some(match self.negotiation.peer_offloads() {
            Offloads::NONE => [&[], frame.bytes()],
            _ => frame.wrapped(&SUPER_PREFIX),
        })
    }

    /// The link's state.
    pub(crate) fn state(&self) -> State {
        match self.is_plugged() {
            true => State::PLUGGED,
            false => State {
                offloads: self.negotiation.peer_offloads(),
                ..State::UP
            },
        }
    }
}
