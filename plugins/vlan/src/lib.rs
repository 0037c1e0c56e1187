//! `vlan://VID{VNL}`: one VLAN of the network that the nested VNL names.
//!
//! # Theory of operation
//!
//! A frame on its way to the nested link gets a tag (IEEE 802.1Q, section 9.6): four bytes behind
//! the two addresses. They are the tag protocol identifier and, most significant bit first, three
//! bits of priority, a zero bit, and twelve bits of VLAN identifier. A received frame whose
//! outermost tag is of that VLAN loses the tag and passes; all others are dropped. The key `qinq`
//! selects the identifier of service tags (IEEE 802.1ad).
//!
//! Received frames are changed in place. Frames to send are copied into a batch of the link's own,
//! where there is room for the tag. Nothing else of a frame changes, so super-frames and incomplete
//! checksums pass; only the offsets in their virtio header move. So this link takes the offloads
//! that the nested link takes. Its carrier is the nested link's, too.

use std::os::fd::BorrowedFd;

use vdens_plugin_kit::vnl::{Keys, Spec};
use vdens_plugin_kit::{
    Batch, Error, Frame, FrameAction, Link, OpenRequest, Result, RxBatch, State, TxBatch,
    export_plugin,
};

const KEYS: Keys = Keys::new(&["qinq", "priority"]);

/// The tag's offset: behind the destination and source addresses.
const TAG_AT: usize = 12;
const TAG_LEN: usize = 4;

// Tag protocol identifiers.
const CUSTOMER: u16 = 0x8100;
const SERVICE: u16 = 0x88a8;

/// The bits of a tag that are the VLAN's identifier.
const VID_MASK: u16 = 0x0fff;

/// The tag in front of a frame's ethertype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag {
    protocol: u16,
    /// Priority and VLAN identifier.
    control: u16,
}

impl Tag {
    fn of(spec: &Spec) -> Result<Self> {
        let text = spec.target_str()?;
        let vid: Option<u16> = text.parse().ok();
        let Some(vid) = vid.filter(|vid| (1..VID_MASK).contains(vid)) else {
            let message = format!("'{}' is no VLAN", text.escape_debug());
            return Err(Error::usage(message).hint("VLANs are 1 to 4094"));
        };
        let priority = spec.number("priority")?.unwrap_or(0);
        if priority > 7 {
            let message = format!("priority {priority} is out of range");
            return Err(Error::usage(message).hint("priorities are 0 to 7"));
        }
        Ok(Self {
            protocol: if spec.has("qinq") { SERVICE } else { CUSTOMER },
            control: priority << 13 | vid,
        })
    }

    fn bytes(self) -> [u8; TAG_LEN] {
        let [a, b] = self.protocol.to_be_bytes();
        let [c, d] = self.control.to_be_bytes();
        [a, b, c, d]
    }

    /// Whether a frame's outermost tag is of this VLAN, whatever its priority.
    fn is_on(self, frame: Frame<'_>) -> bool {
        let tag = frame.bytes().get(TAG_AT..).and_then(<[u8]>::first_chunk);
        tag.is_some_and(|[a, b, c, d]| {
            u16::from_be_bytes([*a, *b]) == self.protocol
                && u16::from_be_bytes([*c, *d]) & VID_MASK == self.control & VID_MASK
        })
    }
}

/// A VLAN of a nested link.
struct Vlan {
    nested: Box<dyn Link>,
    tag: Tag,
    /// Frames with their tags, during [`Link::send`].
    tagged: Batch,
}

