//! The memory that the queues of all ports share.
//!
//! # Theory of operation
//!
//! Memory is handed out in blocks of two lengths: short ones for frames, long ones for
//! super-frames. A block that comes back serves the next queue that asks, so a busy queue
//! allocates nothing, and no memory is lost to fragmentation.
//!
//! All queues together take at most a given number of bytes. Two rules decide whether a queue gets
//! a block:
//!
//! 1. While memory is free, a queue may become as long as what is free. This is the dynamic
//!    threshold of Choudhury and Hahne (IEEE/ACM Transactions on Networking 6(2), 1998): few
//!    congested ports get long queues, many get short ones, and some memory stays free for the next
//!    port.
//! 2. A queue may always grow to its share: the memory is divided between the users whose ports
//!    have any, and each user's part between these ports. If too little is free for that, the
//!    queues that have more than their share are cut ([`Memory::is_overdrawn`]).
//!
//! So the most congested ports lose frames first. A user who opens many ports and reads none of
//! them takes the memory from his own ports. All shares add up to no more than the limit, so
//! cutting always makes enough room.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use vdens_plugin_kit::wire::hello::SUPER_PREFIX;
use vdens_plugin_kit::{MAX_FRAME, VNET_HEADER_LEN};

/// The longest datagram, in bytes: a super-frame.
pub(crate) const MAX_DATAGRAM: usize = SUPER_PREFIX.len() + VNET_HEADER_LEN + MAX_FRAME;

/// Bytes of a short block: two of the longest frames, or 13 of 1,514 bytes.
const SHORT: usize = 20 << 10;
/// Bytes of a long block: the longest datagram.
const LONG: usize = MAX_DATAGRAM.next_multiple_of(4096);

/// Memory for datagrams that lie behind each other.
#[derive(Debug)]
pub(crate) struct Block {
    bytes: Box<[u8]>,
    /// Where the datagrams are, oldest first.
    places: VecDeque<Range<usize>>,
}

impl Block {
    fn new(size: usize) -> Self {
        Self {
            bytes: vec![0; size].into(),
            places: VecDeque::new(),
        }
    }

    /// The length of a block for a datagram of `len` bytes.
    pub(crate) fn size_for(len: usize) -> usize {
        if len <= SHORT { SHORT } else { LONG }
    }

    /// Its length in bytes.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Datagrams in it.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether a datagram of `len` bytes fits behind the others.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.end() + len <= self.size()
    }

    /// Copies a datagram of two parts in, for which there is room.
    pub(crate) fn push(&mut self, [front, rest]: [&[u8]; 2]) {
        let start = self.end();
        let middle = start + front.len();
        let end = middle + rest.len();
        self.bytes[start..middle].copy_from_slice(front);
        self.bytes[middle..end].copy_from_slice(rest);
        self.places.push_back(start..end);
    }

    /// Forgets the oldest `count` datagrams, or all. Returns how many these are.
    pub(crate) fn pop(&mut self, count: usize) -> usize {
        self.places.drain(..count.min(self.len())).len()
    }

    /// The datagrams, oldest first.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.places.iter().map(|place| &self.bytes[place.clone()])
    }

    fn end(&self) -> usize {
        self.places.back().map_or(0, |place| place.end)
    }
}

/// The memory of all queues.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    used: usize,
    /// How many queues have blocks, by user.
    queues: BTreeMap<u32, usize>,
    /// Blocks to be used again, at most an eighth of the limit.
    spare: Vec<Block>,
    spare_bytes: usize,
}

