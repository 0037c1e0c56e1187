//! BPDUs, and a bridge whose neighbours send anything.

use std::time::Duration;

use fastrand::Rng;
use vdens_rstp::{
    Action, Bpdu, Bridge, BridgeId, FRAME_LEN, PortId, PortSettings, PortState, PortStatus,
    Received, RstFlags, RstRole, Settings, Time, Times, Vector,
};

use super::{Target, append, ensure, pick};

/// Ports of the bridge that is fuzzed.
const PORTS: u16 = 8;
/// The most events of an input: what is rare takes few of them.
const EVENTS: usize = 40;
/// What one of them may send at once, and then in each second.
const HOLD_COUNT: u8 = 6;

fn bridge_id(random: &mut Rng) -> BridgeId {
    let mac = [2, 0, 0, 0, 0, random.u8(4..8)];
    BridgeId::new(*pick(random, &[0, 0x8000, 0x8000, 0xf001]), mac)
}

fn time(random: &mut Rng) -> Time {
    Time(*pick(random, &[0, 1, 256, 300, 512, 5120, u16::MAX]))
}

/// A BPDU of which most are valid.
fn bpdu(random: &mut Rng) -> Bpdu {
    let vector = Vector {
        root: bridge_id(random),
        cost: *pick(random, &[0, 20_000, u32::MAX]),
        bridge: bridge_id(random),
        port: PortId::new(128, random.u16(..PORTS)),
    };
    let times = Times {
        message_age: time(random),
        max_age: Time::from_secs(20),
        hello: time(random),
        forward_delay: time(random),
    };
    let role = *pick(
        random,
        &[RstRole::Alternate, RstRole::Root, RstRole::Designated],
    );
    let mut flag = || random.bool();
    match (flag(), flag(), flag()) {
        (true, true, true) => Bpdu::Tcn,
        (true, ..) => Bpdu::Config {
            topology_change: flag(),
            acknowledgment: flag(),
            vector,
            times,
        },
        _ => Bpdu::Rst {
            flags: RstFlags {
                topology_change: flag(),
                proposal: flag(),
                role,
                learning: flag(),
                forwarding: flag(),
                agreement: flag(),
            },
            vector,
            times,
        },
    }
}

/// Frames as a neighbour may send them.
pub(crate) struct Bpdus;

impl Target for Bpdus {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        input.extend(bpdu(random).encode([2; 6]));
        if random.bool() {
            let at = random.usize(..input.len());
            input[at] = random.u8(..);
        }
        let len = random.usize(..80);
        match random.u8(..4) {
            0 => input.truncate(len),
            1 => append(random, input, len),
            _ => {}
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let Ok(bpdu) = Bpdu::decode(input) else {
            return Ok(());
        };
        let again = Bpdu::decode(&bpdu.encode([2; 6]));
        ensure(again == Ok(bpdu), || format!("{bpdu:?} became {again:?}"))?;
        // What follows the frame's length is padding.
        let mut longer = input.to_vec();
        longer.extend([0xff; 8]);
        let padded = Bpdu::decode(&longer);
        ensure(padded == Ok(bpdu), || format!("{bpdu:?} became {padded:?}"))
    }
}

/// What happens to a bridge: see [`Bridges::check`].
pub(crate) struct Bridges;

impl Target for Bridges {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        for _ in 0..random.usize(..40) {
            let port = random.u8(..PORTS as u8);
            match random.u8(..8) {
                0 => input.extend([0x80 | port, random.u8(..)]),
                1 | 2 => input.extend([0x40, *pick(random, &[1, 20, 255])]),
                _ => {
                    input.push(port);
                    // Addresses, length and LLC are not part of an input.
                    input.extend(&bpdu(random).encode([2; 6])[17..53]);
                }
            }
        }
    }

    /// Each event is a byte, and what it needs. 0x80 and a port: its link and settings change;
    /// 0x40: time passes, up to eight seconds; else: a BPDU comes in on this port.
    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let mut watched = WatchedBridge::new()?;
        let mut input = input.iter().copied();
        for _ in 0..EVENTS {
            let (Some(event), Some(what)) = (input.next(), input.next()) else {
                break;
            };
            let port = u16::from(event) % PORTS;
            match event >> 6 {
                2 | 3 => watched.change(port, what)?,
                1 => watched.wait(Duration::from_millis(100) * u32::from(what % 80)),
                _ => {
                    let mut frame = Bpdu::Tcn.encode([2; 6]);
                    frame[13] = 39;
                    frame[17] = what;
                    frame[18..53].fill_with(|| input.next().unwrap_or_default());
                    let received = watched.bridge.receive(port, &frame);
                    let is_one = Bpdu::decode(&frame).is_ok();
                    ensure(is_one || received != Received::Handled, || {
                        format!("{frame:?} was handled")
                    })?;
                }
            }
            watched.check()?;
        }
        Ok(())
    }
}

struct WatchedBridge {
    bridge: Bridge,
    now: Duration,
    states: [PortState; PORTS as usize],
    sent: [u64; PORTS as usize],
}

impl WatchedBridge {
    fn new() -> Result<Self, String> {
        let settings = Settings {
            hold_count: HOLD_COUNT,
            ..Settings::new([2, 0, 0, 0, 0, 5])
        };
        let bridge = Bridge::new(settings, Duration::ZERO);
        let mut bridge = bridge.map_err(|error| error.to_string())?;
        for port in 0..PORTS {
            let added = bridge.add_port(port, PortSettings::default());
            added.map_err(|error| error.to_string())?;
        }
        Ok(Self {
            bridge,
            now: Duration::ZERO,
            states: [PortState::Discarding; PORTS as usize],
            sent: [0; PORTS as usize],
        })
    }

    fn change(&mut self, port: u16, what: u8) -> Result<(), String> {
        let settings = PortSettings {
            admin_edge: what & 1 != 0,
            auto_edge: what & 2 != 0,
            is_point_to_point: what & 4 != 0,
            guard: what & 0x70 == 0x70,
            cost: 1 + u32::from(what) * 1000,
            ..PortSettings::default()
        };
        self.bridge.set_link(port, what & 8 != 0);
        let set = self.bridge.set_port(port, settings);
        set.map_err(|error| error.to_string())?;
        match what >> 6 {
            2 => self.bridge.announce(port),
            3 => self.bridge.release_guard(port),
            _ => {}
        }
        Ok(())
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while self.bridge.next_deadline() <= end {
            self.bridge.tick(self.bridge.next_deadline());
        }
        self.now = end;
    }

    /// The actions say the states that the ports have; no port sends too much; what it sends is
    /// valid, but for information from others that is too old.
    fn check(&mut self) -> Result<(), String> {
        for action in self.bridge.take_actions() {
            match action {
                Action::SetState { port, state } => self.states[usize::from(port)] = state,
                Action::Transmit { port, frame } => {
                    self.sent[usize::from(port)] += 1;
                    let is_config = frame[20] == 0;
                    ensure(Bpdu::decode(&frame).is_ok() || is_config, || {
                        format!("{:?} is sent", &frame[..FRAME_LEN])
                    })?;
                }
                _ => {}
            }
        }
        for port in 0..PORTS {
            let at = usize::from(port);
            let state = self.bridge.port(port).map(|PortStatus { state, .. }| state);
            ensure(state == Some(self.states[at]), || {
                format!("port {port} is {state:?}, not {:?}", self.states[at])
            })?;
            let most = u64::from(HOLD_COUNT) + self.now.as_secs();
            ensure(self.sent[at] <= most, || {
                format!("port {port} sent {} in {:?}", self.sent[at], self.now)
            })?;
        }
        Ok(())
    }
}
