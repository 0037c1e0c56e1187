//! A network of bridges: wires that take a millisecond, and virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::roles::PortState;
use crate::settings::{PortSettings, Settings};
use crate::{Action, Bpdu, Bridge, Cause, FRAME_LEN, Mac, PortNumber};

const LATENCY: Duration = Duration::from_millis(1);

/// A bridge, and a port of it.
pub(super) type End = (usize, PortNumber);

pub(super) struct Wire {
    ends: [End; 2],
    is_up: bool,
    /// The ends to which no frame comes any more, unnoticed.
    muted: Vec<End>,
}

pub(super) struct Net {
    pub(super) bridges: Vec<Bridge>,
    pub(super) wires: Vec<Wire>,
    pub(super) now: Duration,
    pub(super) flushed: Vec<End>,
    pub(super) logged: Vec<(usize, Cause)>,
    pub(super) sent: Vec<(End, [u8; FRAME_LEN])>,
    states: BTreeMap<End, PortState>,
    underway: VecDeque<(Duration, End, [u8; FRAME_LEN])>,
}

/// The MAC address of a bridge.
pub(super) fn mac(number: u8) -> Mac {
    [2, 0, 0, 0, 0, number]
}

impl Net {
    pub(super) fn new(bridges: u8) -> Self {
        let new = |n| Bridge::new(Settings::new(mac(n)), Duration::ZERO).unwrap();
        Self {
            bridges: (0..bridges).map(new).collect(),
            wires: Vec::new(),
            now: Duration::ZERO,
            flushed: Vec::new(),
            logged: Vec::new(),
            sent: Vec::new(),
            states: BTreeMap::new(),
            underway: VecDeque::new(),
        }
    }

    /// A new wire between two bridges, at the next ports of both.
    pub(super) fn join(&mut self, a: usize, b: usize, settings: &PortSettings) {
        let free = |at: usize| {
            let ends = self.wires.iter().flat_map(|wire| wire.ends);
            ends.filter(|(bridge, _)| *bridge == at).count() as PortNumber
        };
        let ends = [(a, free(a)), (b, free(b))];
        self.wires.push(Wire {
            ends,
            is_up: true,
            muted: Vec::new(),
        });
        for (bridge, port) in ends {
            self.add(bridge, port, settings);
        }
    }

    pub(super) fn add(&mut self, bridge: usize, port: PortNumber, settings: &PortSettings) {
        self.bridges[bridge]
            .add_port(port, settings.clone())
            .unwrap();
        self.perform(bridge);
    }

    pub(super) fn set(&mut self, bridge: usize, settings: Settings) {
        self.bridges[bridge].set(settings).unwrap();
        self.perform(bridge);
    }

    pub(super) fn cut(&mut self, wire: usize) {
        self.set_link(wire, false);
    }

    pub(super) fn mend(&mut self, wire: usize) {
        self.set_link(wire, true);
    }

    fn set_link(&mut self, wire: usize, is_up: bool) {
        self.wires[wire].is_up = is_up;
        for (bridge, port) in self.wires[wire].ends {
            self.bridges[bridge].set_link(port, is_up);
            self.perform(bridge);
        }
    }

    pub(super) fn mute(&mut self, wire: usize) {
        self.wires[wire].muted = self.wires[wire].ends.to_vec();
    }

    pub(super) fn mute_towards(&mut self, wire: usize, end: End) {
        self.wires[wire].muted = vec![end];
    }

    pub(super) fn unmute(&mut self, wire: usize) {
        self.wires[wire].muted.clear();
    }

    /// The state that the actions have said.
    pub(super) fn state(&self, end: End) -> PortState {
        let state = self.states.get(&end).copied();
        let state = state.unwrap_or(PortState::Discarding);
        assert_eq!(self.bridges[end.0].port(end.1).unwrap().state, state);
        state
    }

    /// A BPDU comes in from outside the network.
    pub(super) fn hear(&mut self, (bridge, port): End, bpdu: &Bpdu) {
        self.bridges[bridge].receive(port, &bpdu.encode(mac(99)));
        self.perform(bridge);
    }

    /// Lets some time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let ticks = self.bridges.iter().map(Bridge::next_deadline);
            let frame = self.underway.front().map(|(at, ..)| *at);
            let next = ticks.chain(frame).min().unwrap_or(end);
            if next > end {
                break;
            }
            self.now = next;
            for bridge in 0..self.bridges.len() {
                self.bridges[bridge].tick(next);
                self.perform(bridge);
            }
            while self.underway.front().is_some_and(|(at, ..)| *at <= next) {
                if let Some((_, (bridge, port), frame)) = self.underway.pop_front() {
                    self.bridges[bridge].receive(port, &frame);
                    self.perform(bridge);
                }
            }
        }
        self.now = end;
    }

    /// Does what a bridge wants done.
    pub(super) fn perform(&mut self, bridge: usize) {
        for action in self.bridges[bridge].take_actions() {
            match action {
                Action::Transmit { port, frame } => self.transmit((bridge, port), frame),
                Action::SetState { port, state } => {
                    self.states.insert((bridge, port), state);
                }
                Action::Flush { port } => self.flushed.push((bridge, port)),
                Action::TopologyChange { cause, .. } => self.logged.push((bridge, cause)),
                Action::Guarded { .. } => {}
            }
        }
    }

    fn transmit(&mut self, from: End, frame: [u8; FRAME_LEN]) {
        self.sent.push((from, frame));
        for wire in self.wires.iter().filter(|wire| wire.is_up) {
            let to = match wire.ends {
                [a, b] if a == from => b,
                [a, b] if b == from => a,
                _ => continue,
            };
            if !wire.muted.contains(&to) {
                self.underway.push_back((self.now + LATENCY, to, frame));
            }
        }
    }

    /// Whether the wires that forward, with both ends, make a loop.
    pub(super) fn has_loop(&self) -> bool {
        self.check_tree()
            .is_err_and(|why| why.starts_with("a loop"))
    }

    /// Whether the wires that forward are a tree on each set of bridges that are joined.
    pub(super) fn check_tree(&self) -> Result<(), String> {
        let mut joined: Vec<usize> = (0..self.bridges.len()).collect();
        let mut reached = joined.clone();
        for wire in self.wires.iter().filter(|wire| wire.is_up) {
            let [a, b] = wire.ends;
            unite(&mut joined, a.0, b.0);
            if [a, b].map(|end| self.state(end)) != [PortState::Forwarding; 2] {
                continue;
            }
            if !unite(&mut reached, a.0, b.0) {
                return Err(format!("a loop by {a:?} and {b:?}"));
            }
        }
        for bridge in 0..self.bridges.len() {
            let mut others = 0..bridge;
            let split = others.find(|other| {
                (joined[bridge] == joined[*other]) != (reached[bridge] == reached[*other])
            });
            if let Some(other) = split {
                return Err(format!("no way from {bridge} to {other}"));
            }
        }
        Ok(())
    }
}

/// Makes one set of two; `false` if it was one.
fn unite(sets: &mut [usize], a: usize, b: usize) -> bool {
    let (from, to) = (sets[a], sets[b]);
    for set in sets.iter_mut().filter(|set| **set == from) {
        *set = to;
    }
    from != to
}
