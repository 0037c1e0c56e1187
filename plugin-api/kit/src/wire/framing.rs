//! Frames on a byte stream, each behind its length.
//!
//! # Theory of operation
//!
//! A record is a big-endian length, and an Ethernet frame of that length. A [`Framing`] says how
//! many bytes the length has, and which lengths there are. A wrong length ends the stream with an
//! error, because nothing behind it can be trusted to be a length.
//!
//! A stream is cut anywhere, so each direction keeps unfinished bytes in a buffer. Neither
//! allocates per frame:
//!
//! - [`Decoder`]: read into [`space`](Decoder::space), pass the count to
//!   [`filled`](Decoder::filled), and take frames from [`next_frame`](Decoder::next_frame) until
//!   there is none. The frames are views of the buffer.
//! - [`Encoder`]: [`push`](Encoder::push) frames, write [`pending`](Encoder::pending), and pass the
//!   count to [`consume`](Encoder::consume).
//!
//! Both move unfinished bytes to the front only when the back is full. By then, more bytes have
//! gone than are left, so the copying costs less than one copy a byte.

use std::fmt::{self, Debug};
use std::marker::PhantomData;

use crate::error::{Error, ErrorKind};

/// The most bytes that an [`Encoder`] buffers for a slow reader.
pub const ENCODER_LIMIT: usize = 256 * 1024;

/// The least size of a [`Decoder`]'s buffer, in bytes.
const DECODER_LEN: usize = 64 * 1024;

/// How a stream says where its frames are.
pub trait Framing: Debug + Send + 'static {
    /// The stream's name in messages.
    const NAME: &'static str;
    /// Bytes of the length before each frame: 1 to 4.
    const HEADER_LEN: usize;
    /// The longest frame, in bytes; it fits into the length.
    const MAX_FRAME: usize;
    /// Whether a length of 0 is padding, which is skipped. If not, it is an error.
    const IS_PADDED: bool;

    /// Bytes of the longest record.
    const MAX_RECORD: usize = Self::HEADER_LEN + Self::MAX_FRAME;
}

/// Why a stream cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamError {
    /// A frame is longer than [`Framing::MAX_FRAME`].
    TooLong {
        /// [`Framing::NAME`].
        stream: &'static str,
        /// What its length says, in bytes.
        length: usize,
        /// [`Framing::MAX_FRAME`].
        limit: usize,
    },
    /// A frame has a length of 0, and the stream has no padding.
    Empty(&'static str),
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong {
                stream,
                length,
                limit,
            } => write!(
                f,
                "{stream} frame of {length} bytes is too long, the limit is {limit}"
            ),
            Self::Empty(stream) => write!(f, "{stream} frame of 0 bytes"),
        }
    }
}

impl std::error::Error for StreamError {}

impl From<StreamError> for Error {
    fn from(error: StreamError) -> Self {
        Self::new(ErrorKind::Protocol, error.to_string())
    }
}

/// The length before a frame of `len` bytes: the last [`Framing::HEADER_LEN`] of these bytes.
///
/// # Errors
/// `len` exceeds [`Framing::MAX_FRAME`].
fn header<F: Framing>(len: usize) -> Result<[u8; 4], StreamError> {
    match u32::try_from(len) {
        Ok(short) if len <= F::MAX_FRAME => Ok(short.to_be_bytes()),
        _ => Err(too_long::<F>(len)),
    }
}

fn too_long<F: Framing>(length: usize) -> StreamError {
    StreamError::TooLong {
        stream: F::NAME,
        length,
        limit: F::MAX_FRAME,
    }
}

/// Takes frames out of a stream that is read in arbitrary pieces.
#[derive(Debug)]
pub struct Decoder<F> {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    framing: PhantomData<F>,
}

impl<F: Framing> Default for Decoder<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: Framing> Decoder<F> {
    /// Bytes of the buffer. With two of the longest records it always has room for one.
    const LEN: usize = match 4 * F::MAX_RECORD {
        len @ DECODER_LEN.. => len,
        _ => DECODER_LEN,
    };

    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Self {
            buffer: vec![0; Self::LEN].into_boxed_slice(),
            start: 0,
            end: 0,
            framing: PhantomData,
        }
    }

    /// Where to read the stream's next bytes into. After [`next_frame`](Self::next_frame) has
    /// returned `None`, it has room for a whole record. It is empty only if the buffer is full of
    /// frames that have not been taken.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < F::MAX_RECORD {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Accounts for `n` bytes that were read into [`space`](Self::space).
    pub fn filled(&mut self, n: usize) {
        debug_assert!(n <= self.buffer.len() - self.end);
        self.end = self.end.saturating_add(n).min(self.buffer.len());
    }

    /// The next frame, which is never empty; `None` if it is not complete yet.
    ///
    /// # Errors
    /// The length of the next record is wrong. The stream is of no more use.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, StreamError> {
        loop {
            let received = &self.buffer[self.start..self.end];
            let Some((length, rest)) = received.split_at_checked(F::HEADER_LEN) else {
                return Ok(None);
            };
            let mut bytes = [0; 4];
            bytes[4 - F::HEADER_LEN..].copy_from_slice(length);
            let length = u32::from_be_bytes(bytes) as usize;
            if length > F::MAX_FRAME {
                return Err(too_long::<F>(length));
            }
            if length == 0 && !F::IS_PADDED {
                return Err(StreamError::Empty(F::NAME));
            }
            if rest.len() < length {
                return Ok(None);
            }
            let frame = self.start + F::HEADER_LEN;
            self.start = frame + length;
            if length > 0 {
                return Ok(Some(&self.buffer[frame..self.start]));
            }
        }
    }
}