impl Link for Vlan {
    fn fd(&self) -> BorrowedFd<'_> {
        self.nested.fd()
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.nested.send_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let first = batch.len();
        self.nested.recv(batch)?;
        batch.filter(first, |frame| match self.tag.is_on(frame) {
            true => FrameAction::Cut {
                at: TAG_AT,
                len: TAG_LEN,
            },
            false => FrameAction::Consume,
        });
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        let mut taken = 0;
        while taken < batch.len() {
            self.tagged.clear();
            let mut out = self.tagged.rx();
            for frame in batch.frames().skip(taken) {
                if !out.push_replacing(frame, TAG_AT..TAG_AT, &self.tag.bytes()) {
                    break;
                }
            }
            let offered = self.tagged.len();
            if offered == 0 {
                // Longer than a batch can carry.
                batch.count_dropped(1);
                taken += 1;
                continue;
            }
            let sent = self.nested.send(&mut self.tagged.tx(0))?;
            taken += sent;
            if sent < offered {
                break;
            }
        }
        batch.count_dropped(self.tagged.take_dropped());
        Ok(taken)
    }

    fn other_side(&mut self, state: State) {
        self.nested.other_side(state);
    }

    fn state(&self) -> State {
        self.nested.state()
    }

    fn is_shared(&self) -> bool {
        self.nested.is_shared()
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let spec = Spec::address_grammar(request.argument(), &KEYS)?;
    let tag = Tag::of(&spec)?;
    let Some(nested) = spec.nested().filter(|vnl| !vnl.is_empty()) else {
        return Err(Error::usage("vlan:// names no network to be on")
            .hint("write vlan://VID{VNL}, in quotes in a shell"));
    };
    Ok(Box::new(Vlan {
        nested: request.host.open(nested)?,
        tag,
        tagged: Batch::new(),
    }))
}

