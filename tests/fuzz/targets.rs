//! What is fuzzed: each target is one parser or codec and what must be true of it for every input.
//!
//! Theory of operation. An input is bytes, and says everything: whatever else a property needs,
//! such as where to split a stream, is read from it too. An input that fails once fails always.
//! A property says more than that nothing crashes. For example, what was encoded decodes to the
//! same, the pieces in which a stream comes make no difference, and the checksums of a cut packet
//! are right as another implementation (`packets`) sees them.
//!
//! No input may take longer than [`LONGEST`] of processor time, and no target may use more than
//! [`GROWTH`] of memory. [`Watched`] measures both.

mod console;
mod control;
mod hello;
mod lab;
mod memory;
mod nat;
mod netem;
mod offload;
mod packets;
mod pump;
mod rstp;
mod settings;
mod stream;
mod vhost;
mod vnl;

use std::time::Duration;

use fastrand::Rng;
use nix::time::{ClockId, clock_gettime};
use vdens_plugin_kit::wire::qemu_stream::QemuStream;
use vdens_plugin_kit::wire::vdestream::Vdestream;

/// The longest that an input may take, in processor time.
const LONGEST: Duration = Duration::from_secs(1);

/// The most memory that a target may use, in bytes.
const GROWTH: usize = 32 << 20;

/// The longest input, in bytes.
pub(crate) const LONGEST_INPUT: usize = 128 * 1024;

/// All targets: the name, which is also that of the corpus's directory, and a constructor.
pub(crate) const TARGETS: [(&str, Make); 22] = [
    ("auto", || Box::new(nat::Auto)),
    ("bpdu", || Box::new(rstp::Bpdus)),
    ("bridge", || Box::new(rstp::Bridges)),
    ("cut", || Box::new(offload::Cut::default())),
    ("hello", || Box::new(hello::Messages)),
    ("join", || Box::new(offload::Join::default())),
    ("lab", || Box::new(lab::LabFile)),
    ("nat-dhcp", || Box::new(nat::Dhcp)),
    ("nat-keys", || Box::new(nat::Keys)),
    ("nat-messages", || Box::new(nat::Messages)),
    ("nat-packets", || Box::new(nat::Packets)),
    ("netem-keys", || Box::new(netem::NetemKeys)),
    ("pump", || Box::new(pump::Pumped::new())),
    ("qemu-stream", || {
        Box::new(stream::Stream::<QemuStream>::default())
    }),
    ("reply", || Box::new(control::Replies)),
    ("request", || Box::new(control::Requests)),
    ("settings", || Box::new(settings::Settings)),
    ("switch-console", || Box::new(console::Consoles)),
    ("vdestream", || {
        Box::new(stream::Stream::<Vdestream>::default())
    }),
    ("vhost-requests", || Box::new(vhost::Requests)),
    ("vhost-rings", || Box::new(vhost::Queues::new())),
    ("vnl", || Box::new(vnl::Locator)),
];

pub(crate) type Make = fn() -> Box<dyn Target>;

/// Something to be fuzzed.
pub(crate) trait Target {
    /// Appends an input, of the kind that the target expects or nearly so, to `input`, which is
    /// empty.
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>);

    /// Tries an input.
    ///
    /// # Errors
    /// A property that does not hold for it. A panic is a finding too.
    fn check(&mut self, input: &[u8]) -> Result<(), String>;
}

/// A target whose use of time and memory is limited.
pub(crate) struct Watched {
    target: Box<dyn Target>,
    /// The bytes allocated before the target was made.
    before: usize,
}

impl Watched {
    pub(crate) fn new(make: Make) -> Self {
        let before = memory::reset_peak();
        Self {
            target: make(),
            before,
        }
    }

    /// See [`Target::generate`]. The input is at most [`LONGEST_INPUT`] long.
    pub(crate) fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        input.clear();
        self.target.generate(random, input);
        input.truncate(LONGEST_INPUT);
    }

    /// Tries an input.
    ///
    /// # Errors
    /// A property that does not hold for it, or that it took too much time or memory.
    pub(crate) fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let start = processor_time();
        self.target.check(input)?;
        let took = processor_time().saturating_sub(start);
        ensure(took <= LONGEST, || format!("it takes {took:?}"))?;
        let grown = memory::peak().saturating_sub(self.before);
        ensure(grown <= GROWTH, || format!("it takes {grown} bytes"))
    }
}

/// An error that reads `message`, unless `holds`.
fn ensure(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    match holds {
        true => Ok(()),
        false => Err(message()),
    }
}

/// One of several.
fn pick<'a, T>(random: &mut Rng, of: &'a [T]) -> &'a T {
    &of[random.usize(..of.len())]
}

/// Appends `len` random bytes.
fn append(random: &mut Rng, bytes: &mut Vec<u8>, len: usize) {
    let start = bytes.len();
    bytes.resize(start + len, 0);
    random.fill(&mut bytes[start..]);
}

/// The processor time of this thread, which a busy machine does not change.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails on inputs that contain 7, is slow for those that contain 8, and takes memory for 9.
    struct Picky;

    impl Target for Picky {
        fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
            input.push(random.u8(..));
        }

        fn check(&mut self, input: &[u8]) -> Result<(), String> {
            let start = processor_time();
            while input.contains(&8) && processor_time() - start <= LONGEST {}
            let memory = vec![1_u8; if input.contains(&9) { GROWTH + 1 } else { 0 }];
            match input.contains(&7) {
                true => Err(format!("a 7 after {} bytes", memory.len())),
                false => Ok(()),
            }
        }
    }

    #[test]
    fn failure_slowness_and_growth_are_findings() {
        let make: Make = || Box::new(Picky);
        for (input, what) in [(7, "a 7"), (8, "it takes 1"), (9, "it takes 335")] {
            let finding = Watched::new(make).check(&[input]).unwrap_err();
            assert!(finding.starts_with(what), "{finding}");
            assert_eq!(Watched::new(make).check(&[0]), Ok(()));
        }
    }
}
