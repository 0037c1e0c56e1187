//! A bounded queue of datagrams, each a frame, in blocks of the [`Memory`] of all queues.
//!
//! A datagram lies in one piece, so that it can be sent from where it is. If it does not fit behind
//! the last one, it starts a new block. A block is given back when its last datagram has gone.

use std::collections::VecDeque;

use crate::memory::{Block, Memory};

/// The most bytes in blocks: as much as a TCP stream has in flight at most with the usual settings,
/// in some 60 super-frames or 2,700 frames of 1,514 bytes.
pub(crate) const MAX_BYTES: usize = 4 << 20;
/// The most datagrams. With half of both bounds, a TCP stream lost some hundred frames a second.
pub(crate) const MAX_FRAMES: usize = 1024;

#[derive(Debug)]
pub(crate) struct Queue {
    /// The user whose client the datagrams are for, and whose share of the memory they take.
    user: u32,
    blocks: VecDeque<Block>,
    /// Bytes of all blocks.
    held: usize,
    /// Datagrams in all blocks.
    len: usize,
}

impl Queue {
    pub(crate) fn new(user: u32) -> Self {
        Self {
            user,
            blocks: VecDeque::new(),
            held: 0,
            len: 0,
        }
    }

    /// The user whose share of the memory it takes.
    pub(crate) fn user(&self) -> u32 {
        self.user
    }

    /// Bytes of memory that it has.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Datagrams waiting.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies a datagram of two parts in; `false` if it does not fit or there is no memory for it.
    pub(crate) fn push(&mut self, parts: [&[u8]; 2], memory: &mut Memory) -> bool {
        let len = parts[0].len() + parts[1].len();
        if len == 0 || self.len >= MAX_FRAMES {
            return false;
        }
        let has_room = |block: &Block| block.has_room(len);
        if !self.blocks.back().is_some_and(has_room) {
            let size = Block::size_for(len);
            if len > size || self.held + size > MAX_BYTES {
                return false;
            }
            let Some(block) = memory.take(self.user, self.held, size) else {
                return false;
            };
            self.held += size;
            self.blocks.push_back(block);
        }
        if let Some(block) = self.blocks.back_mut() {
            block.push(parts);
            self.len += 1;
        }
        true
    }

    /// The datagrams, oldest first.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.blocks.iter().flat_map(Block::datagrams)
    }

    /// Forgets the oldest `count` datagrams.
    pub(crate) fn pop(&mut self, count: usize, memory: &mut Memory) {
        let mut left = count.min(self.len);
        self.len -= left;
        while let Some(block) = self.blocks.front_mut() {
            left -= block.pop(left);
            if block.len() > 0 {
                return;
            }
            let emptied = self.blocks.pop_front();
            self.give_back(emptied, memory);
        }
    }

    /// Forgets the newest datagrams until it has at most `bytes` of memory. Returns how many these
    /// are.
    pub(crate) fn cut(&mut self, bytes: usize, memory: &mut Memory) -> usize {
        let before = self.len;
        while self.held > bytes {
            let last = self.blocks.pop_back();
            self.len -= last.as_ref().map_or(0, Block::len);
            self.give_back(last, memory);
        }
        before - self.len
    }

    fn give_back(&mut self, block: Option<Block>, memory: &mut Memory) {
        if let Some(block) = block {
            self.held -= block.size();
            memory.give_back(self.user, self.held, block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MAX_DATAGRAM;

    fn memory() -> Memory {
        Memory::new(64 << 20)
    }

    #[test]
    fn keeps_order_and_bounds() {
        let (mut queue, memory) = (Queue::new(0), &mut memory());
        for n in 0..MAX_FRAMES {
            assert!(queue.push([&[], &[n as u8; 60]], memory));
        }
        assert!(!queue.push([&[], &[0; 60]], memory), "one frame too many");
        queue.pop(MAX_FRAMES + 1, memory);
        assert!(queue.is_empty());
        assert_eq!((queue.held(), memory.used()), (0, 0));
        let mut taken = 0;
        while queue.push([&[1; 4000], &[1; 5000]], memory) {
            taken += 1;
        }
        assert!(
            (MAX_BYTES / 11_000..MAX_BYTES / 9000).contains(&taken),
            "{taken}"
        );
        assert!(!queue.push([&[], &[]], memory));
        queue.pop(taken, memory);
        taken = 0;
        while queue.push([&[1; 10], &[1; MAX_DATAGRAM - 10]], memory) {
            taken += 1;
        }
        assert!(taken >= 60, "{taken}");
        assert!(!queue.push([&[], &[1; MAX_DATAGRAM * 2]], memory));
    }

    #[test]
    fn what_is_cut_are_the_newest() {
        let (mut queue, memory) = (Queue::new(7), &mut memory());
        for n in 0..100 {
            assert!(queue.push([&[n; 10], &[n; 4990]], memory));
        }
        queue.pop(2, memory);
        let held = queue.held();
        assert_eq!(queue.cut(held, memory), 0);
        let cut = queue.cut(held / 2, memory);
        assert!((48..56).contains(&cut), "{cut}");
        assert_eq!(queue.held(), memory.used());
        let kept: Vec<u8> = queue.datagrams().map(|datagram| datagram[0]).collect();
        let oldest: Vec<u8> = (2..100 - cut as u8).collect();
        assert_eq!((queue.len(), &kept), (oldest.len(), &oldest));
        assert!(queue.push([&[], &[11; 100]], memory));
        assert_eq!(queue.cut(0, memory), oldest.len() + 1);
        assert!(queue.is_empty() && memory.used() == 0);
        assert!(queue.push([&[], &[12; 100]], memory));
    }

    /// Against a plain deque, with frames of all lengths.
    #[test]
    fn is_a_queue() {
        let mut random = fastrand::Rng::with_seed(1);
        let (mut queue, mut model) = (Queue::new(0), VecDeque::new());
        let memory = &mut memory();
        let mut refused = 0;
        for n in 0..20_000 {
            // Mostly full, in blocks of both lengths.
            if random.usize(..20) < 11 {
                let frame = vec![n as u8; 1 + random.usize(..40_000)];
                let (front, rest) = frame.split_at(random.usize(..frame.len()));
                if queue.push([front, rest], memory) {
                    model.push_back(frame);
                } else {
                    refused += 1;
                }
            } else {
                let count = random.usize(..3);
                queue.pop(count, memory);
                model.drain(..count.min(model.len()));
            }
            if random.usize(..2000) == 0 {
                let lost = queue.cut(MAX_BYTES / 2, memory);
                model.truncate(model.len() - lost);
            }
            assert_eq!(queue.len(), model.len());
            if let (Some(a), Some(b)) = (queue.datagrams().next(), model.front()) {
                assert_eq!(a, b);
            }
            assert_eq!(queue.held(), memory.used());
            assert!(memory.used() <= MAX_BYTES);
        }
        assert!(queue.datagrams().eq(model.iter().map(Vec::as_slice)));
        assert!(refused > 100);
    }
}
