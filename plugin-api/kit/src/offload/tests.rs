//! The converter as a whole: what comes out of it for what went in.

use fastrand::Rng;

use crate::{MAX_FRAME, Offloads, VnetHeader};

use super::samples::{Connection, payload};
use super::{Changed, Converter, Progress, packet};

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;
const CWR: u8 = 0x80;

type Framed = (VnetHeader, Vec<u8>);

/// Puts frames through a converter, as many at a time as it takes. A sink takes `chunk` at a time.
/// Returns what came out and how many were lost.
fn pass(frames: &[Framed], offloads: Offloads, chunk: usize) -> (Vec<Framed>, u64) {
    let mut converter = Converter::default();
    let (mut out, mut lost) = (Vec::new(), 0);
    let mut waiting = frames.iter();
    while !waiting.as_slice().is_empty() {
        let mut rx = converter.rx();
        while let Some((header, frame)) = waiting.as_slice().first() {
            if !rx.push_offloaded(*header, frame) {
                break;
            }
            waiting.next();
        }
        while let Some(tx) = converter.tx(offloads) {
            let taken = tx.len().min(chunk);
            out.extend((0..taken).map(|n| {
                let frame = tx.frame(n).unwrap();
                (frame.header(), frame.bytes().to_vec())
            }));
            converter.taken(taken);
        }
        assert!(converter.is_empty());
        lost += converter.take_dropped();
    }
    (out, lost)
}

fn plain(frames: Vec<Vec<u8>>) -> Vec<Framed> {
    frames
        .into_iter()
        .map(|frame| (VnetHeader::default(), frame))
        .collect()
}

/// Connections of every kind that can be cut.
fn kinds() -> Vec<Connection> {
    let tag = [0x81, 0, 0x20, 5];
    let two = [0x88, 0xa8, 0, 9, 0x81, 0, 0x20, 5];
    let mut kinds = Vec::new();
    for base in [
        Connection::tcp(false),
        Connection::tcp(true),
        Connection::udp(false),
        Connection::udp(true),
    ] {
        kinds.push(base.clone());
        for tags in [&tag[..], &two] {
            kinds.push(Connection {
                tags: tags.to_vec(),
                ..base.clone()
            });
        }
        let protocol = if base.is_udp { 17 } else { 6 };
        let ip_options = match base.is_v6 {
            // Hop-by-hop options, then destination options of two units.
            true => [
                &[0, 60, 0, 1, 4, 0, 0, 0, 0, protocol, 1, 1, 12][..],
                &[0; 12],
            ]
            .concat(),
            false => vec![7, 7, 4, 0, 0, 0, 0, 0],
        };
        kinds.push(Connection { ip_options, ..base });
    }
    kinds
}

#[test]
fn super_frames_are_cut_as_a_card_would() {
    let mut random = Rng::with_seed(1);
    for kind in kinds() {
        for (len, size) in [
            (1, 1448),
            (1448, 1448),
            (1449, 1448),
            (60_000, 1400),
            (9, 1),
        ] {
            for (flags, ecn) in [(ACK, 0), (ACK | PSH | FIN, 0), (ACK | PSH | CWR, 0x80)] {
                let mut connection = kind.clone();
                let payload = payload(&mut random, len);
                let mut header = connection.header(size);
                header.hdr_len = random.u16(..);
                header.gso_type |= if connection.is_udp { 0 } else { ecn };
                let whole = connection.unfinished(flags, &payload);
                let expected = plain(connection.packets(flags, &payload, size.into()));
                for chunk in [usize::MAX, 10] {
                    let (out, lost) = pass(&[(header, whole.clone())], Offloads::NONE, chunk);
                    assert_eq!(lost, 0, "{kind:?}");
                    assert!(out == expected, "{kind:?} {len} {size} {flags}");
                }
            }
        }
    }
}

#[test]
fn a_super_frame_without_a_partial_checksum_is_cut_too() {
    let mut connection = Connection::tcp(true);
    let payload = payload(&mut Rng::with_seed(2), 5000);
    let whole = connection.packet(ACK, &payload);
    let header = VnetHeader {
        flags: 0,
        ..connection.header(1000)
    };
    let expected = plain(connection.packets(ACK, &payload, 1000));
    assert_eq!(pass(&[(header, whole)], Offloads::NONE, 99), (expected, 0));
}

