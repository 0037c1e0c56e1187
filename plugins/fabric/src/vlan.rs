//! VLANs (IEEE 802.1Q): which VLAN a frame is on, and its form at each port.
//!
//! # Theory of operation
//!
//! A switch that has VLANs decides for each frame that comes in which VLAN it is on: that of its
//! tag, or that of untagged frames at the port. A [`Membership`] is what a port lets in and out.
//! A frame leaves by a port in one of two forms, with a tag or without one. [`Reformed`] holds the
//! frames of a batch in the form that they do not have already. So a batch is changed twice at
//! most, for any number of ports.
//!
//! A tag is four bytes behind the two addresses: the protocol identifier, three bits of priority,
//! one of drop eligibility, and twelve of VLAN identifier. Identifier 0 means that the tag carries
//! a priority only. Only the outermost tag counts. A tag that is put on has priority 0.

use vdens_plugin_kit::offload::examine;
use vdens_plugin_kit::{BATCH_FRAMES, Batch, Frame, MAX_LEGACY_FRAME, RxBatch, TxBatch};

use crate::frame::{TPID_8021Q, tag_of};
use crate::port::Selection;
use crate::settings::PortSettings;

/// The tag's offset: behind the destination and source addresses.
const TAG_AT: usize = 12;
const TAG_LEN: usize = 4;

/// The bits of a tag that are the VLAN's identifier.
const VID_MASK: u16 = 0x0fff;

/// The form that a frame has at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Without a tag. While the switch has no VLANs, all frames count as that.
    Untagged,
    /// With a tag.
    Tagged,
}

impl Form {
    pub(crate) const ALL: [Self; 2] = [Self::Untagged, Self::Tagged];

    /// The form of a frame whose outermost tag this is.
    pub(crate) fn of(tag: Option<u16>) -> Self {
        match tag {
            Some(tag) if tag & VID_MASK != 0 => Self::Tagged,
            _ => Self::Untagged,
        }
    }

    /// Whether a frame with this tag can leave in this form as it is. A frame that leaves without a
    /// tag has no priority tag either.
    fn is_that_of(self, tag: Option<u16>) -> bool {
        match self {
            Self::Untagged => tag.is_none(),
            Self::Tagged => Self::of(tag) == Self::Tagged,
        }
    }
}

/// The frames of a batch that are wanted, by form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted([Selection; 2]);

impl Wanted {
    pub(crate) fn of(&self, form: Form) -> Selection {
        self.0[form as usize]
    }

    pub(crate) fn add(&mut self, form: Form, frames: Selection) {
        let wanted = &mut self.0[form as usize];
        *wanted = wanted.union(frames);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|frames| frames.is_empty())
    }
}

/// A set of VLANs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct VlanSet(Box<[u64; 64]>);

impl VlanSet {
    fn of(vlans: impl Iterator<Item = u16>) -> Self {
        let mut bits = Box::new([0; 64]);
        for vlan in vlans {
            bits[usize::from(vlan & VID_MASK) / 64] |= 1 << (vlan % 64);
        }
        Self(bits)
    }

    fn contains(&self, vlan: u16) -> bool {
        self.0[usize::from(vlan & VID_MASK) / 64] >> (vlan % 64) & 1 != 0
    }
}

/// The VLANs that a port is in, and their frames' form there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Membership {
    untagged: Option<u16>,
    tagged: Option<VlanSet>,
}

impl Membership {
    /// That of a port of one VLAN, whose frames are untagged there.
    pub(crate) fn access(vlan: u16) -> Self {
        Self {
            untagged: Some(vlan),
            tagged: None,
        }
    }

    /// What is set of a port of a switch with VLANs.
    pub(crate) fn new(port: &PortSettings) -> Self {
        let has_tagged = !port.tagged.is_empty();
        Self {
            untagged: port.untagged,
            tagged: has_tagged.then(|| VlanSet::of(port.tagged.iter().copied())),
        }
    }

    /// The VLAN of a frame that comes in with this tag; `None` if it may not come in.
    pub(crate) fn entering(&self, tag: Option<u16>) -> Option<u16> {
        match tag.map_or(0, |tag| tag & VID_MASK) {
            0 => self.untagged,
            vlan => self.is_tagged(vlan).then_some(vlan),
        }
    }

