//! The Internet checksum (RFC 1071): the one's complement sum of 16-bit words.
//!
//! The sum is the same in either byte order. So words are added as they are in memory, eight bytes
//! at a time, and only numbers are swapped. The sums of parts add up if each part but the last has
//! an even length.

/// A sum under way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum(u128);

impl Sum {
    /// Adds bytes. An odd one at the end counts as if a zero followed.
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            u128::from(u64::from_ne_bytes(word))
        };
        let mut sums = [0_u128; 2];
        let mut pairs = bytes.chunks_exact(16);
        for pair in &mut pairs {
            sums[0] += word(&pair[..8]);
            sums[1] += word(&pair[8..]);
        }
        let mut words = pairs.remainder().chunks_exact(8);
        for single in &mut words {
            sums[0] += word(single);
        }
        let rest = words.remainder();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.0 += sums[0] + sums[1] + u128::from(u64::from_ne_bytes(last));
        self
    }

    /// Adds a number, as if it stood there in network byte order.
    pub(super) fn number(mut self, number: u16) -> Self {
        self.0 += u128::from(number.to_be());
        self
    }

    /// Takes a number away that was added.
    pub(super) fn without(self, number: u16) -> Self {
        self.number(!number)
    }

    /// The sum, as it stands in a packet whose checksum is still to be completed.
    pub(super) fn partial(self) -> [u8; 2] {
        self.fold().to_ne_bytes()
    }

    /// The checksum, as it stands in a packet.
    pub(super) fn checksum(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// The checksum where zero means that there is none: all ones in its stead (RFC 768).
    pub(super) fn checksum_not_zero(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff; 2],
            checksum => checksum,
        }
    }

    /// Whether what was added included its own checksum, and that is right.
    pub(super) fn is_right(self) -> bool {
        self.fold() == 0xffff
    }

    fn fold(self) -> u16 {
        let fold = |sum: u128, bits: u32| (sum & ((1 << bits) - 1)) + (sum >> bits);
        let mut sum = fold(fold(self.0, 64), 64);
        sum = fold(fold(sum, 32), 32);
        fold(fold(fold(sum, 16), 16), 16) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071, section 4.1, word by word.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for word in bytes.chunks(2) {
            sum += u64::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn sums_are_those_of_the_rfc() {
        let bytes: Vec<u8> = (0..3000_u32).map(|n| (n * n / 7) as u8).collect();
        for len in (0..200).chain([1447, 1448, 1500, 2999, 3000]) {
            for start in [0, 1, 3] {
                let part = &bytes[start.min(len)..len];
                let sum = Sum::default().bytes(part);
                assert_eq!(u16::from_be_bytes(sum.checksum()), slow(part), "{len}");
            }
        }
        assert_eq!(
            u16::from_be_bytes(Sum::default().bytes(&[0xff; 65536]).checksum()),
            0
        );
    }

    #[test]
    fn parts_add_up_and_numbers_come_out_again() {
        let bytes: Vec<u8> = (0..99).collect();
        let whole = Sum::default().bytes(&bytes);
        let parts = Sum::default().bytes(&bytes[..40]).bytes(&bytes[40..]);
        assert_eq!(parts.checksum(), whole.checksum());
        assert_eq!(
            whole.number(0xbeef).without(0xbeef).checksum(),
            whole.checksum()
        );
        assert_eq!(Sum::default().number(0x1234).partial(), [0x12, 0x34]);
    }

    #[test]
    fn a_packet_with_its_checksum_is_right() {
        let mut bytes: Vec<u8> = (7..107).collect();
        bytes[50..52].fill(0);
        let checksum = Sum::default().bytes(&bytes).checksum();
        bytes[50..52].copy_from_slice(&checksum);
        assert!(Sum::default().bytes(&bytes).is_right());
        bytes[3] ^= 1;
        assert!(!Sum::default().bytes(&bytes).is_right());
        assert_eq!(
            Sum::default().bytes(&[0xff; 4]).checksum_not_zero(),
            [0xff; 2]
        );
    }
}