#[test]
fn checksums_are_completed() {
    for kind in kinds() {
        for len in [0, 1, 2, 999, 1448] {
            let payload = payload(&mut Rng::with_seed(3), len);
            let header = VnetHeader {
                gso_type: 0,
                gso_size: 0,
                ..kind.header(0)
            };
            let frame = kind.unfinished(ACK, &payload);
            let expected = kind.packet(ACK, &payload);
            let (out, _) = pass(&[(header, frame.clone())], Offloads::NONE, 1);
            assert!(out == plain(vec![expected]), "{kind:?} {len}");
            let (out, _) = pass(&[(header, frame.clone())], Offloads::CSUM, 1);
            assert!(out == [(header, frame)], "left to who takes it");
        }
    }
}

#[test]
fn a_sink_is_given_what_it_takes() {
    let payload = payload(&mut Rng::with_seed(4), 4000);
    let frames: Vec<Framed> = kinds()
        .iter()
        .map(|kind| (kind.header(1000), kind.unfinished(ACK, &payload)))
        .collect();
    assert!(pass(&frames, Offloads::ALL, 3) == (frames.clone(), 0));
    let tcp = Offloads(Offloads::CSUM.0 | Offloads::TSO4.0);
    let (out, lost) = pass(&frames, tcp, 3);
    assert_eq!(lost, 0);
    let untouched = |framed: &&Framed| framed.0.gso_type == 1;
    assert!(
        out.iter()
            .filter(untouched)
            .eq(frames.iter().filter(untouched))
    );
    assert_eq!(
        out.iter().filter(|framed| framed.0.is_plain()).count(),
        12 * 4
    );
}

fn examined(header: VnetHeader, frame: &[u8]) -> Option<super::Segments> {
    let mut batch = crate::Batch::new();
    assert!(batch.rx().push_offloaded(header, frame));
    super::examine(batch.tx(0).frame(0).unwrap())
}

#[test]
fn what_makes_no_sense_is_dropped_and_counted() {
    let connection = Connection::tcp(false);
    let frame = connection.unfinished(ACK, &[5; 3000]);
    let good = connection.header(1000);
    for (gso_type, gso_size, csum_start, csum_offset) in [
        (1, 0, 34, 16),
        (4, 1000, 34, 16),
        (5, 1000, 34, 16),
        (3, 1000, 34, 16),
        (0x80, 1000, 34, 16),
        (1, 1000, 35, 16),
        (1, 1000, 0xffff, 16),
        (1, 1000, 34, 0xffff),
        (0, 1000, 3052, 16),
        (0, 1000, 34, 0xffff),
        (0, 1000, 0, 16),
    ] {
        let header = VnetHeader {
            gso_type,
            gso_size,
            csum_start,
            csum_offset,
            ..good
        };
        let (out, lost) = pass(
            &[(header, frame.clone()), (good, frame.clone())],
            Offloads::NONE,
            9,
        );
        assert_eq!((out.len(), lost), (3, 1), "{header:?}");
        assert_eq!(examined(header, &frame), None, "{header:?}");
    }
    let (count, longest) = (3, 1066);
    let segments = super::Segments { count, longest };
    assert_eq!(examined(good, &frame), Some(segments));
    let mut fragment = frame.clone();
    fragment[20] = 0x20;
    let mut short = frame;
    short.truncate(40);
    for frame in [fragment, short] {
        assert_eq!(pass(&[(good, frame)], Offloads::NONE, 9), (vec![], 1));
    }
}

