//! A device and a guest: frames both ways, and what a guest does wrong.

use std::sync::Arc;

use vdens_plugin_kit::{BATCH_FRAMES, Batch, Offloads, VnetHeader};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
};
use vm_memory::{Bytes, GuestAddress};

use crate::device::Device;
use crate::guest::{Descriptor, Guest, SIZE, base};
use crate::protocol::{Event, F_PROTOCOL_FEATURES, Request};
use crate::wakeups::{Gate, Wakeups};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Where buffers may be.
const BUFFERS: u64 = 0x10000;

struct Bench {
    guest: Guest,
    device: Device,
    wakeups: Arc<Wakeups>,
    gate: Gate,
    batch: Batch,
}

impl Bench {
    fn new(features: &[u32], pairs: usize) -> Self {
        let features = features.iter().fold(0, |bits, bit| bits | 1 << bit);
        let wakeups = Wakeups::new().unwrap();
        let mut bench = Self {
            guest: Guest::new().unwrap(),
            device: Device::new("test".into(), pairs, 1500),
            gate: Gate::new(&wakeups).unwrap(),
            wakeups,
            batch: Batch::new(),
        };
        let features = features | F_PROTOCOL_FEATURES;
        let rings = 2 * pairs as u32;
        bench
            .guest
            .plug(&mut bench.device, &bench.wakeups, features, rings)
            .unwrap();
        assert!(bench.device.state().carrier);
        bench
    }

    /// The guest makes a receive buffer of `length` bytes available in each of `heads`.
    fn offer_room(&self, heads: std::ops::Range<u16>, length: u32) {
        for head in heads {
            let at = BUFFERS + 0x1000 * u64::from(head);
            self.guest
                .describe(0, head, Descriptor(at, length, WRITE, 0));
            self.guest.offer(0, head);
        }
    }

    /// Gives frames of these lengths to the guest; how many were taken.
    fn send(&mut self, lengths: &[usize]) -> usize {
        self.batch.clear();
        for (number, length) in lengths.iter().enumerate() {
            assert!(self.batch.rx().push(&frame(number as u8, *length)));
        }
        self.device.send(&mut self.batch.tx(0), &self.gate)
    }

    fn receive(&mut self) -> Vec<Vec<u8>> {
        self.batch.clear();
        self.device.receive(&mut self.batch.rx());
        let frames = self.batch.tx(0);
        frames
            .frames()
            .map(|frame| frame.bytes().to_vec())
            .collect()
    }

    /// The bytes of a receive buffer.
    fn buffer(&self, head: u16, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let at = GuestAddress(BUFFERS + 0x1000 * u64::from(head));
        self.guest.memory.read_slice(&mut bytes, at).unwrap();
        bytes
    }
}

fn frame(number: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| number.wrapping_add(at as u8))
        .collect()
}

const ALL: [u32; 4] = [
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
];

#[test]
fn frames_of_the_guest_are_taken_from_any_buffers() {
    let mut bench = Bench::new(&ALL, 1);
    let sent = frame(7, 100);
    let header = [1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0, 0xff, 0xff];
    let packet = [&header[..], &sent].concat();
    bench.guest.write(BUFFERS, &packet);
    // In one buffer; its header by itself; in pieces that cross header and frame; in a table.
    let piece =
        |at: usize, length: u32, flags, next| Descriptor(BUFFERS + at as u64, length, flags, next);
    bench.guest.describe(1, 0, piece(0, 112, 0, 0));
    bench.guest.describe(1, 1, piece(0, 12, NEXT, 2));
    bench.guest.describe(1, 2, piece(12, 100, 0, 0));
    bench.guest.describe(1, 3, piece(0, 5, NEXT, 4));
    bench.guest.describe(1, 4, piece(5, 0, NEXT, 5));
    bench.guest.describe(1, 5, piece(5, 50, NEXT, 6));
    bench.guest.describe(1, 6, piece(55, 57, 0, 0));
    let table = BUFFERS + 0x1000;
    bench.guest.describe_at(table, piece(0, 20, NEXT, 1));
    bench.guest.describe_at(table + 16, piece(20, 92, 0, 0));
    bench
        .guest
        .describe(1, 7, Descriptor(table, 32, INDIRECT, 0));
    let heads = [0, 1, 3, 7];
    for head in heads {
        bench.guest.offer(1, head);
    }
    assert_eq!(bench.receive(), vec![sent; heads.len()]);
    assert!(!bench.device.is_pending());
    assert_eq!(bench.guest.used(1), heads.len() as u16);
    assert_eq!(bench.guest.call.read(), Ok(1), "one call for all");
    let taken = bench.batch.tx(0).frame(0).unwrap().header();
    let expected = VnetHeader {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
    };
    assert_eq!(taken, expected);
}

