//! The negotiation between two of our own ends, by which they agree on the best way for frames.
//!
//! # Theory of operation
//!
//! Two ends exchange the messages of [`wire::hello`](crate::wire::hello) among their frames. A
//! legacy peer answers none, and nothing changes. A peer of ours answers. Then
//!
//! * each end learns the other's panel address, so that the kernel may carry their frames;
//! * each end announces which offloads its host takes, so that the other may send super-frames.
//!
//! Anybody can send such a message: a command in a namespace, a virtual machine, another client of
//! a legacy switch. So an end believes a message only if it proves that its sender has received
//! what this end announced in this negotiation, on this cable. For that, each end chooses a
//! [`Nonce`], and each message but the first hello carries the receiver's nonce. The handshake:
//!
//! ```text
//! A                                                B
//! hello, to: unknown, from: a               ─────► A is introduced, not proven
//! B is proven                               ◄───── hello, to: a, from: b, address of B
//! hello, to: b, from: a, address of A       ─────► A is proven
//! ```
//!
//! Both may begin at once. An end announces its panel address only to a peer whose nonce it has. A
//! switch and its client exchange nonces over the control socket. They neither send nor answer a
//! hello to an unknown peer ([`Negotiation::as_client`], [`Negotiation::as_switch`]). A client
//! answers the hello of a switch that offers a bridge on its own panel, because the switch may have
//! to set up the client's port there. It tells other switches nothing.
//!
//! A peer that restarts has a new nonce, and what was agreed with its predecessor is void. A
//! message that comes back to its sender carries the sender's own nonce, and is ignored.
//!
//! The messages to be sent are state, not a queue: there is at most one of each kind. So a peer
//! that sends hellos without end and reads nothing costs no memory.
//!
//! # How to use it
//!
//! The state machine does no I/O. A link that owns one
//!
//! 1. passes it each received frame ([`Negotiation::receive`]), best as
//!    `batch.filter(first, |frame| negotiation.receive(frame.bytes()).action())`;
//! 2. handles the [`Event`]s: after [`Event::Proven`], it may plug the interface
//!    ([`Host::plug`](crate::Host::plug)), and announces [`Body::Plugged`] or [`Body::Declined`];
//! 3. sends each [`Negotiation::next_message`], and confirms it with [`Negotiation::message_sent`];
//! 4. passes on the offloads that its host takes ([`Negotiation::set_host_offloads`]);
//! 5. reports [`Negotiation::peer_offloads`] as its own ([`Link::state`](crate::Link::state)), and
//!    sends frames [wrapped](crate::Frame::wrapped) with [`SUPER_PREFIX`];
//! 6. receives datagrams of up to [`Negotiation::max_datagram`] bytes.

use crate::wire::hello::{Body, Cable, Message, Nonce, SUPER_PREFIX, is_message};
use crate::{FrameAction, MAX_FRAME, MAX_LEGACY_FRAME, Offloads, PanelAddress, VNET_HEADER_LEN};

/// What a received frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A frame for the network.
    Frame,
    /// A super-frame: behind [`SUPER_PREFIX`] are the virtio header and the frame.
    SuperFrame,
    /// A message, which the link consumes, and the event that follows from it.
    Message(Option<Event>),
    /// A super-frame of a peer that is not proven.
    Refused,
}

impl Received {
    /// What [`RxBatch::filter`](crate::RxBatch::filter) does with the frame.
    pub fn action(&self) -> FrameAction {
        match self {
            Self::Frame => FrameAction::Keep,
            Self::SuperFrame => FrameAction::Unwrap(SUPER_PREFIX.len()),
            Self::Message(_) => FrameAction::Consume,
            Self::Refused => FrameAction::Drop,
        }
    }
}

/// What a message changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer has proven that it is one of ours; see [`Negotiation::peer_panel_address`].
    Proven,
    /// The peer restarts: what was agreed is void until the next [`Event::Proven`].
    Restarted,
    /// The peer has plugged its interface into this end's.
    Plugged,
    /// The peer could not plug its interface.
    Declined,
    /// The peer takes other offloads than before; see [`Negotiation::peer_offloads`].
    Offloads,
}

/// What is known of the peer.
#[derive(Clone, Debug, Default)]
enum Peer {
    /// Nothing: it may be a legacy one.
    #[default]
    Unknown,
    /// It has sent its nonce, but has not proven that it knows this end's.
    Introduced(Nonce),
    /// It is one of ours.
    Proven {
        nonce: Nonce,
        process: u32,
        panel_address: Option<PanelAddress>,
        offloads: Offloads,
    },
}