/// The frames of some connections, interleaved, with all that happens to a stream.
fn streams(random: &mut Rng) -> Vec<Vec<u8>> {
    let mut queues: Vec<std::vec::IntoIter<Vec<u8>>> = Vec::new();
    for port in 0..1 + random.usize(..5) {
        let mut connection = Connection::tcp(random.bool());
        connection.port = port as u16;
        connection.sequence = random.u32(..);
        if random.usize(..4) == 0 {
            connection.tags = vec![0x81, 0, 0, 3];
        }
        let mut frames = Vec::new();
        for _ in 0..1 + random.usize(..6) {
            match random.usize(..8) {
                0 => connection.acknowledgement += 1,
                1 => connection.window += 1,
                2 => connection.tos = random.usize(..4) as u8,
                3 => connection.sequence = connection.sequence.wrapping_sub(1448),
                4 => connection.identification = random.u16(..),
                5 => frames.push(connection.packet(ACK, &[])),
                _ => {}
            }
            let flags = [ACK, ACK | PSH, ACK | PSH | FIN, ACK | CWR, ACK | 0x40, 0x18];
            let flags = flags[random.usize(..flags.len())];
            let size = [1448, 1000, 536, 77, 1][random.usize(..5)];
            let len = 1 + random.usize(..12 * size);
            frames.extend(connection.packets(flags, &payload(random, len), size));
            if random.usize(..9) == 0 {
                let last = frames.last_mut().unwrap();
                let at = random.usize(..last.len());
                last[at] ^= 1 << random.usize(..8);
            }
        }
        queues.push(frames.into_iter());
    }
    let mut mixed = Vec::new();
    while !queues.is_empty() {
        let at = random.usize(..queues.len());
        mixed.extend(queues[at].by_ref().take(1 + random.usize(..20)));
        queues.retain(|queue| !queue.as_slice().is_empty());
    }
    mixed
}

/// Frames by destination port: what order means.
fn by_connection(frames: &[Framed]) -> std::collections::BTreeMap<Vec<u8>, Vec<&[u8]>> {
    let mut map = std::collections::BTreeMap::<_, Vec<_>>::new();
    for (_, frame) in frames {
        let key = match packet::Packet::parse(frame) {
            Some(packet) => packet.transport()[..4].to_vec(),
            None => Vec::new(),
        };
        map.entry(key).or_default().push(&frame[..]);
    }
    map
}

#[test]
fn cutting_gives_back_what_was_put_together() {
    let mut random = Rng::with_seed(5);
    let (mut before, mut between) = (0, 0);
    for _ in 0..400 {
        let frames = plain(streams(&mut random));
        let (together, lost) = pass(&frames, Offloads::ALL, usize::MAX);
        assert_eq!(lost, 0);
        assert!(together.iter().all(|framed| framed.1.len() <= MAX_FRAME));
        before += frames.len();
        between += together.len();
        let (again, lost) = pass(&together, Offloads::NONE, 10);
        assert_eq!((again.len(), lost), (frames.len(), 0));
        assert!(by_connection(&again) == by_connection(&frames));
    }
    assert!(between * 2 < before, "{between} of {before}");
}

/// How many frames come out for `frames` where everything is taken.
fn together(frames: &[Vec<u8>]) -> usize {
    let (out, lost) = pass(&plain(frames.to_vec()), Offloads::ALL, usize::MAX);
    assert_eq!(lost, 0);
    out.len()
}

#[test]
fn a_super_frame_is_what_a_kernel_makes() {
    for is_v6 in [false, true] {
        let connection = Connection {
            tags: vec![0x81, 0, 0, 3],
            ..Connection::tcp(is_v6)
        };
        let payload = payload(&mut Rng::with_seed(6), 4000);
        let frames = connection.clone().packets(ACK | PSH | CWR, &payload, 1448);
        let (out, _) = pass(&plain(frames), Offloads::ALL, 9);
        let mut header = connection.header(1448);
        header.gso_type |= 0x80;
        assert!(out == [(header, connection.unfinished(ACK | PSH | CWR, &payload))]);
    }
}

#[test]
fn what_differs_stays_apart() {
    let one = Connection::tcp(false);
    let two = |change: &dyn Fn(&mut Connection)| {
        let mut connection = one.clone();
        let mut frames = connection.packets(ACK, &[1; 1000], 1000);
        change(&mut connection);
        frames.extend(connection.packets(ACK, &[2; 1000], 1000));
        together(&frames)
    };
    assert_eq!(two(&|_| {}), 1);
    assert_eq!(
        two(&|c| c.identification -= 1),
        1,
        "one identification for all"
    );
    assert_eq!(two(&|c| c.sequence += 1), 2);
    assert_eq!(two(&|c| c.acknowledgement += 1), 2);
    assert_eq!(two(&|c| c.window += 1), 2);
    assert_eq!(two(&|c| c.tos += 1), 2);
    assert_eq!(two(&|c| c.port += 1), 2);
    assert_eq!(two(&|c| c.identification = 7), 2);
    assert_eq!(two(&|c| c.tcp_options[11] += 1), 2);
    assert_eq!(two(&|c| c.tcp_options.truncate(4)), 2);
    assert_eq!(two(&|c| c.tags = vec![0x81, 0, 0, 1]), 2);
    assert_eq!(two(&|c| c.ip_options = vec![1; 4]), 2);
    assert_eq!(two(&|c| c.is_udp = true), 2);
    for flags in [0x12, 0x14, 0x30, 0x90, 0x50, 0] {
        let mut connection = one.clone();
        let mut frames = connection.packets(ACK, &[1; 1000], 1000);
        frames.push(connection.packet(flags, &[2; 1000]));
        assert_eq!(together(&frames), 2, "{flags:#x}");
    }
    assert_eq!(
        together(&Connection::udp(false).packets(0, &[1; 3000], 1000)),
        3
    );
}