#[test]
fn what_cannot_be_a_frame_is_dropped_and_counted() {
    let mut bench = Bench::new(&ALL, 1);
    for (head, length) in [(0, 12 + 13), (1, 5), (2, 70_000), (3, 12 + 14)] {
        bench
            .guest
            .describe(1, head, Descriptor(BUFFERS, length, 0, 0));
        bench.guest.offer(1, head);
    }
    assert_eq!(bench.receive().len(), 1);
    assert_eq!(bench.batch.take_dropped(), 3);
    assert_eq!(bench.guest.used(1), 4);
    assert!(bench.device.state().carrier);
}

#[test]
fn a_guest_with_many_frames_is_called_on_again() {
    let mut bench = Bench::new(&ALL, 2);
    bench.guest.describe(1, 0, Descriptor(BUFFERS, 80, 0, 0));
    bench.guest.describe(3, 0, Descriptor(BUFFERS, 90, 0, 0));
    for _ in 0..SIZE {
        bench.guest.offer(1, 0);
        bench.guest.offer(3, 0);
    }
    let mut taken = Vec::new();
    for _ in 0..3 {
        let frames = bench.receive();
        assert!(frames.len() <= BATCH_FRAMES);
        taken.extend(frames);
        if !bench.device.is_pending() {
            break;
        }
    }
    assert_eq!(taken.len(), 2 * usize::from(SIZE));
    assert!(!bench.device.is_pending());
}

#[test]
fn a_frame_for_the_guest_is_in_as_many_buffers_as_it_needs() {
    let mut bench = Bench::new(&ALL, 1);
    bench.offer_room(0..4, 64);
    assert_eq!(bench.send(&[52, 150]), 2);
    assert_eq!(bench.guest.used(0), 4);
    let first = bench.buffer(0, 64);
    assert_eq!(
        (&first[10..12], &first[12..]),
        (&[1, 0][..], &frame(0, 52)[..])
    );
    let second = [1, 2, 3].map(|head| bench.buffer(head, 64)).concat();
    assert_eq!(second[10..12], [3, 0], "the number of buffers");
    assert_eq!(second[12..162], frame(1, 150));
}

#[test]
fn frames_wait_until_the_guest_has_room_and_has_kicked() {
    let mut bench = Bench::new(&ALL, 1);
    bench.offer_room(0..3, 64);
    // The second one needs three buffers, and two are left.
    assert_eq!(bench.send(&[52, 150]), 1);
    assert_eq!(bench.guest.used(0), 1);
    let avail_event = base(0) + 0x800 + 4 + 8 * u64::from(SIZE);
    let event: u16 = bench
        .guest
        .memory
        .read_obj(GuestAddress(avail_event))
        .unwrap();
    assert_eq!(event, 3, "the guest is to kick at the next buffer");
    bench.offer_room(3..4, 64);
    assert_eq!(bench.send(&[150]), 1);
    assert_eq!(bench.guest.used(0), 4);
    // No number of such buffers is enough for this one.
    bench.offer_room(4..30, 64);
    assert_eq!(bench.send(&[64 * usize::from(SIZE)]), 0);
    bench.offer_room(30..32, 64);
    bench.offer_room(0..4, 64);
    assert_eq!(bench.send(&[64 * usize::from(SIZE), 52]), 2);
    assert_eq!((bench.batch.take_dropped(), bench.guest.used(0)), (1, 5));
}

#[test]
fn without_mergeable_buffers_a_frame_is_in_one_chain() {
    let mut bench = Bench::new(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4], 1);
    let expected = Offloads(Offloads::CSUM.0 | Offloads::TSO4.0);
    assert_eq!(bench.device.state().offloads, expected);
    bench.offer_room(0..2, 64);
    assert_eq!(bench.send(&[54, 55, 20]), 3);
    assert_eq!((bench.batch.take_dropped(), bench.guest.used(0)), (1, 2));
    assert_eq!(
        bench.buffer(0, 64)[10..],
        frame(0, 54),
        "ten bytes of header"
    );
    assert_eq!(bench.buffer(1, 30)[10..], frame(2, 20));
}

