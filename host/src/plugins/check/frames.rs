//! The frames that the checks send, and the comparison with those that arrive.
//!
//! They have the IEEE's second local experimental ethertype, 0x88B6, and two unicast addresses of
//! their own. So switches on the way learn and forward them, and no other host accepts them.

use vdens_plugin_kit::MIN_FRAME;

/// The ethertype.
const ETHERTYPE: [u8; 2] = [0x88, 0xb6];
/// The addresses of the two ends.
const MACS: [[u8; 6]; 2] = [[2, 0x76, 0x63, 0, 0, 1], [2, 0x76, 0x63, 0, 0, 2]];

/// A frame of `len` bytes from one end to the other. The payload begins with as much of `number` as
/// fits.
pub(super) fn frame(from: usize, number: u32, len: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(len);
    frame.extend(MACS[1 - from]);
    frame.extend(MACS[from]);
    frame.extend(ETHERTYPE);
    frame.extend(number.to_be_bytes());
    let pattern = (0..len).map(|at| (at as u32 ^ number) as u8);
    frame.extend(pattern);
    frame.truncate(len);
    frame
}

/// Whether a frame came from the end `from`, and not from another host of the network.
pub(super) fn is_from(from: usize, frame: &[u8]) -> bool {
    frame.len() >= MIN_FRAME && frame[6..12] == MACS[from]
}

/// What is wrong with the frames that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// A frame is missing: its index among those sent.
    Lost(usize),
    /// A frame was changed, or never sent: its index among those that arrived.
    Changed(usize),
    /// A frame came after one that was sent later.
    Reordered(usize),
    /// A frame came more than once.
    Repeated(usize),
}

/// Compares what arrived with what was sent.
pub(super) fn compare(sent: &[Vec<u8>], got: &[Vec<u8>]) -> Option<Flaw> {
    let wrong = got.iter().zip(sent).position(|(got, sent)| got != sent);
    let at = match wrong {
        Some(at) => at,
        None if got.len() == sent.len() => return None,
        None if got.len() < sent.len() => return Some(Flaw::Lost(got.len())),
        None => sent.len(),
    };
    let was_sent = sent.contains(&got[at]);
    let came_before = got[..at].contains(&got[at]);
    let comes_later = sent
        .get(at)
        .is_some_and(|missing| got[at..].contains(missing));
    Some(match (was_sent, came_before, comes_later) {
        (false, ..) => Flaw::Changed(at),
        (true, true, _) => Flaw::Repeated(at),
        (true, false, true) => Flaw::Reordered(at),
        (true, false, false) => Flaw::Lost(at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flaws_are_told_apart() {
        let sent: Vec<_> = (0..4).map(|n| frame(0, n, 60)).collect();
        let of = |order: &[usize]| order.iter().map(|n| sent[*n].clone()).collect::<Vec<_>>();
        assert_eq!(compare(&sent, &sent), None);
        assert_eq!(compare(&sent, &of(&[0, 1, 2])), Some(Flaw::Lost(3)));
        assert_eq!(compare(&sent, &of(&[0, 2, 3])), Some(Flaw::Lost(1)));
        assert_eq!(compare(&sent, &of(&[0, 2, 1, 3])), Some(Flaw::Reordered(1)));
        assert_eq!(
            compare(&sent, &of(&[0, 1, 1, 2, 3])),
            Some(Flaw::Repeated(2))
        );
        assert_eq!(
            compare(&sent, &of(&[0, 1, 2, 3, 3])),
            Some(Flaw::Repeated(4))
        );
        let mut changed = sent.clone();
        changed[2][30] ^= 1;
        assert_eq!(compare(&sent, &changed), Some(Flaw::Changed(2)));
    }

    #[test]
    fn frames_have_their_length_and_sender() {
        for len in [14, 15, 18, 60, 9234] {
            let frame = frame(1, 7, len);
            assert_eq!(frame.len(), len);
            assert!(is_from(1, &frame) && !is_from(0, &frame));
        }
    }
}
