//! A small deterministic generator of numbers, and the mutation of inputs.

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A generator that a seed determines.
    pub(crate) fn new(seed: u64) -> Self {
        // One round of splitmix64, so that neighbouring seeds have nothing in common; the state must not be 0.
        let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((state ^ state >> 31) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`; 0 if that is 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }

    /// One of several.
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub(crate) fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }

    /// True once in `one_in` times.
    pub(crate) fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    /// Appends `len` bytes.
    pub(crate) fn append(&mut self, bytes: &mut Vec<u8>, len: usize) {
        let end = bytes.len() + len;
        while bytes.len() < end {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(end);
    }

    /// Changes an input a little, in up to four places; `other` is another one of its kind.
    pub(crate) fn mutate(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(4) {
            self.change(input, other);
        }
    }

    fn change(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let (from, to) = self.range(input.len());
        match self.below(9) {
            0 if from < input.len() => input[from] ^= 1 << self.below(8),
            1 if from < input.len() => input[from] = *self.pick(&[0, 1, 0x7f, 0x80, 0xfe, 0xff]),
            2 if from < input.len() => input[from] = self.byte(),
            3 if from + 1 < input.len() => {
                let number = u16::from_be_bytes([input[from], input[from + 1]]);
                let changed = number.wrapping_add(*self.pick(&[1, 2, 0x100, 0xfffe, 0xffff]));
                input[from..from + 2].copy_from_slice(&changed.to_be_bytes());
            }
            4 => {
                let byte = self.byte();
                input.insert(from, byte);
            }
            5 => drop(input.drain(from..to)),
            6 => input.extend_from_within(from..to),
            7 => input.truncate(from),
            _ => {
                let (start, end) = self.range(other.len());
                let at = self.below(input.len() + 1);
                input.splice(at..at, other[start..end].iter().copied());
            }
        }
    }

    /// A range of up to 32 bytes in `len` bytes.
    fn range(&mut self, len: usize) -> (usize, usize) {
        let from = self.below(len + 1);
        let most = (len - from).min(32);
        (from, from + self.below(most + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_determines_everything() {
        let make = |seed| {
            let mut random = Random::new(seed);
            let mut bytes = Vec::new();
            random.append(&mut bytes, 100);
            (0..1000).for_each(|_| random.mutate(&mut bytes, b"other"));
            bytes
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
    }

    #[test]
    fn numbers_are_below_their_limit() {
        let mut random = Random::new(0);
        for limit in [1, 2, 3, 1000] {
            let numbers: Vec<_> = (0..10_000).map(|_| random.below(limit)).collect();
            assert!(numbers.iter().all(|n| *n < limit));
            assert!(numbers.contains(&0) && numbers.contains(&(limit - 1)));
        }
        assert_eq!(random.below(0), 0);
    }
}