#[test]
fn a_broken_ring_is_left_alone_until_it_starts_again() {
    let faults: [fn(&Guest); 7] = [
        // A loop; a next one that is not there; outside of the memory; to be written.
        |guest| guest.describe(1, 0, Descriptor(BUFFERS, 64, NEXT, 0)),
        |guest| guest.describe(1, 0, Descriptor(BUFFERS, 64, NEXT, SIZE)),
        |guest| guest.describe(1, 0, Descriptor(u64::MAX - 5, 64, 0, 0)),
        |guest| guest.describe(1, 0, Descriptor(BUFFERS, 64, WRITE, 0)),
        // A table that is no whole number of descriptors; one in itself; more available than fit.
        |guest| guest.describe(1, 0, Descriptor(BUFFERS, 33, INDIRECT, 0)),
        |guest| {
            guest.describe_at(BUFFERS, Descriptor(BUFFERS, 16, INDIRECT, 0));
            guest.describe(1, 0, Descriptor(BUFFERS, 16, INDIRECT, 0));
        },
        |guest| guest.write(base(1) + 0x402, &999_u16.to_le_bytes()),
    ];
    for (number, fault) in faults.iter().enumerate() {
        let mut bench = Bench::new(&ALL, 1);
        fault(&bench.guest);
        if number < 6 {
            bench.guest.offer(1, 0);
        }
        assert_eq!(bench.receive(), Vec::<Vec<u8>>::new(), "fault {number}");
        let state = (bench.device.is_broken(), bench.device.state().carrier);
        assert_eq!(state, (true, false), "fault {number}");
        assert!(!bench.device.is_pending());
        // Frames for the guest are dropped, and do not wait.
        assert_eq!(bench.send(&[60]), 1);
        // The driver starts again.
        for ring in 0..2 {
            let request = Request::GetBase { ring };
            let answer = bench.device.handle(request, Vec::new(), &bench.wakeups);
            assert!(answer.unwrap().is_some());
        }
        bench.guest.write(base(1), &[0; 0xc00]);
        let features = F_PROTOCOL_FEATURES;
        let Bench {
            guest,
            device,
            wakeups,
            ..
        } = &mut bench;
        guest.plug(device, wakeups, features, 2).unwrap();
        assert!(device.state().carrier && !device.is_broken());
    }
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let mut bench = Bench::new(&ALL, 1);
    let file = || vec![bench.guest.file().unwrap()];
    let region = |guest, length, offset| crate::protocol::Region {
        guest,
        length,
        front_end: 0,
        offset,
    };
    let page = 4096;
    let cases = [
        (Request::SetFeatures(1 << 34), vec![]),
        (Request::SetSize { ring: 0, size: 0 }, vec![]),
        (Request::SetSize { ring: 0, size: 3 }, vec![]),
        (
            Request::SetSize {
                ring: 0,
                size: 1 << 16,
            },
            vec![],
        ),
        (Request::SetSize { ring: 2, size: 256 }, vec![]),
        (Request::SetBase { ring: 0, base: 0 }, vec![]),
        (Request::GetBase { ring: u32::MAX }, vec![]),
        (
            Request::SetEvent {
                ring: 0,
                event: Event::Kick,
                has_fd: false,
            },
            vec![],
        ),
        (Request::SetMemory(vec![region(0, page, 0)]), vec![]),
        (Request::SetMemory(vec![region(0, 0, 0)]), file()),
        (Request::SetMemory(vec![region(0, 1 << 40, 0)]), file()),
        (Request::SetMemory(vec![region(0, page, 1 << 40)]), file()),
        (Request::SetMemory(vec![region(u64::MAX, page, 0)]), file()),
        // The rings are not in it.
        (Request::SetMemory(vec![region(0, page, 0)]), file()),
    ];
    for (request, fds) in cases {
        let words = format!("{request:?}");
        let refused = bench.device.handle(request, fds, &bench.wakeups);
        assert!(refused.is_err(), "{words}: {refused:?}");
    }
    assert!(bench.device.state().carrier);
}