impl Peer {
    fn nonce(&self) -> Option<Nonce> {
        match self {
            Self::Unknown => None,
            Self::Introduced(nonce) | Self::Proven { nonce, .. } => Some(*nonce),
        }
    }
}

/// Which side of what an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// One of two equal ends: a peer may introduce itself without knowing this end's nonce.
    Cable,
    Client,
    Switch,
}

/// The negotiation with one peer.
#[derive(Clone, Debug)]
pub struct Negotiation {
    role: Role,
    cable: Cable,
    own: Nonce,
    /// The process and the panel address that this end announces.
    process: u32,
    panel_address: Option<PanelAddress>,
    peer: Peer,
    /// The nonce of the peer that has been sent a hello with its nonce.
    introduced_to: Option<Nonce>,
    /// Messages to be sent, at most one of each kind.
    outbox: Vec<Body>,
    /// The offloads that this end's host takes.
    host_offloads: Offloads,
    /// The offloads that this end has announced.
    announced_offloads: Offloads,
}

impl Negotiation {
    /// A negotiation with any peer that appears on `cable`. It begins with a hello.
    ///
    /// `panel_address` is this end's, if the peer may know it. `process` is the process id that a
    /// user knows this end by.
    pub fn on_cable(
        cable: Cable,
        own: Nonce,
        panel_address: Option<PanelAddress>,
        process: u32,
    ) -> Self {
        let mut negotiation = Self {
            cable,
            process,
            ..Self::new(Role::Cable, own, panel_address, Peer::Unknown)
        };
        negotiation.announce(negotiation.hello());
        negotiation
    }

    /// The negotiation of a client with a switch to which it has sent its nonce `own`. The switch
    /// begins.
    pub fn as_client(own: Nonce) -> Self {
        Self::new(Role::Client, own, None, Peer::Unknown)
    }

    /// The same with this end's panel address, if a peer on the same panel may know it.
    #[must_use]
    pub fn with_panel_address(self, panel_address: Option<PanelAddress>) -> Self {
        Self {
            panel_address,
            ..self
        }
    }

    /// The negotiation of a switch with the client that has sent it the nonce `client`. It begins
    /// with a hello, which carries `panel_address`, a bridge that the client may plug into.
    pub fn as_switch(own: Nonce, panel_address: Option<PanelAddress>, client: Nonce) -> Self {
        let peer = Peer::Introduced(client);
        let mut negotiation = Self::new(Role::Switch, own, panel_address, peer);
        negotiation.introduce_to(client);
        negotiation
    }

    fn new(role: Role, own: Nonce, panel_address: Option<PanelAddress>, peer: Peer) -> Self {
        Self {
            role,
            cable: Cable::default(),
            own,
            process: std::process::id(),
            panel_address,
            peer,
            introduced_to: None,
            outbox: Vec::new(),
            host_offloads: Offloads::NONE,
            announced_offloads: Offloads::NONE,
        }
    }

    /// Handles the bytes of a received frame.
    pub fn receive(&mut self, bytes: &[u8]) -> Received {
        if !is_message(bytes) {
            return Received::Frame;
        }
        if bytes.starts_with(&SUPER_PREFIX) {
            return match self.is_proven() {
                true => Received::SuperFrame,
                false => Received::Refused,
            };
        }
        let message = Message::decode(bytes);
        Received::Message(message.and_then(|message| self.handle(message)))
    }

    fn handle(&mut self, message: Message) -> Option<Event> {
        let Message {
            cable,
            to,
            from,
            body,
        } = message;
        let is_for_us = to == self.own;
        let is_reflected = from == self.own;
        if cable != self.cable || is_reflected || from == Nonce::UNKNOWN {
            return None;
        }
        if let Body::Hello {
            process,
            panel_address,
        } = body
        {
            return match (is_for_us, to == Nonce::UNKNOWN && self.role == Role::Cable) {
                (true, _) => self.prove(from, process, panel_address),
                (_, true) => self.introduce(from),
                _ => None,
            };
        }
        if !is_for_us || self.peer.nonce() != Some(from) {
            return None;
        }
        // A client may send its switch no hello: any message with the switch's nonce proves it.
        if let (Peer::Introduced(nonce), Role::Switch) = (&self.peer, self.role) {
            let nonce = *nonce;
            self.peer = Peer::Proven {
                nonce,
                process: 0,
                panel_address: None,
                offloads: Offloads::NONE,
            };
        }
        match (body, &mut self.peer) {
            (Body::Plugged, _) => Some(Event::Plugged),
            (Body::Declined, _) => Some(Event::Declined),
            (Body::Accept(new), Peer::Proven { offloads, .. }) => {
                (std::mem::replace(offloads, new) != new).then_some(Event::Offloads)
            }
            _ => None,
        }
    }

