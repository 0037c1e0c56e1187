//! Legacy clients, clients that take super-frames, the host and the bridge on one switch.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use vdens_plugin_kit::negotiation::{Event, Negotiation};
use vdens_plugin_kit::tap::Tap;
use vdens_plugin_kit::wire::hello::{Body, Cable, Message, Nonce, SUPER_PREFIX};
use vdens_plugin_kit::{
    Bridge, Link, MAX_FRAME, Offloads, PanelAddress, State, VNET_HEADER_LEN, VnetHeader,
};

use crate::Kind;
use crate::port::BridgeKey;

use super::{BROADCAST, Bench, Client, OURS, frame, meet, send_messages};

/// Bytes of the headers in front of the payload: Ethernet, IPv4, TCP.
const HEADERS: usize = 14 + 20 + 20;

/// The sum of RFC 1071.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for pair in parts.concat().chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A TCP segment over IPv4 from station `source` to station `destination`, with its checksums.
pub(super) fn tcp(destination: u8, source: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame(destination, source, HEADERS);
    bytes[12..14].copy_from_slice(&[8, 0]);
    bytes.extend(payload);
    let total = (bytes.len() - 14) as u16;
    bytes[14] = 0x45;
    bytes[16..18].copy_from_slice(&total.to_be_bytes());
    // Don't fragment; time to live; TCP; 10.0.0.source to 10.0.0.destination.
    bytes[20] = 0x40;
    bytes[22..24].copy_from_slice(&[64, 6]);
    bytes[26..34].copy_from_slice(&[10, 0, 0, source, 10, 0, 0, destination]);
    bytes[34..38].copy_from_slice(&[0, 80, 0, 81]);
    bytes[38..42].copy_from_slice(&sequence.to_be_bytes());
    bytes[46..50].copy_from_slice(&[0x50, 0x10, 1, 0]);
    let ip = !sum(&[&bytes[14..34]]);
    bytes[24..26].copy_from_slice(&ip.to_be_bytes());
    let checksum = !sum(&[&pseudo_header(&bytes), &bytes[34..]]);
    bytes[50..52].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn pseudo_header(bytes: &[u8]) -> Vec<u8> {
    let len = (bytes.len() - 34) as u16;
    [&bytes[26..34], &[0, 6], &len.to_be_bytes()].concat()
}

/// The same without its checksum: with the sum of the pseudo-header in its place.
pub(super) fn unfinished(mut bytes: Vec<u8>) -> Vec<u8> {
    let partial = sum(&[&pseudo_header(&bytes)]);
    bytes[50..52].copy_from_slice(&partial.to_be_bytes());
    bytes
}

pub(super) const NEEDS_CSUM: VnetHeader = VnetHeader {
    flags: 1,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 34,
    csum_offset: 16,
};

/// TCP over IPv4, to be cut into pieces of 1000 bytes.
pub(super) const TSO: VnetHeader = VnetHeader {
    gso_type: 1,
    hdr_len: HEADERS as u16,
    gso_size: 1000,
    ..NEEDS_CSUM
};

pub(super) fn wrapped(header: VnetHeader, frame: &[u8]) -> Vec<u8> {
    [&SUPER_PREFIX[..], &header.to_bytes(), frame].concat()
}

pub(super) fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * n / 7) as u8).collect()
}

/// What a super-frame of `payload` is cut into.
pub(super) fn segments(destination: u8, source: u8, payload: &[u8]) -> Vec<Vec<u8>> {
    let pieces = payload.chunks(TSO.gso_size.into()).enumerate();
    let segment = |(n, piece): (usize, &[u8])| {
        let mut bytes = tcp(destination, source, n as u32 * 1000, piece);
        // The identification counts up, which changes the header's checksum.
        bytes[18..20].copy_from_slice(&(n as u16).to_be_bytes());
        bytes[24..26].fill(0);
        let checksum = !sum(&[&bytes[14..34]]);
        bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
        bytes
    };
    pieces.map(segment).collect()
}

