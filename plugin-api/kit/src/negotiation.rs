//! How two ends of ours find out about each other, and agree on the best way for frames.
//!
//! # Theory of operation
//!
//! Two ends that meet exchange the messages of [`wire::hello`](crate::wire::hello) among their frames.
//! A legacy far end answers none, and everything stays as it was. A far end of ours answers, and then
//!
//! * each end learns the other's place on the panel, so that the kernel may carry their frames;
//! * each end says which offloads its host takes, and may be sent super-frames accordingly.
//!
//! A frame may come from anybody: from a command in a namespace, from a virtual machine, from another
//! client of a legacy switch. So an end believes a message only if it proves that its sender has
//! received what this end said in this conversation, on this cable: each end chooses a [`Nonce`], and
//! each message but a first hello carries the receiver's. The ends shake hands like this:
//!
//! ```text
//! A                                          B
//! hello, to nobody known, from a     ──────► heard of: A, not proven
//! proven: B                          ◄────── hello, to a, from b, B's place
//! hello, to b, from a, A's place     ──────► proven: A
//! ```
//!
//! Both may begin at once. An end tells its place only to a far end whose nonce it has. Where the two
//! have told each other their nonces in another way, as a switch and its client, no hello to nobody is
//! sent or answered ([`Negotiation::with`]).
//!
//! A far end that starts anew has a new nonce; what was agreed with its predecessor is void. A message
//! that comes back to its sender has the sender's own nonce, and is ignored.
//!
//! What is still to be said is state, not a queue: of each kind there is one message at most, so a far
//! end that sends hellos without end and reads nothing costs no memory.
//!
//! The machine does no I/O. Its owner passes it received frames ([`Negotiation::receive`]), acts on the
//! [`Event`]s, and sends what [`Negotiation::next_message`] returns.

use crate::wire::hello::{Body, Cable, Message, Nonce, SUPER_PREFIX, is_message};
use crate::{MAX_FRAME, MAX_LEGACY_FRAME, Offloads, Sift, Ticket, VNET_HEADER_LEN};

/// What a received frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A frame for the network.
    Frame,
    /// A super-frame: behind [`SUPER_PREFIX`] are the virtio header and the frame.
    SuperFrame,
    /// A message, which is consumed, and what follows from it.
    Message(Option<Event>),
    /// A super-frame of a far end that has not proven that it is one of ours.
    Refused,
}

impl Received {
    /// What is to be done with the frame in a batch.
    pub fn action(&self) -> Sift {
        match self {
            Self::Frame => Sift::Keep,
            Self::SuperFrame => Sift::Unwrap(SUPER_PREFIX.len()),
            Self::Message(_) => Sift::Take,
            Self::Refused => Sift::Refuse,
        }
    }
}

/// What a message changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A far end has proven that it is one of ours; see [`Negotiation::peer_ticket`].
    Met,
    /// The far end starts anew: what was agreed is void, until it is [`Event::Met`] again.
    Restarted,
    /// Its interface is plugged into this end's.
    Plugged,
    /// Its interface could not be plugged.
    Declined,
    /// It takes other offloads than before; see [`Negotiation::peer_takes`].
    Takes,
}

/// What is known of the far end.
#[derive(Clone, Debug, Default)]
enum Peer {
    /// Nothing: it may be a legacy one.
    #[default]
    Unknown,
    /// It has said its nonce, and not proven that it knows this end's.
    Heard(Nonce),
    /// It is one of ours.
    Proven {
        nonce: Nonce,
        process: u32,
        ticket: Option<Ticket>,
        takes: Offloads,
    },
}

impl Peer {
    fn nonce(&self) -> Option<Nonce> {
        match self {
            Self::Unknown => None,
            Self::Heard(nonce) | Self::Proven { nonce, .. } => Some(*nonce),
        }
    }
}

/// A conversation with one far end.
#[derive(Clone, Debug)]
pub struct Negotiation {
    cable: Cable,
    own: Nonce,
    /// The process that people know this end by, and this end's place: what the far end is told.
    process: u32,
    ticket: Option<Ticket>,
    /// Whether a far end may introduce itself that does not know this end's nonce.
    meets_strangers: bool,
    peer: Peer,
    /// The nonce of the far end that has been sent a hello with its nonce.
    introduced_to: Option<Nonce>,
    /// Messages to be sent, of each kind one at most.
    outbox: Vec<Body>,
    /// What this end's host takes.
    host_takes: Offloads,
    /// What the far end was told of it.
    told: Offloads,
}

impl Negotiation {
    /// A conversation with whoever appears on `cable`, which begins with a hello. `ticket` is this
    /// end's place on the panel, if the far end may know it; `process` is what people know this end by.
    pub fn on(cable: Cable, own: Nonce, ticket: Option<Ticket>, process: u32) -> Self {
        let mut negotiation = Self::with(own, ticket, None);
        negotiation.cable = cable;
        negotiation.process = process;
        negotiation.meets_strangers = true;
        negotiation.say(negotiation.hello());
        negotiation
    }

