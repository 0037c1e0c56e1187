//! Offloads done in user space: cutting super-frames and completing checksums (`Cut`), putting
//! segments together (`Join`). What comes out is judged by `packets`, which knows nothing of the
//! code that made it.

use fastrand::Rng;
use vdens_plugin_kit::offload::Converter;
use vdens_plugin_kit::{BATCH_FRAMES, MAX_FRAME, MIN_FRAME, Offloads, VNET_HEADER_LEN, VnetHeader};

use super::packets::{ACK, CWR, FIN, Flow, PSH, RST, SYN, Seen, URG, sum};
use super::{Target, append, ensure, pick};

/// What sinks may take.
pub(crate) const SINKS: [Offloads; 5] = [
    Offloads::NONE,
    Offloads::CSUM,
    Offloads(Offloads::CSUM.0 | Offloads::TSO4.0 | Offloads::TSO_ECN.0),
    Offloads(Offloads::CSUM.0 | Offloads::TSO6.0 | Offloads::USO4.0 | Offloads::USO6.0),
    Offloads::ALL,
];

/// Frames with their virtio headers, in one piece of memory.
#[derive(Default)]
struct Frames {
    bytes: Vec<u8>,
    /// Each frame's header, and where in `bytes` it ends.
    ends: Vec<(VnetHeader, usize)>,
}

impl Frames {
    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn push(&mut self, header: VnetHeader, frame: &[u8]) {
        self.bytes.extend(frame);
        self.ends.push((header, self.bytes.len()));
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn iter(&self) -> impl Iterator<Item = (VnetHeader, &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |(header, end)| {
            let frame = &self.bytes[start..*end];
            start = *end;
            (*header, frame)
        })
    }
}

/// Puts a batch of frames, none of which is too short or too long, through a converter, and appends
/// what comes out to `out`. A sink takes `chunk` at a time. Returns how many frames were lost.
fn pass<'a>(
    converter: &mut Converter,
    frames: impl IntoIterator<Item = (VnetHeader, &'a [u8])>,
    sink: Offloads,
    chunk: usize,
    out: &mut Frames,
) -> Result<u64, String> {
    // What an input before left behind when it failed.
    converter.discard();
    let mut rx = converter.rx();
    for (header, frame) in frames {
        ensure(rx.push_offloaded(header, frame), || {
            "there is no room for it".into()
        })?;
    }
    while let Some(tx) = converter.tx(sink) {
        let taken = tx.len().min(chunk);
        ensure(taken > 0, || "nothing is offered".into())?;
        for frame in tx.frames().take(taken) {
            let header = frame.header();
            ensure(suits(header, sink), || {
                format!("{header:?} for a sink that takes {sink:?}")
            })?;
            out.push(header, frame.bytes());
        }
        converter.taken(taken);
    }
    ensure(converter.is_empty(), || "something stays behind".into())?;
    Ok(converter.take_dropped())
}

/// Whether a frame with this header is one for a sink.
fn suits(header: VnetHeader, sink: Offloads) -> bool {
    let wanted = match header.gso_type {
        0 if header.flags & 1 == 0 => return true,
        0 => 0,
        1 => Offloads::TSO4.0,
        0x81 => Offloads::TSO4.0 | Offloads::TSO_ECN.0,
        4 => Offloads::TSO6.0,
        0x84 => Offloads::TSO6.0 | Offloads::TSO_ECN.0,
        5 => Offloads::USO4.0 | Offloads::USO6.0,
        _ => return false,
    };
    sink.contains(Offloads(wanted)) && sink.contains(Offloads::CSUM)
}

/// A frame with a virtio header. An input is a byte for the sink, one for how much it takes at a
/// time, the virtio header and the frame.
#[derive(Default)]
pub(crate) struct Cut {
    converter: Converter,
    out: Frames,
    joined: Frames,
}