    /// The form in which a frame of a VLAN leaves; `None` if it may not leave.
    pub(crate) fn leaving(&self, vlan: u16) -> Option<Form> {
        match self.untagged == Some(vlan) {
            true => Some(Form::Untagged),
            false => self.is_tagged(vlan).then_some(Form::Tagged),
        }
    }

    fn is_tagged(&self, vlan: u16) -> bool {
        self.tagged.as_ref().is_some_and(|set| set.contains(vlan))
    }
}

/// Whether `wanted` frames of a batch have a form already.
pub(crate) fn have_form(batch: &TxBatch<'_>, wanted: Selection, form: Form) -> bool {
    wanted
        .of(batch)
        .all(|frame| form.is_that_of(tag_of(frame.bytes())))
}

/// Frames of a batch in another form.
#[derive(Debug, Default)]
pub(crate) struct Reformed {
    batch: Batch,
    /// The number of each frame in the batch that it comes from.
    origins: [u8; BATCH_FRAMES],
}

impl Reformed {
    /// Replaces what is here by the `wanted` frames of a batch from number `at` on, as many as fit,
    /// in a form. Moves `at` on. Frames that become too long or too short are dropped. Returns how
    /// many these are.
    pub(crate) fn fill(
        &mut self,
        frames: &TxBatch<'_>,
        at: &mut usize,
        form: Form,
        wanted: Selection,
        vlans: &[u16; BATCH_FRAMES],
    ) -> u64 {
        self.batch.clear();
        let mut lost = 0;
        while let Some(frame) = frames.frame(*at) {
            if wanted.contains(*at) {
                let first = self.batch.len();
                if !put(frame, form, vlans[*at], &mut self.batch.rx()) {
                    if first > 0 {
                        break;
                    }
                    lost += 1;
                }
                self.origins[first..self.batch.len()].fill(*at as u8);
            }
            *at += 1;
        }
        lost + self.batch.take_dropped()
    }

    /// The frames, and for each the number that it has in the batch it comes from.
    pub(crate) fn tx(&mut self) -> (TxBatch<'_>, &[u8]) {
        let origins = &self.origins[..self.batch.len()];
        (self.batch.tx(0), origins)
    }
}

