//! What this end and its peer tell each other, to find a better way for frames than one by one.
//!
//! # Theory of operation
//!
//! Whenever a far end appears it is sent a hello (see `wire::hello`). A legacy one does not answer, and
//! everything stays as it was. One of ours answers; then
//!
//! * if both interfaces are on one panel, each end has its own plugged into their cable and says whether that
//!   worked. From then on the kernel carries the frames, unless either end has said no;
//! * each end tells which offloads its host takes, and may be sent super-frames accordingly.
//!
//! What a message asks for is done at the next [`Peer::act`], not before, because an interface cannot be
//! plugged until the link is open. Messages to the far end queue up here until the socket takes them.

use std::collections::VecDeque;

use vdens_plugin_api::log::debug;
use vdens_plugin_api::wire::hello::{Cable, Hello, SUPER_PREFIX};
use vdens_plugin_api::{
    Frame, Host, MAX_FRAME, MAX_LEGACY_FRAME, Offloads, Peer as Credentials, Sift, State, Status,
    Ticket, VNET_HEADER_LEN,
};

/// The conversation with a far end, from its appearance on.
#[derive(Debug)]
pub(crate) struct Peer {
    host: Host,
    ticket: Option<Ticket>,
    cable: Cable,
    /// Messages that are still to be sent.
    outbox: VecDeque<Hello>,
    /// The far end's hello, if it is one of ours.
    hello: Option<Option<Ticket>>,
    /// Whether it is to be answered or acted upon.
    is_new: bool,
    /// Whether this interface is plugged, and has not been declined.
    plugged: bool,
    /// Why it is not, though both interfaces are on one panel.
    declined: String,
    /// What the host takes.
    host_takes: Offloads,
    /// What the far end was told of it.
    told: Offloads,
    /// What the far end takes.
    takes: Offloads,
}

impl Peer {
    pub(crate) fn new(host: Host) -> Self {
        Self {
            ticket: host.port().ticket,
            host,
            cable: Cable::default(),
            outbox: VecDeque::new(),
            hello: None,
            is_new: false,
            plugged: false,
            declined: String::new(),
            host_takes: Offloads::NONE,
            told: Offloads::NONE,
            takes: Offloads::NONE,
        }
    }

    /// Forgets the far end, which is gone.
    pub(crate) fn forget(&mut self) {
        let host_takes = self.host_takes;
        *self = Self::new(self.host);
        self.host_takes = host_takes;
    }

    /// Greets a far end that has appeared on a cable.
    pub(crate) fn greet(&mut self, cable: Cable) {
        self.forget();
        self.cable = cable;
        self.outbox.push_back(Hello::Hello {
            answer: true,
            ticket: self.ticket.clone(),
        });
    }

    /// Whether the far end has been heard of.
    pub(crate) fn is_known(&self) -> bool {
        self.hello.is_some()
    }

    /// Looks at a received frame: is it a message?
    pub(crate) fn hear(&mut self, frame: Frame<'_>) -> Sift {
        let bytes = frame.bytes();
        if bytes.starts_with(&SUPER_PREFIX) {
            return Sift::Unwrap(SUPER_PREFIX.len());
        }
        if !Hello::is_message(bytes) {
            return Sift::Keep;
        }
        match Hello::decode(bytes, self.cable) {
            Some(Hello::Hello { answer, ticket }) => {
                // A far end that greets again has started anew.
                if answer && self.hello.is_some() {
                    self.plugged = false;
                    self.told = Offloads::NONE;
                    self.takes = Offloads::NONE;
                }
                self.hello = Some(ticket);
                self.is_new = true;
                if answer {
                    self.outbox
                        .retain(|message| !matches!(message, Hello::Hello { .. }));
                    self.outbox.push_back(Hello::Hello {
                        answer: false,
                        ticket: self.ticket.clone(),
                    });
                }
            }
            Some(Hello::Accept(offloads)) => self.takes = offloads,
            Some(Hello::Declined) => {
                self.plugged = false;
                self.declined = "the peer cannot be plugged in".into();
            }
            Some(Hello::Plugged) | None => {}
        }
        Sift::Take
    }

    /// Does what has become possible.
    pub(crate) fn act(&mut self) {
        let Some(theirs) = &self.hello else { return };
        if std::mem::take(&mut self.is_new)
            && let (Some(ours), Some(theirs)) = (&self.ticket, theirs)
            && ours.panel == theirs.panel
            && !self.plugged
        {
            let plugged = self.host.plug(&theirs.place);
            match &plugged {
                Ok(()) => debug!("plugged into the peer's {}", theirs.place),
                Err(error) => {
                    debug!("not plugged: {error}");
                    self.declined = error.to_string();
                }
            }
            self.plugged = plugged.is_ok();
            // Before any hello: who is answered can count on this end.
            self.outbox.push_front(match self.plugged {
                true => Hello::Plugged,
                false => Hello::Declined,
            });
        }
        if self.told != self.host_takes {
            self.told = self.host_takes;
            self.outbox.push_back(Hello::Accept(self.told));
        }
    }

    /// Learns what the host takes.
    pub(crate) fn host_takes(&mut self, offloads: Offloads) {
        self.host_takes = offloads;
    }

    /// The next message to the far end.
    pub(crate) fn next(&self) -> Option<Vec<u8>> {
        self.outbox
            .front()
            .map(|message| message.encode(self.cable))
    }

    /// The message that was next has been sent.
    pub(crate) fn sent(&mut self) {
        self.outbox.pop_front();
    }

    /// The longest datagram to expect, in bytes.
    pub(crate) fn max_datagram(&self) -> usize {
        match self.told {
            Offloads::NONE => MAX_LEGACY_FRAME,
            _ => SUPER_PREFIX.len() + VNET_HEADER_LEN + MAX_FRAME,
        }
    }

    /// What is known of the far end, beside the `credentials` that the kernel gives.
    pub(crate) fn status(&self, credentials: Credentials) -> Status {
        let ticket = self.hello.as_ref().and_then(Option::as_ref);
        let reason = match (&self.hello, &self.ticket, ticket) {
            _ if self.plugged => "",
            (None, ..) => "the peer is a legacy one",
            (_, None, _) => "this end is not on the panel",
            (_, _, None) => "the peer is not on the panel",
            (_, Some(ours), Some(theirs)) if ours.panel != theirs.panel => {
                "the peer is on another panel"
            }
            _ => &self.declined,
        };
        let description = match self.hello {
            Some(_) => "vdens",
            None => "a legacy program",
        };
        Status {
            peer: Some(Credentials {
                description: description.into(),
                pid: credentials.pid.or_else(|| ticket.and_then(Ticket::process)),
                ..credentials
            }),
            reason: reason.into(),
            ..Status::default()
        }
    }

    /// The link's state while there is a far end.
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