impl Target for Cut {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        input.extend([random.u8(..) & random.u8(..), random.u8(..)]);
        let is_plain = random.usize(..2) == 0;
        let mut flow = Flow::any(random, is_plain);
        let size = match random.usize(..8) {
            0 => 1 + random.usize(..3),
            1 => 1448,
            _ => 1 + random.usize(..100),
        };
        let len = match random.usize(..64) {
            0 => random.usize(..65_000),
            1..=4 => random.usize(..3000),
            _ => random.usize(..5 * size.min(200)),
        };
        flow.flags = match random.usize(..4) {
            0 => ACK | random.u8(..),
            1 => ACK | PSH | FIN,
            2 => ACK | CWR,
            _ => ACK,
        };
        let mut payload = Vec::new();
        append(random, &mut payload, len);
        let needs_checksum = random.usize(..8) != 0;
        let mut frame = Vec::new();
        flow.append(&payload, !needs_checksum, &mut frame);
        let mut header = VnetHeader::default();
        if let Some(seen) = Seen::read(&frame) {
            header = VnetHeader {
                flags: u8::from(needs_checksum),
                gso_type: match random.usize(..6) {
                    0 => 0,
                    1 if seen.is_tcp => flow.gso_type() | 0x80,
                    _ => flow.gso_type(),
                },
                hdr_len: seen.payload as u16,
                gso_size: size as u16,
                csum_start: seen.transport as u16,
                csum_offset: (seen.checksum_place() - seen.transport) as u16,
            };
        }
        input.extend(header.to_bytes());
        input.extend(frame);
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let (&[sink, chunk], rest) = input.split_first_chunk().unwrap_or((&[0, 0], &[]));
        let sink = SINKS[usize::from(sink) % SINKS.len()];
        let chunk = 1 + usize::from(chunk) % BATCH_FRAMES;
        let Some(header) = VnetHeader::from_bytes(rest) else {
            return Ok(());
        };
        let frame = &rest[VNET_HEADER_LEN..];
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            return Ok(());
        }
        self.out.clear();
        let lost = pass(
            &mut self.converter,
            [(header, frame)],
            sink,
            chunk,
            &mut self.out,
        )?;
        if suits(header, sink) {
            let is_same = lost == 0 && self.out.iter().eq([(header, frame)]);
            return ensure(is_same, || "what suits is changed".into());
        }
        let is_gone = self.out.len() == 0;
        ensure(lost == u64::from(is_gone), || {
            format!("{lost} lost, {} out", self.out.len())
        })?;
        let is_complete = self.out.iter().all(|(header, _)| header.is_plain());
        ensure(is_complete, || "not complete".into())?;
        match header.gso_type {
            0 => completed(header, frame, &self.out),
            _ => {
                segments(header, frame, &self.out)?;
                self.join_again(header, frame)
            }
        }
    }
}