/// Copies a frame of a VLAN in a form; `false` if there is no room.
fn put(frame: Frame<'_>, form: Form, vlan: u16, out: &mut RxBatch<'_>) -> bool {
    let bytes = frame.bytes();
    let tag = tag_of(bytes);
    if form.is_that_of(tag) {
        return out.push_offloaded(frame.header(), bytes);
    }
    let [high, low] = (tag.unwrap_or(0) & !VID_MASK | vlan).to_be_bytes();
    let new_tag = [TPID_8021Q[0], TPID_8021Q[1], high, low];
    let new_tag = match form {
        Form::Tagged => &new_tag[..],
        Form::Untagged => &[],
    };
    let old_tag = TAG_AT..TAG_AT + tag.map_or(0, |_| TAG_LEN);
    let longest = || examine(frame).map_or(bytes.len(), |segments| segments.longest);
    if new_tag.len() > old_tag.len() && longest() + TAG_LEN > MAX_LEGACY_FRAME {
        out.count_dropped(1);
        return true;
    }
    out.push_replacing(frame, old_tag, new_tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdens_plugin_kit::VnetHeader;

    fn trunk() -> Membership {
        Membership::new(&PortSettings {
            untagged: Some(10),
            tagged: [20, 4094].into(),
            ..PortSettings::default()
        })
    }

    #[test]
    fn what_a_port_lets_in_and_out() {
        let trunk = trunk();
        for (tag, vlan) in [
            (None, Some(10)),
            (Some(0xe000), Some(10)),
            (Some(20), Some(20)),
            (Some(0xf000 | 4094), Some(4094)),
            (Some(10), None),
            (Some(21), None),
            (Some(4095), None),
        ] {
            assert_eq!(trunk.entering(tag), vlan, "{tag:?}");
        }
        assert_eq!(trunk.leaving(10), Some(Form::Untagged));
        assert_eq!(trunk.leaving(4094), Some(Form::Tagged));
        assert_eq!(trunk.leaving(0), None);
        let none = Membership::new(&PortSettings {
            untagged: None,
            ..PortSettings::default()
        });
        assert_eq!((none.entering(None), none.leaving(0)), (None, None));
        assert_eq!(Membership::access(5).entering(Some(6)), None);
    }

    fn frame(tag: &[u8], len: usize) -> Vec<u8> {
        let mut frame: Vec<u8> = (0..12).collect();
        frame.extend(tag);
        frame.extend([8, 0]);
        frame.resize(len.max(14) + tag.len(), 0xaa);
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

    fn reform(frames: &[(VnetHeader, Vec<u8>)], form: Form) -> (Vec<(VnetHeader, Vec<u8>)>, u64) {
        let mut batch = Batch::new();
        let mut wanted = Selection::default();
        for (index, (header, frame)) in frames.iter().enumerate() {
            assert!(batch.rx().push_offloaded(*header, frame));
            wanted.insert(index);
        }
        let batch = batch.tx(0);
        let mut reformed = Reformed::default();
        let (mut at, mut all, mut lost) = (0, Vec::new(), 0);
        while at < frames.len() {
            lost += reformed.fill(&batch, &mut at, form, wanted, &[7; BATCH_FRAMES]);
            let (frames, origins) = reformed.tx();
            assert_eq!(frames.len(), origins.len());
            all.extend(frames.frames().map(|f| (f.header(), f.bytes().to_vec())));
        }
        (all, lost)
    }

    #[test]
    fn tags_are_put_on_and_taken_off() {
        let plain = VnetHeader::default();
        let frames = [
            (plain, frame(&[], 60)),
            (plain, frame(&[0x81, 0, 0xa0, 0], 60)),
            (CSUM.shifted(4), frame(&[0x81, 0, 0x60, 7], 60)),
            (CSUM, frame(&[], 61)),
            (plain, frame(&[0x81, 0, 0, 7, 0x81, 0, 0, 9], 60)),
        ];
        let (tagged, lost) = reform(&frames, Form::Tagged);
        let expected = [
            (plain, frame(&[0x81, 0, 0, 7], 60)),
            (plain, frame(&[0x81, 0, 0xa0, 7], 60)),
            (CSUM.shifted(4), frame(&[0x81, 0, 0x60, 7], 60)),
            (CSUM.shifted(4), frame(&[0x81, 0, 0, 7], 61)),
            (plain, frame(&[0x81, 0, 0, 7, 0x81, 0, 0, 9], 60)),
        ];
        assert_eq!((&tagged[..], lost), (&expected[..], 0));
        let (untagged, lost) = reform(&frames, Form::Untagged);
        let expected = [
            (plain, frame(&[], 60)),
            (plain, frame(&[], 60)),
            (CSUM, frame(&[], 60)),
            (CSUM, frame(&[], 61)),
            (plain, frame(&[0x81, 0, 0, 9], 60)),
        ];
        assert_eq!((&untagged[..], lost), (&expected[..], 0));
    }

    #[test]
    fn what_does_not_fit_is_dropped() {
        let plain = VnetHeader::default();
        let longest = frame(&[], MAX_LEGACY_FRAME - 4);
        let frames = [
            (plain, frame(&[], MAX_LEGACY_FRAME - 3)),
            (plain, longest.clone()),
        ];
        let (tagged, lost) = reform(&frames, Form::Tagged);
        assert_eq!((tagged.len(), lost), (1, 1));
        assert_eq!(tagged[0].1.len(), MAX_LEGACY_FRAME);
        let short = [(plain, frame(&[0x81, 0, 0, 7], 14)[..17].to_vec())];
        assert_eq!(reform(&short, Form::Untagged), (vec![], 1));
        // More than fits at once, with the tags.
        let many: Vec<_> = (0..32).map(|_| (plain, longest.clone())).collect();
        assert_eq!(reform(&many, Form::Tagged).0.len(), 32);
    }

    /// Any frame comes back as it was, whatever its tags.
    #[test]
    fn there_and_back() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..2000 {
            let vlan = 7_u16.to_be_bytes();
            let tag = [0x81, 0, random.u8(..) & 0xf0, vlan[1]];
            let tags = [&tag[..], &[], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0, 5]];
            let inner = tags[random.usize(1..4)];
            let frame = frame(&[&tag[..], inner].concat(), random.usize(14..200));
            let (untagged, _) = reform(&[(CSUM, frame.clone())], Form::Untagged);
            assert_eq!(untagged[0].1.len() + 4, frame.len());
            if inner.first() != Some(&0x81) {
                let (back, _) = reform(&untagged, Form::Tagged);
                assert_eq!(back[0].1[..14], frame[..14]);
                assert_eq!(back[0].1[16..], frame[16..]);
            }
        }
    }
}