    /// A peer that does not know this end's nonce introduces itself.
    fn introduce(&mut self, from: Nonce) -> Option<Event> {
        let is_restarted = self.replaces_peer(from);
        if self.peer.nonce() != Some(from) {
            self.peer = Peer::Introduced(from);
        }
        self.introduce_to(from);
        is_restarted.then_some(Event::Restarted)
    }

    /// A peer proves that it has received this end's nonce.
    fn prove(
        &mut self,
        from: Nonce,
        process: u32,
        panel_address: Option<PanelAddress>,
    ) -> Option<Event> {
        if self.is_proven() && self.peer.nonce() == Some(from) {
            return None;
        }
        self.replaces_peer(from);
        // A peer that announced this end's own address would be plugged into nothing.
        let is_own = |address: &PanelAddress| self.panel_address.as_ref() == Some(address);
        self.peer = Peer::Proven {
            nonce: from,
            process,
            panel_address: panel_address.filter(|address| !is_own(address)),
            offloads: Offloads::NONE,
        };
        let answers = match self.role {
            Role::Cable => true,
            Role::Client => self.has_common_panel(),
            Role::Switch => false,
        };
        if answers && self.introduced_to != Some(from) {
            self.introduce_to(from);
        }
        Some(Event::Proven)
    }

    /// Whether `from` replaces a peer with another nonce. If so, forgets what was to be sent to the
    /// predecessor, and announces everything again.
    fn replaces_peer(&mut self, from: Nonce) -> bool {
        let is_replaced = self.peer.nonce().is_some_and(|known| known != from);
        if is_replaced {
            self.outbox.clear();
            self.announced_offloads = Offloads::NONE;
        }
        is_replaced
    }

    fn introduce_to(&mut self, peer: Nonce) {
        self.introduced_to = Some(peer);
        self.announce(self.hello());
    }

    fn hello(&self) -> Body {
        Body::Hello {
            process: self.process,
            // Only a peer that has introduced itself learns the address.
            panel_address: self.introduced_to.and(self.panel_address.clone()),
        }
    }

    /// Sends `body` to the peer, in place of an earlier message of that kind. A peer that has not
    /// introduced itself is sent nothing but hello.
    pub fn announce(&mut self, body: Body) {
        if self.peer.nonce().is_none() && !matches!(body, Body::Hello { .. }) {
            return;
        }
        let kind = std::mem::discriminant(&body);
        self.outbox
            .retain(|other| std::mem::discriminant(other) != kind);
        self.outbox.push(body);
    }

    /// Sets which offloads this end's host takes. A change is announced to the peer.
    pub fn set_host_offloads(&mut self, offloads: Offloads) {
        self.host_offloads = offloads;
    }

    /// The next message to send; `None` if there is none.
    pub fn next_message(&mut self) -> Option<Vec<u8>> {
        if self.peer.nonce().is_some() && self.announced_offloads != self.host_offloads {
            self.announced_offloads = self.host_offloads;
            self.announce(Body::Accept(self.announced_offloads));
        }
        let body = self.outbox.first()?.clone();
        let message = Message {
            cable: self.cable,
            to: self.peer.nonce().unwrap_or(Nonce::UNKNOWN),
            from: self.own,
            body,
        };
        Some(message.encode())
    }

    /// Confirms that the link has sent [`Negotiation::next_message`].
    pub fn message_sent(&mut self) {
        if !self.outbox.is_empty() {
            self.outbox.remove(0);
        }
    }

    /// Whether the peer has proven that it is one of ours.
    pub fn is_proven(&self) -> bool {
        matches!(self.peer, Peer::Proven { .. })
    }

    /// Whether the peer has introduced itself, but has not proven yet that it knows this end's
    /// nonce.
    pub fn is_introduced(&self) -> bool {
        matches!(self.peer, Peer::Introduced(_))
    }