export_plugin! {
    scheme: "vlan",
    description: "a VLAN of another network: vlan://VID{VNL}",
    needs: "",
    open: open,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use vdens_plugin_kit::{BATCH_FRAMES, Host, Offloads, OpenOptions, VnetHeader};

    /// A nested link that passes on what it is sent, takes at most `room` frames a call, and
    /// receives `coming`.
    struct Nested {
        socket: UnixDatagram,
        room: usize,
        sent: std::sync::mpsc::Sender<(VnetHeader, Vec<u8>)>,
        coming: Vec<(VnetHeader, Vec<u8>)>,
    }

    impl Link for Nested {
        fn fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }
        fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
            for (header, frame) in self.coming.drain(..) {
                assert!(batch.push_offloaded(header, &frame));
            }
            Ok(())
        }
        fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
            for frame in batch.frames().take(self.room) {
                let sent = (frame.header(), frame.bytes().to_vec());
                self.sent.send(sent).unwrap();
            }
            batch.count_dropped(1);
            Ok(self.room.min(batch.len()))
        }
        fn state(&self) -> State {
            State::DOWN.with_offloads(Offloads::CSUM)
        }
        fn is_shared(&self) -> bool {
            true
        }
    }

    type Sent = std::sync::mpsc::Receiver<(VnetHeader, Vec<u8>)>;

    fn vlan(argument: &str, room: usize, coming: &[(VnetHeader, Vec<u8>)]) -> (Vlan, Sent) {
        let (sender, sent) = std::sync::mpsc::channel();
        let nested = Nested {
            socket: UnixDatagram::unbound().unwrap(),
            room,
            sent: sender,
            coming: coming.to_vec(),
        };
        let spec = Spec::address_grammar(argument, &KEYS).unwrap();
        let link = Vlan {
            nested: Box::new(nested),
            tag: Tag::of(&spec).unwrap(),
            tagged: Batch::new(),
        };
        (link, sent)
    }

    fn frame(tag: &[u8], len: usize) -> Vec<u8> {
        let mut frame: Vec<u8> = (0..12).collect();
        frame.extend(tag);
        frame.extend([8, 0]);
        frame.resize(len + tag.len(), 0xaa);
        frame
    }

    const CSUM: VnetHeader = VnetHeader {
        flags: 1,
        gso_type: 0,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 34,
        csum_offset: 16,
    };

    #[test]
    fn frames_get_the_tag_with_identifier_and_priority() {
        for (argument, tag) in [
            ("1", [0x81, 0x00, 0x00, 0x01]),
            ("4094/priority=7", [0x81, 0x00, 0xef, 0xfe]),
            ("291/qinq/priority=1", [0x88, 0xa8, 0x21, 0x23]),
        ] {
            let (mut link, sent) = vlan(argument, BATCH_FRAMES, &[]);
            let mut batch = Batch::new();
            batch.rx().push(&frame(&[], 60));
            batch.rx().push_offloaded(CSUM, &frame(&[], 65_550));
            assert_eq!(link.send(&mut batch.tx(0)).unwrap(), 2);
            let sent: Vec<_> = sent.try_iter().collect();
            assert_eq!(sent[0], (VnetHeader::default(), frame(&tag, 60)));
            let shifted = VnetHeader {
                csum_start: 38,
                ..CSUM
            };
            assert_eq!(sent[1], (shifted, frame(&tag, 65_550)));
            assert_eq!(batch.take_dropped(), 1, "what the nested link counts");
        }
    }

    #[test]
    fn what_the_nested_link_does_not_take_is_offered_again() {
        let (mut link, sent) = vlan("5", 3, &[]);
        let mut batch = Batch::new();
        for len in 60..65 {
            batch.rx().push(&frame(&[], len));
        }
        assert_eq!(link.send(&mut batch.tx(0)).unwrap(), 3);
        assert_eq!(link.send(&mut batch.tx(3)).unwrap(), 2);
        let lengths: Vec<_> = sent.try_iter().map(|(_, frame)| frame.len()).collect();
        assert_eq!(lengths, [64, 65, 66, 67, 68]);
        // More than fits into the batch of tagged frames at once.
        let (mut link, sent) = vlan("5", BATCH_FRAMES, &[]);
        batch.clear();
        while batch.rx().push(&frame(&[], 65_000)) {}
        while batch.rx().push(&frame(&[], 100)) {}
        let count = batch.len();
        assert_eq!(link.send(&mut batch.tx(0)).unwrap(), count);
        assert_eq!(sent.try_iter().count(), count);
    }

    #[test]
    fn only_frames_of_the_vlan_come_through() {
        let plain = VnetHeader::default();
        let coming = [
            (plain, frame(&[0x81, 0, 0x00, 5], 60)),
            (plain, frame(&[], 60)),
            (plain, frame(&[0x81, 0, 0x00, 6], 61)),
            (plain, frame(&[0x88, 0xa8, 0x00, 5], 62)),
            (CSUM.shifted(4), frame(&[0x81, 0, 0xf0, 5], 63)),
            (plain, frame(&[0x81, 0, 0, 5, 0x81, 0, 0, 6], 65)),
            (plain, frame(&[0x81, 0, 0, 5], 13)),
        ];
        let (mut link, _sent) = vlan("5", 0, &coming);
        let mut batch = Batch::new();
        batch.rx().push(&[1; 60]);
        link.recv(&mut batch.rx()).unwrap();
        let got = batch.tx(1);
        let got: Vec<_> = got
            .frames()
            .map(|f| (f.header(), f.bytes().to_vec()))
            .collect();
        let expected = [
            (plain, frame(&[], 60)),
            (CSUM, frame(&[], 63)),
            (plain, frame(&[0x81, 0, 0, 6], 65)),
        ];
        assert_eq!(got, expected);
    }

    #[test]
    fn state_is_the_nested_links_and_the_panel_is_not_wanted() {
        let (link, _sent) = vlan("5", 0, &[]);
        assert_eq!(link.state(), link.nested.state());
        assert!(link.is_shared() && !link.wants_panel());
    }

    #[test]
    fn nonsense_is_named() {
        let opened = |argument: &str| {
            open(&OpenRequest {
                vnl: &format!("vlan://{argument}"),
                options: OpenOptions::default(),
                host: Host::without_services(),
            })
        };
        for (argument, words) in [
            ("{null://}", "'' is no VLAN"),
            ("0{null://}", "'0' is no VLAN"),
            ("4095{null://}", "VLANs are 1 to 4094"),
            ("x{null://}", "'x' is no VLAN"),
            ("5", "write vlan://VID{VNL}"),
            ("5{}", "write vlan://VID{VNL}"),
            ("5/priority=8{null://}", "priorities are 0 to 7"),
            ("5/tag=7{null://}", "valid keys: qinq, priority"),
            ("5{null://", "unterminated {"),
            ("5{null://}", "no host is there to open null://"),
        ] {
            let error = opened(argument).err().unwrap().to_string();
            assert!(error.contains(words), "{argument}: {error}");
        }
    }
}
