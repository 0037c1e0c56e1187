//! Which frames of a batch enter the switch, and on which VLAN.
//!
//! A frame does not enter if its header is invalid, if it would be cut into longer pieces than
//! legacy clients take, or into so many that one client could keep the switch from serving others.
//! Nor does it if the port is not in its VLAN, or locked to another address. Messages between ends
//! of ours do not enter either, so no client can send one in the switch's name. Where there is a
//! spanning tree, BPDUs do not enter, nor do any frames by a port that discards.

use vdens_plugin_kit::offload::examine;
use vdens_plugin_kit::wire::hello::is_message;
use vdens_plugin_kit::{BATCH_FRAMES, Frame, MAX_LEGACY_FRAME, TxBatch};
use vdens_rstp::PortState;

use crate::frame::{Addresses, tag_of};
use crate::port::{Refused, Rules, Selection};
use crate::tree::is_for_bridges;
use crate::vlan::{Form, Wanted};

/// The most segments that a frame is cut into: enough for 64 KiB and any sensible segment size.
const MAX_SEGMENTS: usize = 2048;

/// The frames of a batch that enter the switch.
#[derive(Debug)]
pub(crate) struct Ingress {
    /// Their numbers, and addresses on their VLANs.
    pub(crate) entered: Vec<(usize, Addresses)>,
    /// By the form that they come in.
    pub(crate) forms: Wanted,
    /// The VLAN of each; 0 for all while the switch has no VLANs.
    pub(crate) vlans: [u16; BATCH_FRAMES],
    /// What the port does with frames, if there is a spanning tree.
    pub(crate) state: Option<PortState>,
    /// Those with offloads left to be done.
    pub(crate) unfinished: Selection,
    /// Those that do not enter.
    pub(crate) refused: Refused,
}

impl Default for Ingress {
    fn default() -> Self {
        Self {
            entered: Vec::with_capacity(BATCH_FRAMES),
            forms: Wanted::default(),
            vlans: [0; BATCH_FRAMES],
            state: None,
            unfinished: Selection::default(),
            refused: Refused::default(),
        }
    }
}

impl Ingress {
    /// Replaces what is here by the frames of a batch that enter by a port with these rules. Only a
    /// switch that has VLANs looks at tags.
    pub(crate) fn fill(&mut self, batch: &TxBatch<'_>, rules: &Rules, has_vlans: bool) {
        self.entered.clear();
        self.forms = Wanted::default();
        self.unfinished = Selection::default();
        self.refused = Refused::default();
        for index in 0..batch.len() {
            let frame = batch.frame(index).filter(|frame| is_sound(*frame));
            let Some(frame) = frame else {
                self.refused.malformed += 1;
                continue;
            };
            let Some(mut addresses) = Addresses::of(frame.bytes()) else {
                continue;
            };
            if is_message(frame.bytes()) {
                continue;
            }
            if self.state.is_some() && is_for_bridges(frame.bytes()) {
                continue;
            }
            if self.state == Some(PortState::Discarding) {
                self.refused.stp += 1;
                continue;
            }
            let source = addresses.source.mac();
            if rules.lock.is_some_and(|only| only.0 != source) {
                self.refused.locked += 1;
                continue;
            }
            let mut form = Form::Untagged;
            if has_vlans {
                let tag = tag_of(frame.bytes());
                let Some(vlan) = rules.membership.entering(tag) else {
                    self.refused.vlan += 1;
                    continue;
                };
                addresses = addresses.on(vlan);
                self.vlans[index] = vlan;
                form = Form::of(tag);
            }
            if !frame.header().is_plain() {
                self.unfinished.insert(index);
            }
            let mut this = Selection::default();
            this.insert(index);
            self.forms.add(form, this);
            self.entered.push((index, addresses));
        }
        if !has_vlans {
            self.vlans = [0; BATCH_FRAMES];
        }
    }
}

/// Whether a frame can be forwarded at all.
fn is_sound(frame: Frame<'_>) -> bool {
    examine(frame).is_some_and(|segments| {
        segments.count <= MAX_SEGMENTS && segments.longest <= MAX_LEGACY_FRAME
    })
}