#[test]
fn a_wrong_checksum_stays_alone_and_as_it_was() {
    for is_v6 in [false, true] {
        let good = Connection::tcp(is_v6).packets(ACK, &[7; 5000], 1000);
        for bad in 0..5 {
            let mut frames = good.clone();
            frames[bad][90] ^= 0x40;
            let (out, _) = pass(&plain(frames.clone()), Offloads::ALL, 9);
            let alone = out.iter().filter(|framed| framed.1 == frames[bad]).count();
            assert_eq!(alone, 1);
            assert_eq!(out.len(), [2, 3, 3, 3, 2][bad]);
        }
    }
    let mut frames = Connection::tcp(false).packets(ACK, &[7; 2000], 1000);
    frames[1][24] ^= 1;
    assert_eq!(together(&frames), 2, "the IP header's checksum counts too");
}

#[test]
fn padding_is_no_payload() {
    let mut frames = Connection::tcp(false).packets(ACK, &[7; 1001], 1000);
    frames[1].extend([0; 5]);
    let (out, _) = pass(&plain(frames), Offloads::ALL, 9);
    assert!(out[0].1 == Connection::tcp(false).unfinished(ACK, &[7; 1001]));
}

#[test]
fn no_packet_grows_beyond_what_ip_can_say() {
    let frames = Connection::tcp(true).packets(ACK, &[7; 8000 * 20], 8000);
    let (out, lost) = pass(&plain(frames), Offloads::ALL, 9);
    let lens: Vec<usize> = out.iter().map(|framed| framed.1.len() - 86).collect();
    assert_eq!((lens, lost), (vec![64_000, 64_000, 32_000], 0));
}

#[test]
fn a_sink_that_takes_less_than_it_did_gets_nothing_unfinished() {
    let frames = Connection::tcp(false).packets(ACK, &[7; 20_000], 1000);
    let mut converter = Converter::default();
    for frame in &frames {
        assert!(converter.rx_more(frame));
    }
    assert_eq!(converter.tx(Offloads::ALL).unwrap().len(), 1);
    assert!(converter.tx(Offloads::NONE).is_none());
    assert_eq!(converter.take_dropped(), 1);
    assert!(converter.is_empty());
}

#[test]
fn what_is_left_can_be_given_up() {
    let connection = Connection::tcp(false);
    let frame = connection.unfinished(ACK, &[7; 60_000]);
    let mut converter = Converter::default();
    let mut rx = converter.rx();
    assert!(rx.push_offloaded(connection.header(1000), &frame));
    assert!(rx.push(&frame[..60]));
    assert_eq!(converter.tx(Offloads::NONE).unwrap().len(), 32);
    converter.taken(12);
    assert_eq!(converter.discard(), 22);
    assert!(converter.is_empty());
}

impl Converter {
    fn rx_more(&mut self, frame: &[u8]) -> bool {
        self.received.rx().push(frame)
    }
}

