//! Netlink messages as bytes: what the crates for rtnetlink have no types for.
//!
//! A message is a header (`struct nlmsghdr`), the family's own header, and attributes (`struct
//! nlattr`) that may hold attributes. All are aligned to four bytes (netlink(7), linux/netlink.h).

/// Set in an attribute's type if attributes are in it (`NLA_F_NESTED`).
const NESTED: u16 = 0x8000;

/// A netlink message in the making.
pub struct Message(Vec<u8>);

impl Message {
    /// A message of a type (`nlmsg_type`) with flags (`NLM_F_*`), a sequence number and the header
    /// of its family.
    pub fn new(kind: u16, flags: u16, sequence: u32, family: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(family);
        let mut message = Self(bytes);
        message.pad();
        message
    }

    /// Adds an attribute.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.pad();
        self
    }

    /// Adds an attribute that is a string, with its terminating NUL.
    pub fn put_str(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Adds an attribute that is a number, most significant byte first.
    pub fn put_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds an attribute that holds what `fill` adds.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NESTED).to_ne_bytes());
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// The message, with its length in its header.
    pub fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }

    fn pad(&mut self) {
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
    }
}

/// The attributes in `bytes`: each one's type, less the flags in it, and its value. It ends at the
/// first that is malformed.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut message = Message::new(7, 1, 9, &[2, 0, 0, 0]);
        message.put(1, &[5]).nest(2, |inner| {
            inner.put_be32(3, 4);
        });
        let bytes = message.finish();
        assert_eq!(bytes.len(), 16 + 4 + 8 + 12);
        assert_eq!(bytes[..4], 40_u32.to_ne_bytes());
        let read: Vec<_> = attributes(&bytes[20..]).collect();
        assert_eq!(read[0], (1, &[5_u8][..]));
        assert_eq!(read[1].0, 2);
        let inner: Vec<_> = attributes(read[1].1).collect();
        assert_eq!(inner, [(3, &[0, 0, 0, 4][..])]);
    }

    #[test]
    fn malformed_attributes_end_the_list() {
        for bytes in [&[4, 0][..], &[200, 0, 1, 0, 0], &[3, 0, 1, 0]] {
            assert_eq!(attributes(bytes).count(), 0);
        }
    }
}
