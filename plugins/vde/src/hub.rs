//! Finding out whether the switch is one of ours, and plugging into its hub.
//!
//! What a switch of ours says comes as frames among the others (see `wire::hello`). The interface's port is
//! only ever moved from here, its own side, so it is always where this end believes it to be. The switch is told
//! so that it can stop sending here what the hub carries; what comes all the same is dropped, so a message that is
//! lost costs the switch some work and nobody a frame.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::{MsgFlags, recv, send};
use vdens_plugin_api::log::{debug, info};
use vdens_plugin_api::wire::hello::{Cable, Hello};
use vdens_plugin_api::{Frame, Host, Sift, State, Ticket};

/// The longest hello: a header, and a place with its length in one byte.
const MAX_HELLO: usize = 300;

/// What is known of the switch.
#[derive(Debug)]
pub(crate) struct Switch {
    host: Host,
    is_ours: bool,
    /// Its hub, if this interface could be plugged into it.
    hub: Option<Ticket>,
    plugged: bool,
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
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if let Err(errno) = send(
            data.as_raw_fd(),
            &Hello::Plugged.encode(Cable::default()),
            flags,
        ) {
            debug!("the switch was not told of it: {errno}");
        }
    }

    /// Looks at a received frame.
    pub(crate) fn hear(&self, frame: Frame<'_>) -> Sift {
        match self.plugged || self.is_ours && Hello::is_message(frame.bytes()) {
            true => Sift::Take,
            false => Sift::Keep,
        }
    }

    /// The link's state.
    pub(crate) fn state(&self) -> State {
        match self.plugged {
            true => State::PLUGGED,
            false => State::UP,
        }
    }
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