#[test]
fn hostile_frames_do_no_harm() {
    let mut random = Rng::with_seed(7);
    let kinds = kinds();
    for _ in 0..4000 {
        let mut frames = Vec::new();
        for _ in 0..25 {
            let kind = &kinds[random.usize(..kinds.len())];
            let payload = vec![3; random.usize(..2000)];
            let is_plain = random.usize(..3) == 0;
            let (mut header, mut frame) = match is_plain {
                true => (VnetHeader::default(), kind.packet(ACK, &payload)),
                false => (kind.header(500), kind.unfinished(ACK, &payload)),
            };
            let mut bytes = header.to_bytes();
            for _ in 0..random.usize(..4) {
                let at = random.usize(..100).min(frame.len() - 1);
                frame[at] = random.u8(..);
                if !is_plain {
                    bytes[random.usize(..10)] = random.u8(..);
                }
            }
            header = VnetHeader::from_bytes(&bytes).unwrap();
            if random.usize(..4) == 0 {
                frame.truncate(14 + random.usize(..frame.len() - 13));
            }
            frames.push((header, frame));
        }
        for offloads in [Offloads::NONE, Offloads::CSUM, Offloads::ALL] {
            let (out, _) = pass(&frames, offloads, 20);
            let fits = |framed: &Framed| super::suits(framed.0, offloads);
            assert!(out.iter().all(fits));
        }
    }
}

#[test]
fn ecn_goes_with_tcp_and_with_nothing_else() {
    let connection = Connection::tcp(false);
    let frame = connection.unfinished(ACK, &[7; 3000]);
    let with = |gso_type| VnetHeader {
        gso_type,
        ..connection.header(1000)
    };
    let (ecn, all) = (Offloads::TSO_ECN, Offloads::ALL);
    for gso_type in [0x81, 0x84] {
        assert!(super::suits(with(gso_type), all), "{gso_type:#x}");
        let others = Offloads(all.0 & !ecn.0);
        assert!(!super::suits(with(gso_type), others), "{gso_type:#x}");
    }
    for gso_type in [0x80, 0x82, 0x83, 0x85, 0xff] {
        let (out, lost) = pass(&[(with(gso_type), frame.clone())], all, 9);
        assert_eq!((out.len(), lost), (0, 1), "{gso_type:#x}");
    }
}

#[test]
fn a_plan_is_made_for_the_frames_that_are_left() {
    let frames = Connection::tcp(false).packets(ACK, &[7; 3000], 1000);
    let mut batch = crate::Batch::new();
    for frame in &frames {
        assert!(batch.rx().push(frame));
    }
    let mut out = Changed::default();
    assert!(out.coalesce(&batch.tx(1), Offloads::ALL, |_| true));
    assert_eq!(out.tx().0.len(), 1);
    assert_eq!(out.tx().0.frame(0).unwrap().bytes().len(), 66 + 2000);
}

#[test]
fn a_changed_batch_knows_where_its_frames_come_from() {
    let connection = Connection::tcp(false);
    let whole = connection.unfinished(ACK, &[7; 20_000]);
    let plain = connection.packet(ACK, &[7; 60]);
    let mut batch = crate::Batch::new();
    for size in [0, 1000, 900, 0, 1000] {
        let (header, frame) = match size {
            0 => (VnetHeader::default(), &plain),
            size => (connection.header(size), &whole),
        };
        assert!(batch.rx().push_offloaded(header, frame));
    }
    let (frames, mut at) = (batch.tx(0), Progress::default());
    let (mut out, mut origins) = (Changed::default(), Vec::new());
    loop {
        out.resolve(&frames, &mut at, Offloads::NONE, |number| number != 1);
        if out.is_empty() {
            break;
        }
        let (changed, from) = out.tx();
        assert!(changed.frames().all(|frame| frame.header().is_plain()));
        assert_eq!(from.len(), changed.len());
        origins.extend_from_slice(from);
    }
    let expected = [&[0][..], &[2; 23], &[3], &[4; 20]].concat();
    assert_eq!((origins, out.take_dropped()), (expected, 0));
}

#[test]
fn only_what_is_wanted_is_put_together() {
    let (one, other) = (Connection::tcp(false), Connection::tcp(true));
    let mut batch = crate::Batch::new();
    for connection in [one, other] {
        for frame in connection.clone().packets(ACK, &[7; 4000], 1000) {
            assert!(batch.rx().push(&frame));
        }
    }
    let (frames, mut out) = (batch.tx(0), Changed::default());
    assert!(out.coalesce(&frames, Offloads::ALL, |_| true));
    assert_eq!(out.tx().1, [0, 4]);
    assert!(out.coalesce(&frames, Offloads::ALL, |number| number > 2));
    assert_eq!(out.tx().1, [3, 4]);
    assert!(!out.coalesce(&frames, Offloads::ALL, |number| number == 2));
    assert!(!out.coalesce(&frames, Offloads::NONE, |_| true));
    assert!(out.is_empty());
}
