//! A bounded queue of frames in one ring of bytes.
//!
//! Each frame lies in one piece, so that it can be sent from where it is; a frame that does not fit
//! behind the last one starts at the front again. The ring grows to what has been needed, up to
//! its bound, and is then used over and over: queueing allocates nothing.

use std::collections::VecDeque;

/// The most bytes waiting, the gap at the ring's end included.
pub(crate) const MAX_BYTES: usize = 2 << 20;
/// The most frames waiting. With half of both bounds a TCP stream lost some hundred frames a second.
pub(crate) const MAX_FRAMES: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Place {
    start: usize,
    len: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    ring: Vec<u8>,
    places: VecDeque<Place>,
}

impl Queue {
    /// Frames waiting.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Copies a frame in; `false` if it does not fit.
    pub(crate) fn push(&mut self, frame: &[u8]) -> bool {
        let Some(start) = self.find_place(frame.len()) else {
            return false;
        };
        let end = start + frame.len();
        if end > self.ring.len() {
            self.ring.resize(end, 0);
        }
        self.ring[start..end].copy_from_slice(frame);
        self.places.push_back(Place {
            start,
            len: frame.len(),
        });
        true
    }

    /// The frames, oldest first.
    pub(crate) fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let bytes = |place: &Place| &self.ring[place.start..place.start + place.len];
        self.places.iter().map(bytes)
    }

    /// Forgets the oldest `count` frames.
    pub(crate) fn pop(&mut self, count: usize) {
        self.places.drain(..count.min(self.places.len()));
    }

    fn find_place(&self, len: usize) -> Option<usize> {
        if len == 0 || self.places.len() >= MAX_FRAMES {
            return None;
        }
        let (Some(first), Some(last)) = (self.places.front(), self.places.back()) else {
            return (len <= MAX_BYTES).then_some(0);
        };
        let end = last.start + last.len;
        if last.start < first.start {
            // Wrapped: free is what lies between the last and the first.
            return (end + len <= first.start).then_some(end);
        }
        if end + len <= MAX_BYTES {
            Some(end)
        } else {
            (len <= first.start).then_some(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_bounds() {
        let mut queue = Queue::default();
        for n in 0..MAX_FRAMES {
            assert!(queue.push(&[n as u8; 60]));
        }
        assert!(!queue.push(&[0; 60]), "one frame too many");
        queue.pop(MAX_FRAMES + 1);
        assert!(queue.is_empty());
        let mut taken = 0;
        while queue.push(&[1; 9000]) {
            taken += 1;
        }
        assert_eq!(taken, MAX_BYTES / 9000);
        assert!(!queue.push(&[]));
    }

    /// Against a plain deque, with frames of all lengths.
    #[test]
    fn is_a_queue() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % below
        };
        let (mut queue, mut model) = (Queue::default(), VecDeque::new());
        let mut refused = 0;
        for n in 0..20_000 {
            // Mostly full, so that it wraps in every way.
            if random(20) < 11 {
                let frame = vec![n as u8; 1 + random(9234)];
                if queue.push(&frame) {
                    model.push_back(frame);
                } else {
                    refused += 1;
                }
            } else {
                let count = random(3);
                queue.pop(count);
                model.drain(..count.min(model.len()));
            }
            assert_eq!(queue.len(), model.len());
            if let (Some(a), Some(b)) = (queue.frames().next(), model.front()) {
                assert_eq!(a, b);
            }
            assert!(queue.ring.len() <= MAX_BYTES);
        }
        assert!(queue.frames().eq(model.iter().map(Vec::as_slice)));
        assert!(refused > 100);
    }
}