impl Client {
    pub(super) fn all(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.receive(100_000)).collect()
    }
}

impl Bench {
    /// A client that takes super-frames.
    pub(super) fn plug_ours(&mut self) -> Client {
        self.meet_ours().0
    }

    /// A client that takes super-frames, and its side of the conversation with the switch.
    fn meet_ours(&mut self) -> (Client, Negotiation) {
        let client = self.try_plug_as(0, OURS).unwrap();
        let (mut negotiation, events) = meet(&client);
        assert_eq!(events, [Event::Proven, Event::Offloads]);
        negotiation.set_host_offloads(Offloads::ALL);
        send_messages(&client, &mut negotiation);
        self.run();
        (client, negotiation)
    }

    /// The far side of a tap on a bridge: what is written to it comes from the bridge.
    pub(super) fn plug_bridge(&mut self) -> UnixDatagram {
        self.plug_bridge_of(0)
    }

    /// The same for the bridge of a VLAN.
    pub(super) fn plug_bridge_of(&mut self, vlan: u16) -> UnixDatagram {
        self.plug_bridge_as(BridgeKey::Vlan(vlan))
    }

    /// The same for any bridge.
    pub(super) fn plug_bridge_as(&mut self, key: BridgeKey) -> UnixDatagram {
        let (near, far) = UnixDatagram::pair().unwrap();
        for socket in [&near, &far] {
            socket.set_nonblocking(true).unwrap();
        }
        let tap = Tap::from_fd(OwnedFd::from(near), "hub".into());
        let (panel, place) = (1, "hub".into());
        let panel_address = PanelAddress { panel, place };
        let bridge = Bridge { panel_address, tap };
        self.switch.set_bridge(key, bridge);
        far
    }

    fn malformed(&mut self) -> u64 {
        let ports = self.switch.fabric().ports.iter_mut();
        ports.map(|(_, port)| port.counters.refused.malformed).sum()
    }
}

/// What came out of the bridge.
pub(super) fn bridged(bridge: &UnixDatagram) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut bytes = vec![0; 100_000];
    let next = || {
        let len = bridge.recv(&mut bytes).ok()?;
        let (header, frame) = bytes[..len].split_at(VNET_HEADER_LEN);
        Some((VnetHeader::from_bytes(header)?, frame.to_vec()))
    };
    std::iter::from_fn(next).collect()
}

pub(super) const TAKES_ALL: State = State::UP.with_offloads(Offloads::ALL);

#[test]
fn a_super_frame_reaches_everybody_in_the_form_it_takes() {
    let mut bench = Bench::new("");
    bench.switch.other_side(TAKES_ALL);
    let (sender, ours) = (bench.plug_ours(), bench.plug_ours());
    let (one, two) = (bench.plug(), bench.plug());
    let bridge = bench.plug_bridge();
    let payload = payload(60_500);
    let whole = unfinished(tcp(BROADCAST, 1, 0, &payload));
    let datagram = wrapped(TSO, &whole);
    let before = frame(BROADCAST, 1, 60);
    sender.send(&before);
    sender.send(&datagram);
    sender.send(&before);
    bench.run();
    assert_eq!(ours.all(), [&before, &datagram, &before].map(Clone::clone));
    let mut expected = segments(BROADCAST, 1, &payload);
    expected.insert(0, before.clone());
    expected.push(before.clone());
    assert_eq!(expected.len(), 63, "more than a batch holds");
    for legacy in [&one, &two] {
        assert!(legacy.all() == expected);
    }
    assert_eq!(bench.host, [before.clone(), whole.clone(), before.clone()]);
    let plain = VnetHeader::default();
    let same = [(plain, before.clone()), (TSO, whole), (plain, before)];
    assert_eq!(bridged(&bridge), same);
    assert_eq!((sender.drain(), bench.malformed()), (0, 0));
}