/// Puts frames into a stream that is written in arbitrary pieces.
#[derive(Debug)]
pub struct Encoder<F> {
    buffer: Vec<u8>,
    start: usize,
    framing: PhantomData<F>,
}

impl<F: Framing> Default for Encoder<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: Framing> Encoder<F> {
    /// An encoder with nothing to write.
    pub fn new() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            framing: PhantomData,
        }
    }

    /// Appends `frame`; `false` if the reader is too far behind, so that the caller must drop the
    /// frame. An empty frame adds nothing.
    ///
    /// # Errors
    /// The frame is longer than [`Framing::MAX_FRAME`].
    pub fn push(&mut self, frame: &[u8]) -> Result<bool, StreamError> {
        let header = header::<F>(frame.len())?;
        if frame.is_empty() {
            return Ok(true);
        }
        let record = F::HEADER_LEN + frame.len();
        if self.pending().len() + record > ENCODER_LIMIT {
            return Ok(false);
        }
        if self.buffer.len() + record > 2 * ENCODER_LIMIT {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(&header[4 - F::HEADER_LEN..]);
        self.buffer.extend_from_slice(frame);
        Ok(true)
    }

    /// The bytes to write next, at most [`ENCODER_LIMIT`].
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Accounts for `n` bytes of [`pending`](Self::pending) that were written.
    pub fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.pending().len());
        self.start = self.start.saturating_add(n);
        if self.start >= self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::qemu_stream::QemuStream;
    use crate::wire::vdestream::Vdestream;

    const MAX_FRAME: usize = Vdestream::MAX_FRAME;
    const MAX_RECORD: usize = Vdestream::MAX_RECORD;

    fn too_long(length: usize) -> StreamError {
        super::too_long::<Vdestream>(length)
    }

    /// Feeds `bytes` as reads of at most `most` and collects the frames.
    fn feed<F: Framing>(
        decoder: &mut Decoder<F>,
        mut bytes: &[u8],
        most: usize,
        frames: &mut Vec<Vec<u8>>,
    ) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let space = decoder.space();
            assert!(space.len() >= F::MAX_RECORD);
            let n = bytes.len().min(most).min(space.len());
            space[..n].copy_from_slice(&bytes[..n]);
            decoder.filled(n);
            bytes = &bytes[n..];
            while let Some(frame) = decoder.next_frame()? {
                frames.push(frame.to_vec());
            }
        }
        Ok(())
    }

    #[test]
    fn headers() {
        assert_eq!(header::<Vdestream>(0), Ok([0; 4]));
        assert_eq!(header::<Vdestream>(0x0102), Ok([0, 0, 1, 2]));
        assert_eq!(header::<Vdestream>(9234), Ok([0, 0, 0x24, 0x12]));
        for length in [9235, 0x1_0000, 0x1_0002, usize::MAX] {
            assert_eq!(header::<Vdestream>(length), Err(too_long(length)));
        }
        assert_eq!(header::<QemuStream>(65_558), Ok([0, 1, 0, 22]));
        assert!(header::<QemuStream>(65_559).is_err());
        assert_eq!(Error::from(too_long(9235)).kind, ErrorKind::Protocol);
    }

    #[test]
    fn every_split() {
        let bytes = b"\x00\x03abc\x00\x00\x00\x01d\x00\x00\x00\x00\x00\x05efghi";
        let expected = [b"abc".to_vec(), b"d".to_vec(), b"efghi".to_vec()];
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let (mut decoder, mut frames) = (Decoder::<Vdestream>::new(), Vec::new());
                for piece in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                    feed(&mut decoder, piece, usize::MAX, &mut frames).unwrap();
                }
                assert_eq!(frames, expected, "{first} {second}");
            }
        }
        for most in 1..=bytes.len() {
            let (mut decoder, mut frames) = (Decoder::<Vdestream>::new(), Vec::new());
            feed(&mut decoder, bytes, most, &mut frames).unwrap();
            assert_eq!(frames, expected, "{most}");
        }
    }

    #[test]
    fn limits() {
        let mut longest = vec![0x24, 0x12];
        longest.resize(MAX_RECORD, 7);
        let (mut decoder, mut frames) = (Decoder::<Vdestream>::new(), Vec::new());
        feed(&mut decoder, &longest, 1000, &mut frames).unwrap();
        assert_eq!(frames, [[7; MAX_FRAME]]);

        // Known from the length alone, after the good frames, and for good.
        let error = feed(&mut decoder, b"\x00\x01a\x24\x13", 64, &mut frames);
        assert_eq!(error, Err(too_long(9235)));
        assert_eq!(frames.len(), 2);
        assert_eq!(decoder.next_frame(), Err(too_long(9235)));
    }

    #[test]
    fn qemus_lengths_have_four_bytes_and_are_never_0() {
        let mut longest = vec![0, 1, 0, 22];
        longest.resize(QemuStream::MAX_RECORD, 7);
        let bytes = [&b"\0\0\0\x03abc"[..], &longest, b"\0\0\0\x01d"].concat();
        for most in [1, 3, 100_000, usize::MAX] {
            let (mut decoder, mut frames) = (Decoder::<QemuStream>::new(), Vec::new());
            feed(&mut decoder, &bytes, most, &mut frames).unwrap();
            assert_eq!(frames, [b"abc".to_vec(), vec![7; 65_558], b"d".to_vec()]);
        }
        for (bytes, words) in [
            (&b"\0\0\0\0"[..], "QEMU stream frame of 0 bytes"),
            (
                b"\0\x01\0\x17",
                "65559 bytes is too long, the limit is 65558",
            ),
            (b"\xff\xff\xff\xff", "4294967295 bytes is too long"),
        ] {
            let (mut decoder, mut frames) = (Decoder::<QemuStream>::new(), Vec::new());
            feed(&mut decoder, b"\0\0\0\x01a", 64, &mut frames).unwrap();
            let error = feed(&mut decoder, bytes, 64, &mut frames).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(frames.len(), 1);
        }
    }

    #[test]
    fn a_full_decoder_has_no_space_and_recovers() {
        let mut decoder = Decoder::<Vdestream>::new();
        let mut count = 0;
        loop {
            let space = decoder.space();
            if space.is_empty() {
                break;
            }
            // Records of 4 bytes fill the buffer exactly.
            let n = space.len().min(4000);
            for record in space[..n].chunks_mut(4) {
                record.copy_from_slice(b"\x00\x02hi");
                count += 1;
            }
            decoder.filled(n);
        }
        while let Some(frame) = decoder.next_frame().unwrap() {
            assert_eq!(frame, b"hi");
            count -= 1;
        }
        assert_eq!(count, 0);
        assert_eq!(decoder.space().len(), Decoder::<Vdestream>::LEN);
    }

    #[test]
    fn round_trip_in_random_pieces() {
        let mut random = fastrand::Rng::with_seed(1);
        let (mut encoder, mut decoder) = (Encoder::<Vdestream>::new(), Decoder::<Vdestream>::new());
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for i in 0..20_000_usize {
            let length = match random.usize(..8) {
                0 => 0,
                1 => MAX_FRAME - random.usize(..3),
                _ => 1 + random.usize(..200),
            };
            let frame = vec![i as u8; length];
            if encoder.push(&frame).unwrap() && length > 0 {
                sent.push(frame);
            }
            let pending = encoder.pending();
            assert!(pending.len() <= ENCODER_LIMIT);
            let n = random.usize(..3000).min(pending.len());
            feed(
                &mut decoder,
                &pending[..n],
                1 + random.usize(..5000),
                &mut received,
            )
            .unwrap();
            encoder.consume(n);
            assert!(encoder.buffer.len() <= 2 * ENCODER_LIMIT);
        }
        let rest = encoder.pending().len();
        feed(&mut decoder, encoder.pending(), 4096, &mut received).unwrap();
        encoder.consume(rest);
        assert!(encoder.pending().is_empty());
        assert!(sent.len() > 5_000 && sent == received);
    }

    #[test]
    fn encoder_bound() {
        let mut encoder = Encoder::<Vdestream>::new();
        let frame = [1; 1022];
        for _ in 0..256 {
            assert_eq!(encoder.push(&frame), Ok(true));
        }
        assert_eq!(encoder.pending().len(), ENCODER_LIMIT);
        assert_eq!(encoder.push(&frame), Ok(false));
        assert_eq!(encoder.push(&[1]), Ok(false));
        encoder.consume(1023);
        assert_eq!(encoder.push(&frame), Ok(false));
        encoder.consume(1);
        assert_eq!(encoder.push(&frame), Ok(true));
        assert_eq!(encoder.pending().len(), ENCODER_LIMIT);
        let frame = [0; MAX_FRAME + 1];
        assert_eq!(encoder.push(&frame), Err(too_long(9235)));
    }
}