/// A checksum was completed where the header says, and nothing else changed.
fn completed(header: VnetHeader, frame: &[u8], out: &Frames) -> Result<(), String> {
    let start = usize::from(header.csum_start);
    let place = start + usize::from(header.csum_offset);
    let has_place = start >= MIN_FRAME && place + 2 <= frame.len();
    ensure(has_place == (out.len() == 1), || "lost, or not".into())?;
    let Some((_, done)) = out.iter().next() else {
        return Ok(());
    };
    let checksum = match !sum(&[&frame[start..]]) {
        0 => 0xffff,
        checksum => checksum,
    };
    let mut expected = frame.to_vec();
    expected[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
    ensure(done == expected, || "a wrong checksum".into())
}

/// Whether a super-frame is as a kernel makes it, so that it must be cut.
fn is_sound(header: VnetHeader, seen: &Seen<'_>) -> bool {
    let has_type = match header.gso_type {
        1 | 0x81 => seen.is_tcp && !seen.is_v6,
        4 | 0x84 => seen.is_tcp && seen.is_v6,
        5 => !seen.is_tcp,
        _ => false,
    };
    let is_placed = header.flags & 1 == 0
        || (usize::from(header.csum_start) == seen.transport
            && usize::from(header.csum_start) + usize::from(header.csum_offset)
                == seen.checksum_place());
    has_type && is_placed && header.gso_size > 0 && !seen.payload().is_empty()
}

/// Segments are pieces of the super-frame, no longer than they may be, and each is right in itself.
fn segments(header: VnetHeader, frame: &[u8], out: &Frames) -> Result<(), String> {
    let Some(whole) = Seen::read(frame) else {
        return ensure(out.len() == 0, || "segments of nothing".into());
    };
    ensure(is_sound(header, &whole) == (out.len() > 0), || {
        "lost, or not".into()
    })?;
    let size = usize::from(header.gso_size);
    let pieces = whole.payload().chunks(size.max(1));
    ensure(out.len() == 0 || out.len() == pieces.len(), || {
        format!("{} segments", out.len())
    })?;
    let field = &frame[whole.checksum_place()..whole.checksum_place() + 2];
    // What was wrong before, or is about another destination than the one in the header, stays so.
    let is_right = header.flags & 1 == 0 || field == whole.pseudo_header().to_be_bytes();
    for (n, ((_, bytes), piece)) in out.iter().zip(pieces).enumerate() {
        let seen = Seen::read(bytes).ok_or_else(|| format!("segment {n} is no packet"))?;
        let is_last = n + 1 == out.len();
        ensure(bytes.len() <= whole.payload + size, || {
            format!("segment {n} is too long")
        })?;
        ensure(seen.end == bytes.len() && seen.payload() == piece, || {
            format!("segment {n} has another payload")
        })?;
        ensure(seen.is_ip_right(), || {
            format!("segment {n} has a wrong IPv4 checksum")
        })?;
        ensure(!is_right || seen.is_transport_right(), || {
            format!("segment {n} has a wrong checksum")
        })?;
        ensure(bytes[..whole.ip] == frame[..whole.ip], || {
            format!("segment {n} has another Ethernet header")
        })?;
        if seen.is_tcp {
            let sequence = whole.sequence().wrapping_add((n * size) as u32);
            let cleared = (if is_last { 0 } else { FIN | PSH }) | (if n == 0 { 0 } else { CWR });
            let is_next = seen.sequence() == sequence && seen.flags() == whole.flags() & !cleared;
            ensure(is_next, || {
                format!("segment {n} has a wrong sequence number or flags")
            })?;
        }
    }
    Ok(())
}

impl Cut {
    /// The segments of plain data, put together again, are the super-frame.
    fn join_again(&mut self, header: VnetHeader, frame: &[u8]) -> Result<(), String> {
        let Some(whole) = Seen::read(frame) else {
            return Ok(());
        };
        let field = &frame[whole.checksum_place()..whole.checksum_place() + 2];
        let is_plain = (2..=BATCH_FRAMES).contains(&self.out.len())
            && whole.is_tcp
            && !whole.has_options
            && whole.flags() & (ACK | SYN | RST | URG) == ACK
            && whole.is_ip_right()
            && whole.end == frame.len()
            && header.flags & 1 != 0
            && field == whole.pseudo_header().to_be_bytes();
        if !is_plain {
            return Ok(());
        }
        self.joined.clear();
        let segments = self.out.iter();
        let lost = pass(
            &mut self.converter,
            segments,
            Offloads::ALL,
            BATCH_FRAMES,
            &mut self.joined,
        )?;
        let count = self.joined.len();
        let is_whole = self
            .joined
            .iter()
            .all(|(again, bytes)| again.gso_size == header.gso_size && bytes == frame);
        ensure(lost == 0 && count == 1 && is_whole, || {
            format!("put together again, it is {count} other frames")
        })
    }
}

/// A batch of frames without anything left undone. An input is a byte for the sink, and each frame
/// behind its length.
#[derive(Default)]
pub(crate) struct Join {
    converter: Converter,
    joined: Frames,
    cut: Frames,
}

impl Target for Join {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        input.push(random.u8(..));
        let mut flows = [Flow::any(random, true), Flow::any(random, true)];
        let size = match random.usize(..16) {
            0 => random.usize(..1448) + 1,
            _ => 1 + random.usize(..40),
        };
        let most = *pick(random, &[3, 5, 8, BATCH_FRAMES]);
        let count = 1 + random.usize(..most);
        let mut frame = Vec::new();
        for _ in 0..count {
            let flow = &mut flows[usize::from(random.usize(..4) == 0)];
            flow.flags = match random.usize(..24) {
                0 => random.u8(..),
                1 => ACK | PSH,
                2 => ACK | CWR,
                _ => ACK,
            };
            if random.usize(..24) == 0 {
                flow.sequence = flow.sequence.wrapping_add(1);
            }
            let len = match random.usize(..12) {
                0 => random.usize(..size + 1),
                _ => size,
            };
            let mut payload = Vec::new();
            append(random, &mut payload, len);
            frame.clear();
            flow.append(&payload, true, &mut frame);
            match random.usize(..24) {
                // The padding of a short frame.
                0 => frame.resize(frame.len().max(60), 0),
                1 => {
                    let at = random.usize(..frame.len());
                    frame[at] ^= 1 << random.usize(..8);
                }
                _ => {}
            }
            input.extend((frame.len() as u16).to_be_bytes());
            input.extend(&frame);
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let (sink, mut rest) = input.split_first().unwrap_or((&0, &[]));
        let sink = SINKS[usize::from(*sink) % SINKS.len()];
        let mut frames = Vec::new();
        while let [high, low, bytes @ ..] = rest {
            let len = usize::from(u16::from_be_bytes([*high, *low])).min(bytes.len());
            let (frame, behind) = bytes.split_at(len);
            rest = behind;
            if (MIN_FRAME..=1514).contains(&len) && frames.len() < BATCH_FRAMES {
                frames.push((VnetHeader::default(), frame));
            }
        }
        self.joined.clear();
        self.cut.clear();
        let (converter, joined, cut) = (&mut self.converter, &mut self.joined, &mut self.cut);
        let lost = pass(
            converter,
            frames.iter().copied(),
            sink,
            BATCH_FRAMES,
            joined,
        )?;
        ensure(lost == 0, || format!("{lost} lost"))?;
        for (header, bytes) in joined.iter() {
            if header.is_plain() {
                cut.push(header, bytes);
                continue;
            }
            super_frame(header, bytes)?;
            let lost = pass(
                converter,
                [(header, bytes)],
                Offloads::NONE,
                BATCH_FRAMES,
                cut,
            )?;
            ensure(lost == 0, || format!("{lost} lost when it is cut again"))?;
        }
        let mut before: Vec<_> = frames.iter().map(|(_, frame)| normal(frame)).collect();
        let mut after: Vec<_> = cut.iter().map(|(_, frame)| normal(frame)).collect();
        // The order within a flow is to be kept, that between flows is not.
        before.sort_by(|a, b| a.0.cmp(&b.0));
        after.sort_by(|a, b| a.0.cmp(&b.0));
        ensure(before == after, || {
            "put together and cut again, it is something else".into()
        })
    }
}

/// A super-frame is what a kernel takes: headers that agree with the virtio header, and the sum of
/// the pseudo-header.
fn super_frame(header: VnetHeader, bytes: &[u8]) -> Result<(), String> {
    let seen = Seen::read(bytes).ok_or("a super-frame is no packet")?;
    let field = &bytes[seen.checksum_place()..seen.checksum_place() + 2];
    let is_right = is_sound(header, &seen)
        && seen.end == bytes.len()
        && seen.is_ip_right()
        && field == seen.pseudo_header().to_be_bytes()
        && usize::from(header.hdr_len) == seen.payload
        && seen.payload().len() > usize::from(header.gso_size);
    ensure(is_right, || {
        format!("a super-frame that is none: {header:?}")
    })
}

/// A frame's flow, and the frame without what may differ: padding, the two ways to write a checksum
/// of zero, and the identification of packets that must not be fragmented (RFC 6864).
fn normal(frame: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let Some(seen) = Seen::read(frame).filter(|seen| seen.is_tcp) else {
        return (Vec::new(), frame.to_vec());
    };
    let mut bytes = frame[..seen.end].to_vec();
    if seen.is_transport_right() {
        let place = seen.checksum_place();
        bytes[place..place + 2].fill(0);
    }
    if !seen.is_v6 && seen.is_ip_right() {
        bytes[seen.ip + 10..seen.ip + 12].fill(0);
        if frame[seen.ip + 6] & 0x40 != 0 {
            bytes[seen.ip + 4..seen.ip + 6].fill(0);
        }
    }
    (seen.flow(), bytes)
}