#[test]
fn a_hub_hears_everything_on_the_panel_and_tells_it_there() {
    let mut bench = Bench::of(Kind::Hub, "");
    bench.switch.other_side(TAKES_ALL);
    let (a, b) = (bench.plug(), bench.plug_ours());
    let bridge = bench.plug_bridge();
    let plain = |bytes: &[u8]| [&VnetHeader::default().to_bytes(), bytes].concat();
    // Both stations are behind the tap, and both are ports' too.
    for (destination, source) in [(1, 2), (2, 1)] {
        let private = frame(destination, source, 60);
        bridge.send(&plain(&private)).unwrap();
        a.send(&private);
        bench.run();
        assert_eq!(
            (a.all(), b.all()),
            (vec![private.clone()], vec![private.clone(); 2])
        );
        assert_eq!(bridged(&bridge), [(VnetHeader::default(), private.clone())]);
        assert_eq!(std::mem::take(&mut bench.host), [private.clone(), private]);
    }
}

#[test]
fn a_checksum_left_undone_is_completed_for_a_legacy_port_only() {
    let mut bench = Bench::new("");
    bench.switch.other_side(State::UP);
    let (sender, ours, legacy) = (bench.plug_ours(), bench.plug_ours(), bench.plug());
    let bridge = bench.plug_bridge();
    let complete = tcp(BROADCAST, 1, 7, &payload(200));
    let whole = unfinished(complete.clone());
    assert_ne!(complete, whole);
    sender.send(&wrapped(NEEDS_CSUM, &whole));
    bench.run();
    let legacy_form = std::slice::from_ref(&complete);
    assert_eq!(legacy.all(), legacy_form);
    assert_eq!(bench.host, legacy_form, "it takes none");
    assert_eq!(ours.all(), [wrapped(NEEDS_CSUM, &whole)]);
    assert_eq!(bridged(&bridge), [(NEEDS_CSUM, whole.clone())]);

    // the same from the bridge, from the host, and to one station alone.
    legacy.send(&frame(BROADCAST, 5, 60));
    bench.run();
    let complete = tcp(5, 9, 7, &payload(200));
    let whole = unfinished(complete.clone());
    bridge
        .send(&[&NEEDS_CSUM.to_bytes(), &whole[..]].concat())
        .unwrap();
    bench.run();
    let mut batch = vdens_plugin_kit::Batch::new();
    assert!(batch.rx().push_offloaded(NEEDS_CSUM, &whole));
    assert_eq!(bench.switch.send(&mut batch.tx(0)).unwrap(), 1);
    assert_eq!(legacy.all(), [complete.clone(), complete]);
}

#[test]
fn what_a_legacy_client_sends_is_put_together_for_those_who_take_it() {
    let mut bench = Bench::new("");
    bench.switch.other_side(TAKES_ALL);
    let (sender, legacy) = (bench.plug(), bench.plug());
    let (ours, mut negotiation) = bench.meet_ours();
    let bridge = bench.plug_bridge();
    let payload = payload(8000);
    let frames = segments(BROADCAST, 1, &payload);
    for frame in &frames {
        sender.send(frame);
    }
    bench.run();
    let whole = unfinished(tcp(BROADCAST, 1, 0, &payload));
    assert_eq!(ours.all(), [wrapped(TSO, &whole)]);
    assert_eq!(bridged(&bridge), [(TSO, whole)]);
    assert_eq!(legacy.all(), frames, "as they were");
    assert_eq!(bench.host, frames, "left to the host's own stage");

    // Nothing is joined where no port takes it.
    negotiation.set_host_offloads(Offloads::NONE);
    send_messages(&ours, &mut negotiation);
    ours.send(&frame(BROADCAST, 6, 60));
    bench.run();
    sender.send(&frames[0]);
    sender.send(&frames[1]);
    bench.run();
    assert_eq!(ours.all(), frames[..2]);
}