    /// The peer's panel address, if the peer is proven and has announced one.
    pub fn peer_panel_address(&self) -> Option<&PanelAddress> {
        match &self.peer {
            Peer::Proven { panel_address, .. } => panel_address.as_ref(),
            _ => None,
        }
    }

    /// Whether both ends have addresses on one panel, as far as is known.
    pub fn has_common_panel(&self) -> bool {
        let (own, peer) = (self.panel_address.as_ref(), self.peer_panel_address());
        own.zip(peer)
            .is_some_and(|(own, peer)| own.panel == peer.panel)
    }

    /// This end's panel address, which it announces.
    pub fn panel_address(&self) -> Option<&PanelAddress> {
        self.panel_address.as_ref()
    }

    /// The process that a proven peer has announced.
    pub fn peer_process(&self) -> Option<u32> {
        match self.peer {
            Peer::Proven { process, .. } if process != 0 => Some(process),
            _ => None,
        }
    }

    /// The offloads that frames sent to the peer may use.
    pub fn peer_offloads(&self) -> Offloads {
        match self.peer {
            Peer::Proven { offloads, .. } => offloads,
            _ => Offloads::NONE,
        }
    }

    /// The longest datagram that the peer may send, in bytes.
    pub fn max_datagram(&self) -> usize {
        match self.announced_offloads {
            Offloads::NONE => MAX_LEGACY_FRAME,
            _ => SUPER_PREFIX.len() + VNET_HEADER_LEN + MAX_FRAME,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CABLE: Cable = Cable {
        device: 1,
        inode: 2,
    };

    fn panel_address(place: &str) -> Option<PanelAddress> {
        Some(PanelAddress {
            panel: 7,
            place: place.to_owned(),
        })
    }

    fn end(nonce: u64, place: &str) -> Negotiation {
        Negotiation::on_cable(CABLE, Nonce(nonce), panel_address(place), 7)
    }

    /// Carries the messages of `from` to `to`, and returns the events there.
    fn carry(from: &mut Negotiation, to: &mut Negotiation) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(message) = from.next_message() {
            from.message_sent();
            match to.receive(&message) {
                Received::Message(event) => events.extend(event),
                other => panic!("{other:?}"),
            }
        }
        events
    }

    /// Carries messages both ways until there are none.
    fn settle(a: &mut Negotiation, b: &mut Negotiation) -> [Vec<Event>; 2] {
        let mut events = [Vec::new(), Vec::new()];
        for _ in 0..5 {
            events[1].extend(carry(a, b));
            events[0].extend(carry(b, a));
        }
        assert!(a.next_message().is_none() && b.next_message().is_none());
        events
    }

    #[test]
    fn either_end_may_begin() {
        for both_begin in [false, true] {
            let (mut a, mut b) = (end(1, "a"), end(2, "b"));
            if !both_begin {
                // A was not there when B sent its hello.
                b.next_message().unwrap();
                b.message_sent();
            }
            let [at_a, at_b] = settle(&mut a, &mut b);
            assert_eq!((at_a, at_b), (vec![Event::Proven], vec![Event::Proven]));
            assert_eq!(a.peer_panel_address(), panel_address("b").as_ref());
            assert_eq!(b.peer_panel_address(), panel_address("a").as_ref());
            assert_eq!(a.peer_process(), Some(7));
        }
    }

    #[test]
    fn the_first_hello_has_no_address() {
        let hello = Message::decode(&end(1, "secret").next_message().unwrap()).unwrap();
        assert_eq!(hello.to, Nonce::UNKNOWN);
        assert!(matches!(
            hello.body,
            Body::Hello {
                panel_address: None,
                ..
            }
        ));
    }

    #[test]
    fn a_sender_that_does_not_know_the_nonce_is_not_believed() {
        let forged = |to: u64, from: u64, body: Body| {
            let message = Message {
                cable: CABLE,
                to: Nonce(to),
                from: Nonce(from),
                body,
            };
            message.encode()
        };
        let hello = || Body::Hello {
            process: 1,
            panel_address: panel_address("forged"),
        };
        let mut a = end(1, "a");
        for (to, from, body) in [
            (9, 2, hello()),
            (0, 1, hello()),
            (1, 1, hello()),
            (1, 0, hello()),
            (1, 2, Body::Plugged),
            (1, 2, Body::Accept(Offloads::ALL)),
        ] {
            let seen = a.receive(&forged(to, from, body));
            assert_eq!(seen, Received::Message(None), "{to} {from}");
        }
        let elsewhere = Message {
            cable: Cable::default(),
            to: Nonce(1),
            from: Nonce(2),
            body: hello(),
        };
        assert_eq!(a.receive(&elsewhere.encode()), Received::Message(None));
        let wrapped = [&SUPER_PREFIX[..], &[0; 80]].concat();
        assert_eq!(a.receive(&wrapped), Received::Refused);
        assert!(!a.is_proven() && a.peer_panel_address().is_none());

        let mut b = end(2, "b");
        settle(&mut a, &mut b);
        for (to, from) in [(1, 3), (4, 2)] {
            let declined = forged(to, from, Body::Declined);
            assert_eq!(a.receive(&declined), Received::Message(None));
        }
        assert_eq!(a.receive(&wrapped), Received::SuperFrame);
    }

    #[test]
    fn an_end_is_not_its_own_peer() {
        let mut a = end(1, "a");
        let greeting = a.next_message().unwrap();
        assert_eq!(a.receive(&greeting), Received::Message(None));
        let mut b = Negotiation::on_cable(CABLE, Nonce(2), panel_address("a"), 7);
        settle(&mut a, &mut b);
        assert!(a.is_proven() && a.peer_panel_address().is_none());
    }

    #[test]
    fn a_peer_that_restarts_is_proven_again() {
        let (mut a, mut b) = (end(1, "a"), end(2, "b"));
        a.set_host_offloads(Offloads::ALL);
        settle(&mut a, &mut b);
        assert_eq!(b.peer_offloads(), Offloads::ALL);
        let mut again = end(3, "c");
        let [at_a, _] = settle(&mut a, &mut again);
        assert_eq!(at_a, [Event::Restarted, Event::Proven]);
        assert_eq!(a.peer_panel_address(), panel_address("c").as_ref());
        assert_eq!(
            again.peer_offloads(),
            Offloads::ALL,
            "they are announced again"
        );
    }

    #[test]
    fn a_switch_and_its_client_know_their_nonces_beforehand() {
        let mut client = Negotiation::as_client(Nonce(1));
        let mut switch = Negotiation::as_switch(Nonce(2), panel_address("bridge"), Nonce(1));
        assert!(
            client.next_message().is_none(),
            "a legacy switch sees nothing"
        );
        client.set_host_offloads(Offloads::ALL);
        switch.set_host_offloads(Offloads::ALL);
        let stranger = end(5, "x").next_message().unwrap();
        assert_eq!(client.receive(&stranger), Received::Message(None));
        assert_eq!(
            carry(&mut switch, &mut client),
            [Event::Proven, Event::Offloads]
        );
        assert_eq!(
            client.peer_panel_address(),
            panel_address("bridge").as_ref()
        );
        client.announce(Body::Plugged);
        assert!(!switch.is_proven());
        let events = carry(&mut client, &mut switch);
        assert_eq!(events, [Event::Plugged, Event::Offloads]);
        assert!(switch.is_proven());
    }

    #[test]
    fn a_client_tells_its_place_to_a_switch_on_its_panel() {
        let elsewhere = Some(PanelAddress {
            panel: 8,
            place: "bridge".to_owned(),
        });
        for (bridge, place) in [
            (panel_address("bridge"), panel_address("port")),
            (elsewhere, None),
            (None, None),
        ] {
            let client = Negotiation::as_client(Nonce(1));
            let mut client = client.with_panel_address(panel_address("port"));
            let mut switch = Negotiation::as_switch(Nonce(2), bridge, Nonce(1));
            assert!(client.next_message().is_none());
            assert_eq!(carry(&mut switch, &mut client), [Event::Proven]);
            client.announce(Body::Plugged);
            let events = carry(&mut client, &mut switch);
            assert_eq!(events.contains(&Event::Proven), place.is_some());
            assert_eq!(
                events.last(),
                Some(&Event::Plugged),
                "the place comes first"
            );
            assert_eq!(switch.peer_panel_address(), place.as_ref());
            assert!(switch.next_message().is_none(), "no more is to be said");
        }
    }

    #[test]
    fn hellos_without_end_cost_nothing() {
        let mut a = end(1, "a");
        for from in 10..50_000 {
            let hello = end(from, "x").next_message().unwrap();
            a.receive(&hello);
            a.announce(Body::Plugged);
            assert!(a.outbox.len() <= 4);
        }
    }
}