    /// A conversation between a switch and its client, who knows this end's nonce. `peer` is the
    /// client's nonce, for the switch, which then introduces itself.
    pub fn with(own: Nonce, ticket: Option<Ticket>, peer: Option<Nonce>) -> Self {
        let mut negotiation = Self {
            cable: Cable::default(),
            own,
            process: std::process::id(),
            ticket,
            meets_strangers: false,
            peer: peer.map_or(Peer::Unknown, Peer::Heard),
            introduced_to: None,
            outbox: Vec::new(),
            host_takes: Offloads::NONE,
            told: Offloads::NONE,
        };
        if let Some(peer) = peer {
            negotiation.introduce_to(peer);
        }
        negotiation
    }

    /// Takes in the bytes of a received frame.
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
        Received::Message(message.and_then(|message| self.process(message)))
    }

    fn process(&mut self, message: Message) -> Option<Event> {
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
        if let Body::Hello { process, ticket } = body {
            return match (is_for_us, to == Nonce::UNKNOWN && self.meets_strangers) {
                (true, _) => self.meet(from, process, ticket),
                (_, true) => self.hear_of(from),
                _ => None,
            };
        }
        if !is_for_us || self.peer.nonce() != Some(from) {
            return None;
        }
        // A client sends its switch no hello: any message with the switch's nonce proves it.
        if let (Peer::Heard(nonce), false) = (&self.peer, self.meets_strangers) {
            let nonce = *nonce;
            self.peer = Peer::Proven {
                nonce,
                process: 0,
                ticket: None,
                takes: Offloads::NONE,
            };
        }
        match (body, &mut self.peer) {
            (Body::Plugged, _) => Some(Event::Plugged),
            (Body::Declined, _) => Some(Event::Declined),
            (Body::Accept(offloads), Peer::Proven { takes, .. }) => {
                (std::mem::replace(takes, offloads) != offloads).then_some(Event::Takes)
            }
            _ => None,
        }
    }

    /// A far end that does not know this end's nonce introduces itself.
    fn hear_of(&mut self, from: Nonce) -> Option<Event> {
        let is_restarted = self.is_successor(from);
        if self.peer.nonce() != Some(from) {
            self.peer = Peer::Heard(from);
        }
        self.introduce_to(from);
        is_restarted.then_some(Event::Restarted)
    }

    /// A far end proves that it has received this end's nonce.
    fn meet(&mut self, from: Nonce, process: u32, ticket: Option<Ticket>) -> Option<Event> {
        if self.is_proven() && self.peer.nonce() == Some(from) {
            return None;
        }
        self.is_successor(from);
        // A far end that names this end's own place would be plugged into nothing.
        let is_own = |ticket: &Ticket| self.ticket.as_ref() == Some(ticket);
        self.peer = Peer::Proven {
            nonce: from,
            process,
            ticket: ticket.filter(|ticket| !is_own(ticket)),
            takes: Offloads::NONE,
        };
        if self.meets_strangers && self.introduced_to != Some(from) {
            self.introduce_to(from);
        }
        Some(Event::Met)
    }

    /// Whether `from` takes the place of a far end with another nonce; then that is to be told nothing
    /// more, and its successor everything anew.
    fn is_successor(&mut self, from: Nonce) -> bool {
        let is_successor = self.peer.nonce().is_some_and(|known| known != from);
        if is_successor {
            self.outbox.clear();
            self.told = Offloads::NONE;
        }
        is_successor
    }

    fn introduce_to(&mut self, peer: Nonce) {
        self.introduced_to = Some(peer);
        self.say(self.hello());
    }

    fn hello(&self) -> Body {
        Body::Hello {
            process: self.process,
            // A far end that has not been heard of is told nothing.
            ticket: self.introduced_to.and(self.ticket.clone()),
        }
    }

    /// Has the far end told something, in place of an earlier message of that kind. A far end that has
    /// not been heard of is told nothing but hello.
    pub fn say(&mut self, body: Body) {
        if self.peer.nonce().is_none() && !matches!(body, Body::Hello { .. }) {
            return;
        }
        let kind = std::mem::discriminant(&body);
        self.outbox
            .retain(|other| std::mem::discriminant(other) != kind);
        self.outbox.push(body);
    }

    /// Sets which offloads this end's host takes. The far end is told when they change.
    pub fn set_host_takes(&mut self, offloads: Offloads) {
        self.host_takes = offloads;
    }

    /// The next message to the far end.
    pub fn next_message(&mut self) -> Option<Vec<u8>> {
        if self.peer.nonce().is_some() && self.told != self.host_takes {
            self.told = self.host_takes;
            self.say(Body::Accept(self.told));
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

    /// The message that was next has been sent.
    pub fn message_sent(&mut self) {
        if !self.outbox.is_empty() {
            self.outbox.remove(0);
        }
    }

    /// Whether the far end has proven that it is one of ours.
    pub fn is_proven(&self) -> bool {
        matches!(self.peer, Peer::Proven { .. })
    }

    /// Whether the far end has introduced itself and not proven yet that it knows this end's nonce.
    pub fn is_heard_of(&self) -> bool {
        matches!(self.peer, Peer::Heard(_))
    }

    /// The far end's place on the panel, if it has proven that it is one of ours and told one.
    pub fn peer_ticket(&self) -> Option<&Ticket> {
        match &self.peer {
            Peer::Proven { ticket, .. } => ticket.as_ref(),
            _ => None,
        }
    }

    /// This end's place, which the far end is told.
    pub fn ticket(&self) -> Option<&Ticket> {
        self.ticket.as_ref()
    }

    /// The process that the far end says it runs in.
    pub fn peer_process(&self) -> Option<u32> {
        match self.peer {
            Peer::Proven { process, .. } if process != 0 => Some(process),
            _ => None,
        }
    }

    /// What frames sent to the far end may leave undone.
    pub fn peer_takes(&self) -> Offloads {
        match self.peer {
            Peer::Proven { takes, .. } => takes,
            _ => Offloads::NONE,
        }
    }

    /// The longest datagram to expect of the far end, in bytes.
    pub fn max_datagram(&self) -> usize {
        match self.told {
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

    fn ticket(place: &str) -> Option<Ticket> {
        Some(Ticket {
            panel: 7,
            place: place.to_owned(),
        })
    }

    fn end(nonce: u64, place: &str) -> Negotiation {
        Negotiation::on(CABLE, Nonce(nonce), ticket(place), 7)
    }

    /// Carries what `from` has to say to `to`, and returns the events there.
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

    /// Carries messages both ways until nobody has more to say.
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
    fn two_ends_meet_whoever_begins() {
        for both_begin in [false, true] {
            let (mut a, mut b) = (end(1, "a"), end(2, "b"));
            if !both_begin {
                // The far end was not there when B greeted.
                b.next_message().unwrap();
                b.message_sent();
            }
            let [at_a, at_b] = settle(&mut a, &mut b);
            assert_eq!((at_a, at_b), (vec![Event::Met], vec![Event::Met]));
            assert_eq!(a.peer_ticket(), ticket("b").as_ref());
            assert_eq!(b.peer_ticket(), ticket("a").as_ref());
            assert_eq!(a.peer_process(), Some(7));
        }
    }

    #[test]
    fn the_first_hello_tells_no_place() {
        let hello = Message::decode(&end(1, "secret").next_message().unwrap()).unwrap();
        assert_eq!(hello.to, Nonce::UNKNOWN);
        assert!(matches!(hello.body, Body::Hello { ticket: None, .. }));
    }

    #[test]
    fn who_does_not_know_the_nonce_is_not_believed() {
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
            ticket: ticket("forged"),
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
        assert!(!a.is_proven() && a.peer_ticket().is_none());

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
        let mut b = Negotiation::on(CABLE, Nonce(2), ticket("a"), 7);
        settle(&mut a, &mut b);
        assert!(a.is_proven() && a.peer_ticket().is_none());
    }

    #[test]
    fn a_far_end_that_starts_anew_is_met_anew() {
        let (mut a, mut b) = (end(1, "a"), end(2, "b"));
        a.set_host_takes(Offloads::ALL);
        settle(&mut a, &mut b);
        assert_eq!(b.peer_takes(), Offloads::ALL);
        let mut again = end(3, "c");
        let [at_a, _] = settle(&mut a, &mut again);
        assert_eq!(at_a, [Event::Restarted, Event::Met]);
        assert_eq!(a.peer_ticket(), ticket("c").as_ref());
        assert_eq!(again.peer_takes(), Offloads::ALL, "it is told anew");
    }

    #[test]
    fn a_switch_and_its_client_know_each_other_beforehand() {
        let mut client = Negotiation::with(Nonce(1), None, None);
        let mut switch = Negotiation::with(Nonce(2), ticket("hub"), Some(Nonce(1)));
        assert!(
            client.next_message().is_none(),
            "a legacy switch sees nothing"
        );
        client.set_host_takes(Offloads::ALL);
        switch.set_host_takes(Offloads::ALL);
        let stranger = end(5, "x").next_message().unwrap();
        assert_eq!(client.receive(&stranger), Received::Message(None));
        assert_eq!(carry(&mut switch, &mut client), [Event::Met, Event::Takes]);
        assert_eq!(client.peer_ticket(), ticket("hub").as_ref());
        client.say(Body::Plugged);
        assert!(!switch.is_proven());
        let events = carry(&mut client, &mut switch);
        assert_eq!(events, [Event::Plugged, Event::Takes]);
        assert!(switch.is_proven());
    }

    #[test]
    fn hellos_without_end_cost_nothing() {
        let mut a = end(1, "a");
        for from in 10..50_000 {
            let hello = end(from, "x").next_message().unwrap();
            a.receive(&hello);
            a.say(Body::Plugged);
            assert!(a.outbox.len() <= 4);
        }
    }
}