#[test]
fn super_frames_that_make_no_sense_go_nowhere() {
    let mut bench = Bench::new("");
    bench.switch.other_side(TAKES_ALL);
    let (sender, ours, legacy) = (bench.plug_ours(), bench.plug_ours(), bench.plug());
    let bridge = bench.plug_bridge();
    let whole = unfinished(tcp(BROADCAST, 1, 0, &payload(60_000)));
    let mut fragment = whole.clone();
    fragment[20] = 0x20;
    let cut = |gso_type, gso_size| VnetHeader {
        gso_type,
        gso_size,
        ..TSO
    };
    let checksum = |csum_start, csum_offset| VnetHeader {
        csum_start,
        csum_offset,
        ..NEEDS_CSUM
    };
    let bad = [
        // Endless, or too many or too long pieces.
        wrapped(cut(1, 0), &whole),
        wrapped(cut(1, 1), &whole),
        wrapped(cut(1, 9300), &whole),
        // Not what the header says, or of no kind at all.
        wrapped(cut(4, 1000), &whole),
        wrapped(cut(0x7f, 1000), &whole),
        wrapped(TSO, &fragment),
        wrapped(TSO, &whole[..60]),
        // Not to be cut, and too long as it is.
        wrapped(NEEDS_CSUM, &whole),
        wrapped(VnetHeader::default(), &whole),
        // A checksum outside the frame.
        wrapped(checksum(0xffff, 16), &whole[..1000]),
        wrapped(checksum(34, 0xffff), &whole[..1000]),
        wrapped(checksum(0, 16), &whole[..1000]),
        // No frame.
        wrapped(TSO, &whole[..13]),
        SUPER_PREFIX.to_vec(),
        wrapped(TSO, &vec![0; MAX_FRAME + 1]),
    ];
    for datagram in &bad {
        sender.send(datagram);
        bench.run();
    }
    assert_eq!(bench.malformed(), bad.len() as u64);
    // A message in a wrapping would come to the others as if the switch had sent it.
    let message = Message {
        cable: Cable::default(),
        to: Nonce(1),
        from: Nonce(2),
        body: Body::Plugged,
    }
    .encode();
    sender.send(&wrapped(VnetHeader::default(), &message));
    sender.send(&wrapped(VnetHeader::default(), &wrapped(TSO, &whole)));
    // A legacy client's super-frame is none.
    legacy.send(&wrapped(TSO, &whole[..5000]));
    bench.run();
    assert_eq!((ours.drain(), legacy.drain(), sender.drain()), (0, 0, 0));
    assert_eq!((bench.host.len(), bridged(&bridge).len()), (0, 0));
    sender.send(&wrapped(TSO, &whole));
    bench.run();
    assert_eq!((ours.drain(), legacy.drain()), (1, 60), "it still works");
}

#[test]
fn a_stuck_client_holds_megabytes_of_super_frames_and_others_do_not_wait() {
    let mut bench = Bench::new("");
    let (sender, stuck, legacy) = (bench.plug_ours(), bench.plug_ours(), bench.plug());
    stuck.send(&frame(BROADCAST, 2, 60));
    legacy.send(&frame(BROADCAST, 3, 60));
    bench.run();
    for client in [&sender, &stuck, &legacy] {
        client.drain();
    }
    let payload = payload(64_000);
    const SENT: u32 = 300;
    for n in 0..SENT {
        let mut whole = tcp(2, 1, 0, &payload);
        whole[38..42].copy_from_slice(&n.to_be_bytes());
        sender.send(&wrapped(TSO, &unfinished(whole)));
        sender.send(&wrapped(TSO, &unfinished(tcp(3, 1, 0, &payload[..3000]))));
        bench.run();
        assert_eq!(legacy.drain(), 3);
    }
    assert!(!bench.is_ready(), "nothing to do while it is stuck");
    let mut numbers = Vec::new();
    while let Some(bytes) = stuck.receive(100_000) {
        let at = SUPER_PREFIX.len() + VNET_HEADER_LEN + 38;
        numbers.push(u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()));
        bench.run();
    }
    assert!(
        numbers.len() * 64_000 > (4 << 20) - 64_000,
        "{}",
        numbers.len()
    );
    assert!(numbers.len() < SENT as usize);
    assert!(numbers.iter().copied().eq(0..numbers.len() as u32));
}
