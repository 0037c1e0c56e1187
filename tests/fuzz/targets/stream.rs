//! Frames on streams: vdestreams, and QEMU's. An input is four bytes that say how the stream is
//! split, and the stream.

use std::marker::PhantomData;

use fastrand::Rng;
use vdens_plugin_kit::wire::framing::{Decoder, ENCODER_LIMIT, Encoder, Framing, StreamError};

use super::{Target, append, ensure, pick};

pub(crate) struct Stream<F> {
    written: Vec<u8>,
    canonical: Vec<u8>,
    framing: PhantomData<F>,
}

impl<F> Default for Stream<F> {
    fn default() -> Self {
        Self {
            written: Vec::new(),
            canonical: Vec::new(),
            framing: PhantomData,
        }
    }
}

/// A stream as this file reads it: its frames, and the length that breaks it behind them.
struct Expected<'a> {
    frames: Vec<&'a [u8]>,
    broken: Option<usize>,
}

impl<'a> Expected<'a> {
    fn of<F: Framing>(mut stream: &'a [u8]) -> Self {
        let mut expected = Self {
            frames: Vec::new(),
            broken: None,
        };
        while let Some((header, rest)) = stream.split_at_checked(F::HEADER_LEN) {
            let digits = header.iter().map(|byte| usize::from(*byte));
            let length = digits.fold(0, |length, digit| length * 256 + digit);
            if length > F::MAX_FRAME || (length == 0 && !F::IS_PADDED) {
                expected.broken = Some(length);
                break;
            }
            let Some((frame, behind)) = rest.split_at_checked(length) else {
                break;
            };
            if !frame.is_empty() {
                expected.frames.push(frame);
            }
            stream = behind;
        }
        expected
    }
}

impl<F: Framing> Target for Stream<F> {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        append(random, input, 4);
        for _ in 0..random.usize(..8) {
            let length = match random.usize(..32) {
                0 => *pick(
                    random,
                    &[F::MAX_FRAME - 1, F::MAX_FRAME, F::MAX_FRAME + 1, 0xffff],
                ),
                1..=3 => random.usize(..2000),
                4..=8 if F::IS_PADDED => 0,
                _ => random.usize(usize::from(!F::IS_PADDED)..80),
            };
            input.extend(header::<F>(length));
            append(random, input, length.min(F::MAX_FRAME));
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let (seed, stream) = match input.split_first_chunk() {
            Some((seed, stream)) => (u64::from(u32::from_le_bytes(*seed)), stream),
            None => (0, input),
        };
        let expected = Expected::of::<F>(stream);
        decode::<F>(stream, &expected, || usize::MAX)
            .map_err(|what| format!("in one piece: {what}"))?;
        let mut random = Rng::with_seed(seed);
        let most = *pick(&mut random, &[1, 2, 3, 100, 5000]);
        // Byte by byte is for what is short.
        let most = if stream.len() > 4096 { 5000 } else { most };
        decode::<F>(stream, &expected, || 1 + random.usize(..most))
            .map_err(|what| format!("in pieces: {what}"))?;
        self.encode(&expected.frames, &mut random)
    }
}

/// The length before a frame.
fn header<F: Framing>(length: usize) -> impl Iterator<Item = u8> {
    let bytes = (length as u32).to_be_bytes();
    bytes.into_iter().skip(4 - F::HEADER_LEN)
}

/// Decodes a stream in pieces of at most the sizes that `piece` says.
fn decode<F: Framing>(
    stream: &[u8],
    expected: &Expected<'_>,
    mut piece: impl FnMut() -> usize,
) -> Result<(), String> {
    let mut decoder = Decoder::<F>::new();
    let mut frames = expected.frames.iter();
    let mut rest = stream;
    loop {
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    let is_next = frames.next().is_some_and(|next| *next == frame);
                    ensure(is_next, || {
                        format!("a frame of {} bytes too many", frame.len())
                    })?;
                }
                Ok(None) => break,
                Err(error) => {
                    let length = match error {
                        StreamError::TooLong { length, .. } => length,
                        StreamError::Empty(_) => 0,
                        other => return Err(other.to_string()),
                    };
                    let is_due = expected.broken == Some(length) && frames.len() == 0;
                    return ensure(is_due, || format!("it is broken by a length of {length}"));
                }
            }
        }
        if rest.is_empty() {
            break;
        }
        let space = decoder.space();
        ensure(space.len() >= F::MAX_RECORD, || {
            format!("room for {} bytes", space.len())
        })?;
        let len = piece().min(space.len()).min(rest.len());
        let (now, later) = rest.split_at(len);
        space[..len].copy_from_slice(now);
        decoder.filled(len);
        rest = later;
    }
    ensure(frames.len() == 0, || {
        format!("{} frames too few", frames.len())
    })?;
    ensure(expected.broken.is_none(), || {
        "nobody has noticed that it is broken".into()
    })
}

impl<F: Framing> Stream<F> {
    /// Encodes frames and takes them away in pieces: it must be the stream without what is not
    /// needed.
    fn encode(&mut self, frames: &[&[u8]], random: &mut Rng) -> Result<(), String> {
        self.written.clear();
        self.canonical.clear();
        let mut encoder = Encoder::<F>::new();
        // Now and then so much that the encoder's limits come into it.
        let bytes = frames.iter().map(|frame| frame.len()).sum::<usize>();
        let times = match random.usize(..128) == 0 {
            true => 3 * ENCODER_LIMIT / bytes.max(1000),
            false => 1,
        };
        let most = if times > 1 { 2000 } else { usize::MAX };
        for frame in frames.iter().cycle().take(times * frames.len()) {
            let (before, record) = (encoder.pending().len(), F::HEADER_LEN + frame.len());
            match encoder.push(frame) {
                Ok(true) => {
                    self.canonical.extend(header::<F>(frame.len()));
                    self.canonical.extend(*frame);
                }
                Ok(false) => ensure(before + record > ENCODER_LIMIT, || {
                    "a frame is refused".into()
                })?,
                Err(error) => return Err(error.to_string()),
            }
            let pending = encoder.pending();
            ensure(pending.len() <= ENCODER_LIMIT, || {
                "it keeps too much".into()
            })?;
            let len = random.usize(..pending.len().min(most) + 1);
            self.written.extend(&pending[..len]);
            encoder.consume(len);
        }
        self.written.extend(encoder.pending());
        ensure(self.written == self.canonical, || {
            "encoded, it is another stream".into()
        })
    }
}
