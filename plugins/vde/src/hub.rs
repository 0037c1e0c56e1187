//! Finding out whether the switch is one of ours, and what follows from it: plugging into its hub, or super-frames.
//!
//! What a switch of ours says comes as frames among the others (see `wire::hello`). While frames go through user
//! space, each side tells the other which offloads it takes and is sent frames accordingly; a legacy switch is told
//! nothing, and sent complete frames only.
//!
//! The interface's port is
//! only ever moved from here, its own side, so it is always where this end believes it to be. The switch is told
//! so that it can stop sending here what the hub carries; what comes all the same is dropped, so a message that is
//! lost costs the switch some work and nobody a frame.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use vdens_plugin_api::log::{debug, info};
use vdens_plugin_api::wire::hello::{Cable, Hello, SUPER_PREFIX};
use vdens_plugin_api::{
    Frame, Host, MAX_FRAME, MAX_LEGACY_FRAME, Offloads, Sift, State, Ticket, VNET_HEADER_LEN,
};

/// The longest hello: a header, and a place with its length in one byte.
const MAX_HELLO: usize = 300;

/// The send buffer asked for towards a switch that takes super-frames, in bytes; the usual one holds four of them.
const SEND_BUFFER: usize = 4 << 20;

/// What is known of the switch.
#[derive(Debug)]
pub(crate) struct Switch {
    host: Host,
    is_ours: bool,
    /// Its hub, if this interface could be plugged into it.
    hub: Option<Ticket>,
    plugged: bool,
    /// What it takes.
    takes: Offloads,
    /// What the host takes.
    host_takes: Offloads,
    /// What the switch was told of it.
    told: Offloads,
}

impl Switch {
    /// Looks at what has come from a switch by the time of its reply; one that is not `trusted` offers no hub.
    pub(crate) fn meet(host: Host, data: &UnixDatagram, trusted: bool) -> Self {
        let said = hello(data);
        let is_ours = said.is_some();
        let panel = host.port().ticket.map(|ticket| ticket.panel);
        let offered = said.flatten().filter(|_| trusted);
        Self {
            hub: offered.filter(|hub| Some(hub.panel) == panel),
            host,
            is_ours,
            plugged: false,
            takes: Offloads::NONE,
            host_takes: Offloads::NONE,
            told: Offloads::NONE,
        }
    }

    /// Whether it is one of ours.
    pub(crate) fn is_ours(&self) -> bool {
        self.is_ours
    }

    /// Whether the interface is to be on the panel.
    pub(crate) fn has_hub(&self) -> bool {
        self.hub.is_some()
    }

    /// Plugs the interface in, once, and tells the switch. To be called when the link is used.
    pub(crate) fn plug(&mut self, data: &UnixDatagram) {
        let Some(hub) = self.hub.take() else { return };
        if let Err(error) = self.host.attach(&hub) {
            debug!("not plugged: {error}");
            return;
        }
        self.plugged = true;
        info!(
            "{}: the kernel carries the frames",
            self.host.port().interface
        );
        if let Err(errno) = tell(data, &Hello::Plugged) {
            debug!("the switch was not told of it: {errno}");
        }
    }

    /// Learns what the host takes.
    pub(crate) fn host_takes(&mut self, offloads: Offloads) {
        self.host_takes = offloads;
    }

    /// Tells a switch of ours what the host takes, unless it knows. If there is no room for the message, the next call
    /// tells it.
    pub(crate) fn speak(&mut self, data: &UnixDatagram) {
        let is_news = self.is_ours && !self.plugged && self.told != self.host_takes;
        if is_news && tell(data, &Hello::Accept(self.host_takes)).is_ok() {
            self.told = self.host_takes;
        }
    }

    /// Looks at a received frame.
    pub(crate) fn hear(&mut self, frame: Frame<'_>, data: &UnixDatagram) -> Sift {
        if self.plugged {
            return Sift::Take;
        }
        let bytes = frame.bytes();
        if !self.is_ours || !Hello::is_message(bytes) {
            return Sift::Keep;
        }
        if bytes.starts_with(&SUPER_PREFIX) {
            return Sift::Unwrap(SUPER_PREFIX.len());
        }
        if let Some(Hello::Accept(offloads)) = Hello::decode(bytes, Cable::default()) {
            self.takes = offloads;
            if offloads != Offloads::NONE {
                // A small one is slower, nothing else.
                let _ = setsockopt(data, sockopt::SndBuf, &SEND_BUFFER);
            }
        }
        Sift::Take
    }

    /// The longest datagram to expect, in bytes.
    pub(crate) fn max_datagram(&self) -> usize {
        match self.told {
            Offloads::NONE => MAX_LEGACY_FRAME,
            _ => SUPER_PREFIX.len() + VNET_HEADER_LEN + MAX_FRAME,
        }
    }

    /// A frame as the switch takes it; `None` if it is too long.
    pub(crate) fn datagram<'a>(&self, frame: Frame<'a>) -> Option<[&'a [u8]; 2]> {
        if frame.header().gso_type == 0 && frame.bytes().len() > MAX_LEGACY_FRAME {
            return None;
        }
        Some(match self.takes {
            Offloads::NONE => [&[], frame.bytes()],
            _ => frame.wrapped(&SUPER_PREFIX),
        })
    }

    /// The link's state.
    pub(crate) fn state(&self) -> State {
        match self.plugged {
            true => State::PLUGGED,
            false => State {
                offloads: self.takes,
                ..State::UP
            },
        }
    }
}

/// Sends the switch a message.
fn tell(data: &UnixDatagram, message: &Hello) -> nix::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(data.as_raw_fd(), &message.encode(Cable::default()), flags).map(drop)
}

/// The ticket in the hello that waits on the socket, if one does.
fn hello(data: &UnixDatagram) -> Option<Option<Ticket>> {
    let mut bytes = [0; MAX_HELLO];
    let look = |bytes: &mut [u8], flags| {
        let flags = flags | MsgFlags::MSG_DONTWAIT;
        recv(data.as_raw_fd(), bytes, flags).ok()
    };
    let length = look(&mut bytes, MsgFlags::MSG_PEEK)?;
    let Some(Hello::Hello { ticket, .. }) = Hello::decode(bytes.get(..length)?, Cable::default())
    else {
        return None;
    };
    look(&mut bytes, MsgFlags::empty())?;
    Some(ticket)
}
