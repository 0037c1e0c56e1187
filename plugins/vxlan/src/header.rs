//! The header in front of each frame (RFC 7348, section 5): flags, 24 reserved bits, 24 bits of
//! network identifier, 8 reserved bits, most significant byte first.

/// Its length in bytes.
pub(crate) const LEN: usize = 8;

/// The I flag: there is a network identifier.
const HAS_VNI: u8 = 0x08;

/// The header of network `vni`, of which the lower 24 bits count.
pub(crate) fn encode(vni: u32) -> [u8; LEN] {
    let [_, a, b, c] = vni.to_be_bytes();
    [HAS_VNI, 0, 0, 0, a, b, c, 0]
}

/// The frame in a datagram of network `vni`. Reserved bits are ignored, as the RFC demands.
pub(crate) fn decode(datagram: &[u8], vni: u32) -> Option<&[u8]> {
    let (header, frame) = datagram.split_first_chunk::<LEN>()?;
    let is_ours = header[0] & HAS_VNI != 0 && header[4..7] == vni.to_be_bytes()[1..];
    is_ours.then_some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_network_are_taken() {
        assert_eq!(encode(0x12_3456), [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        let mut datagram = encode(42).to_vec();
        datagram.extend(b"frame");
        assert_eq!(decode(&datagram, 42), Some(&b"frame"[..]));
        assert_eq!(decode(&datagram, 43), None);
        assert_eq!(decode(&datagram[..LEN], 42), Some(&[][..]));
        for len in 0..LEN {
            assert_eq!(decode(&datagram[..len], 42), None);
        }
        // Reserved bits may be set.
        (datagram[0], datagram[3], datagram[7]) = (0xff, 1, 1);
        assert_eq!(decode(&datagram, 42), Some(&b"frame"[..]));
        datagram[0] = !HAS_VNI;
        assert_eq!(decode(&datagram, 42), None);
    }
}