impl Memory {
    /// Memory of `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            used: 0,
            queues: BTreeMap::new(),
            spare: Vec::new(),
            spare_bytes: 0,
        }
    }

    /// A block of `size` bytes for a queue of a user that has `held` bytes, if it may have another.
    /// It may overdraw the memory: then the queues that have more than their share have to be cut.
    pub(crate) fn take(&mut self, user: u32, held: usize, size: usize) -> Option<Block> {
        if held == 0 {
            *self.queues.entry(user).or_default() += 1;
        }
        let free = self.limit.saturating_sub(self.used);
        let wanted = held + size;
        if wanted > free && wanted > self.share(user) {
            self.forget_if_empty(user, held);
            return None;
        }
        self.used += size;
        let spare = self.spare.iter().rposition(|block| block.size() == size);
        Some(match spare {
            Some(index) => {
                self.spare_bytes -= size;
                self.spare.swap_remove(index)
            }
            None => Block::new(size),
        })
    }

    /// Takes back a block of a user's queue, which has `left` bytes without it.
    pub(crate) fn give_back(&mut self, user: u32, left: usize, mut block: Block) {
        self.used -= block.size();
        self.forget_if_empty(user, left);
        if self.spare_bytes + block.size() <= self.limit / 8 {
            self.spare_bytes += block.size();
            block.places.clear();
            self.spare.push(block);
        }
    }

    /// The bytes that each queue of a user may have in any case.
    pub(crate) fn share(&self, user: u32) -> usize {
        let queues = self.queues.get(&user).copied().unwrap_or(0);
        self.limit / self.queues.len().max(1) / queues.max(1)
    }

    /// Whether more was handed out than there is.
    pub(crate) fn is_overdrawn(&self) -> bool {
        self.used > self.limit
    }

    /// The bytes that all queues have.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// A queue of a user has `held` bytes.
    fn forget_if_empty(&mut self, user: u32, held: usize) {
        if held == 0
            && let Some(queues) = self.queues.get_mut(&user)
        {
            *queues -= 1;
            if *queues == 0 {
                self.queues.remove(&user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks for a queue that has `held` bytes, until it gets no more.
    fn take_all(memory: &mut Memory, user: u32, mut held: usize) -> Vec<Block> {
        let next = || {
            let block = memory.take(user, held, SHORT)?;
            held += SHORT;
            Some(block)
        };
        std::iter::from_fn(next).collect()
    }

    fn give_back(memory: &mut Memory, user: u32, blocks: Vec<Block>) {
        for (left, block) in blocks.into_iter().enumerate().rev() {
            memory.give_back(user, left * SHORT, block);
        }
    }

    #[test]
    fn a_user_with_many_queues_takes_from_himself() {
        let mut memory = Memory::new(800 * SHORT);
        let queues: Vec<Vec<Block>> = (0..100).map(|_| take_all(&mut memory, 1, 0)).collect();
        assert!(memory.used() > 700 * SHORT);
        assert_eq!(memory.share(1), 8 * SHORT);
        // Another user's only queue has half of all, from those who have more than their share.
        let other = take_all(&mut memory, 2, 0);
        assert_eq!(other.len(), 400);
        assert!(memory.is_overdrawn());
        assert_eq!(memory.share(1), 4 * SHORT);
        for mut blocks in queues {
            let left = blocks.split_off(blocks.len().min(4));
            for (more, block) in left.into_iter().enumerate().rev() {
                memory.give_back(1, (4 + more) * SHORT, block);
            }
            give_back(&mut memory, 1, blocks);
        }
        assert_eq!(memory.used(), 400 * SHORT);
        give_back(&mut memory, 2, other);
        assert_eq!((memory.used(), memory.queues.len()), (0, 0));
        assert!(memory.spare_bytes <= memory.limit / 8 && !memory.spare.is_empty());
    }

    #[test]
    fn a_queue_that_gets_nothing_is_not_counted() {
        let mut memory = Memory::new(10 * SHORT);
        let first = take_all(&mut memory, 1, 0);
        assert_eq!(first.len(), 10);
        assert!(memory.take(1, 0, LONG * 2).is_none());
        assert_eq!(memory.share(1), 10 * SHORT);
        assert!(memory.take(2, 0, LONG * 2).is_none());
        assert_eq!(memory.queues.len(), 1);
    }

    #[test]
    fn blocks_are_used_again() {
        let mut memory = Memory::new(64 << 20);
        let mut block = memory.take(1, 0, SHORT).unwrap();
        block.push([b"old", b" one"]);
        memory.give_back(1, 0, block);
        let other = memory.take(1, 0, LONG).unwrap();
        assert_eq!((other.size(), memory.spare.len()), (LONG, 1));
        let again = memory.take(1, LONG, SHORT).unwrap();
        assert_eq!((again.len(), memory.spare.len()), (0, 0));
        assert!(again.has_room(SHORT) && other.has_room(MAX_DATAGRAM));
    }
}
