//! A bounded queue of datagrams, each a frame, in one ring of bytes.
//!
//! Each lies in one piece, so that it can be sent from where it is; one that does not fit
//! behind the last one starts at the front again. The ring grows to what has been needed, up to
//! its bound, and is then used over and over: queueing allocates nothing.

use std::collections::VecDeque;

/// The most bytes waiting, the gap at the ring's end included: what a TCP stream has on its way at most where systems
/// are set up as usual, in 64 super-frames or some 2,700 frames of 1,514 bytes.
pub(crate) const MAX_BYTES: usize = 4 << 20;
/// The most datagrams waiting. With half of both bounds a TCP stream lost some hundred frames a second.
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
    /// Datagrams waiting.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Copies a datagram of two parts in; `false` if it does not fit.
    pub(crate) fn push(&mut self, [front, rest]: [&[u8]; 2]) -> bool {
        let len = front.len() + rest.len();
        let Some(start) = self.find_place(len) else {
            return false;
        };
        let (middle, end) = (start + front.len(), start + len);
        if end > self.ring.len() {
            self.ring.resize(end, 0);
        }
        self.ring[start..middle].copy_from_slice(front);
        self.ring[middle..end].copy_from_slice(rest);
        self.places.push_back(Place { start, len });
        true
    }

    /// The datagrams, oldest first.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let bytes = |place: &Place| &self.ring[place.start..place.start + place.len];
        self.places.iter().map(bytes)
    }

    /// Forgets the oldest `count` datagrams.
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
            assert!(queue.push([&[], &[n as u8; 60]]));
        }
        assert!(!queue.push([&[], &[0; 60]]), "one frame too many");
        queue.pop(MAX_FRAMES + 1);
        assert!(queue.is_empty());
        let mut taken = 0;
        while queue.push([&[1; 4000], &[1; 5000]]) {
            taken += 1;
        }
        assert_eq!(taken, MAX_BYTES / 9000);
        assert!(!queue.push([&[], &[]]));
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
                let frame = vec![n as u8; 1 + random(20_000)];
                let (front, rest) = frame.split_at(random(frame.len()));
                if queue.push([front, rest]) {
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
            if let (Some(a), Some(b)) = (queue.datagrams().next(), model.front()) {
                assert_eq!(a, b);
            }
            assert!(queue.ring.len() <= MAX_BYTES);
        }
        assert!(queue.datagrams().eq(model.iter().map(Vec::as_slice)));
        assert!(refused > 100);
    }
}
