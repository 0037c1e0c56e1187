//! What the keys of a link mean: its impairments as data.

use std::time::Duration;

use vdens_plugin_kit::{Error, Offloads, Result};

use crate::Keys;
use crate::random::{Chance, Distribution, Loss};
use crate::units;

/// Frames that wait for the rate, unless `limit` says otherwise: as in tc.
const LIMIT: usize = 1000;

/// The rate, in bits per second, below which a super-frame would be a burst of over half a
/// millisecond.
const WHOLE: f64 = 1e9;

/// The impairments of one direction.
#[derive(Clone, Debug, PartialEq)]
pub struct Direction {
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
    /// The correlation of each delay with the one before, from 0 to 1.
    pub(crate) correlation: f64,
    pub(crate) distribution: Distribution,
    /// Whether a frame waits for those before it, whatever the jitter.
    pub(crate) is_ordered: bool,
    pub(crate) loss: Loss,
    pub(crate) duplicate: Chance,
    /// The frames that are not delayed: every `gap`th, with this chance.
    pub(crate) reorder: Chance,
    pub(crate) gap: u32,
    pub(crate) corrupt: Chance,
    /// Bits per second.
    pub(crate) rate: Option<f64>,
    /// Bytes that may go at once after a silence.
    pub(crate) burst: f64,
    /// The most frames that wait for the rate.
    pub(crate) limit: usize,
}

impl Direction {
    /// What may be left undone in the frames: nothing where a bit is to be wrong, a checksum where
    /// each frame has a fate of its own, and otherwise everything.
    pub fn offloads(&self) -> Offloads {
        let varies = !self.jitter.is_zero()
            || self.loss.is_possible()
            || self.duplicate.probability > 0.0
            || self.reorder.probability > 0.0;
        match self.corrupt.probability > 0.0 {
            true => Offloads::NONE,
            false if varies || self.rate.is_some_and(|rate| rate < WHOLE) => Offloads::CSUM,
            false => Offloads::ALL,
        }
    }

    /// Reads the keys of the direction with this prefix.
    fn of(keys: &Keys, prefix: &str) -> Result<Self> {
        let get = |key: &str| keys.get(&format!("{prefix}{key}")).or(keys.get(key));
        let time = |key: &str| get(key).map_or(Ok(Duration::ZERO), |text| units::time(key, text));
        let chance = |key: &str| -> Result<Chance> {
            let Some(text) = get(key) else {
                return Ok(Chance::default());
            };
            let (probability, correlation) = text.split_once(',').unwrap_or((text, "0%"));
            Ok(Chance {
                probability: units::percentage(key, probability)?,
                correlation: units::percentage(key, correlation)?,
            })
        };
        let count = |key: &str, default: u32| match get(key) {
            None => Ok(default),
            Some(text) => {
                let count = text.parse().ok().filter(|count| *count > 0);
                count.ok_or_else(|| {
                    let shown = text.escape_debug();
                    Error::usage(format!("bad value '{shown}' for key '{key}'"))
                        .hint("write a number from 1 on")
                })
            }
        };
        let loss = match get("gemodel") {
            None => Loss::Random(chance("loss")?),
            Some(_) if get("loss").is_some() => {
                return Err(Error::usage("loss and gemodel exclude each other"));
            }
            Some(text) => channel(text)?,
        };
        let direction = Self {
            delay: time("delay")?,
            jitter: time("jitter")?,
            correlation: get("correlation")
                .map_or(Ok(0.0), |text| units::percentage("correlation", text))?,
            distribution: get("distribution")
                .map_or(Ok(Distribution::default()), Distribution::named)?,
            is_ordered: get("ordered").is_some(),
            loss,
            duplicate: chance("duplicate")?,
            reorder: chance("reorder")?,
            gap: count("gap", 1)?,
            corrupt: chance("corrupt")?,
            rate: get("rate")
                .map(|text| units::rate("rate", text))
                .transpose()?,
            burst: get("burst").map_or(Ok(0.0), |text| units::size("burst", text))?,
            limit: count("limit", LIMIT as u32)? as usize,
        };
        direction.check(|key| get(key).is_some())?;
        Ok(direction)
    }

    /// Refuses keys that have no meaning without another.
    fn check(&self, has: impl Fn(&str) -> bool) -> Result<()> {
        for (key, needs) in [
            ("reorder", "delay"),
            ("gap", "reorder"),
            ("distribution", "jitter"),
            ("correlation", "jitter"),
            ("ordered", "jitter"),
            ("burst", "rate"),
            ("limit", "rate"),
        ] {
            if has(key) && !has(needs) {
                return Err(
                    Error::usage(format!("'{key}' has no meaning without '{needs}'"))
                        .hint(format!("add {needs}=…, or leave {key} out")),
                );
            }
        }
        Ok(())
    }
}

/// The model `P,R,1-H,1-K` as tc has it: by default R = 1 - P, 1-H = 100 %, 1-K = 0 %.
fn channel(text: &str) -> Result<Loss> {
    let mut numbers = text
        .split(',')
        .map(|number| units::percentage("gemodel", number));
    let to_bad = numbers.next().transpose()?.unwrap_or_default();
    let mut next = |default| numbers.next().unwrap_or(Ok(default));
    let loss = Loss::GilbertElliott {
        to_bad,
        to_good: next(1.0 - to_bad)?,
        lost_bad: next(1.0)?,
        lost_good: next(0.0)?,
    };
    match numbers.next() {
        None => Ok(loss),
        Some(_) => Err(Error::usage("key 'gemodel' has more than four numbers")
            .hint("write gemodel=P,R,1-H,1-K, percentages from the second on may be left out")),
    }
}

/// A link's impairments.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Of the frames that the interface sends.
    pub tx: Direction,
    /// Of the frames that it receives.
    pub rx: Direction,
    /// Decides all that is left to chance.
    pub seed: Option<u64>,
}

impl Settings {
    /// What the keys mean.
    ///
    /// # Errors
    /// A value is none of its kind, or keys contradict each other.
    pub fn of(keys: &Keys) -> Result<Self> {
        let seed = keys.get("seed").map(|text| {
            text.parse().map_err(|_| {
                let shown = text.escape_debug();
                Error::usage(format!("bad value '{shown}' for key 'seed'"))
                    .hint("write a number from 0 to 18446744073709551615")
            })
        });
        Ok(Self {
            tx: Direction::of(keys, "tx.")?,
            rx: Direction::of(keys, "rx.")?,
            seed: seed.transpose()?,
        })
    }

    /// Reads keys as a VNL has them ([`Keys::parse`]).
    ///
    /// # Errors
    /// As for [`Keys::parse`] and [`Settings::of`].
    pub fn parse(text: &str) -> Result<Self> {
        Self::of(&Keys::parse(text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hold_for_both_directions_or_one() {
        let settings = Settings::parse("delay=50ms/loss=1%,25%/rx.loss=2%/tx.rate=10mbit");
        let Settings { tx, rx, seed } = settings.unwrap();
        assert_eq!((tx.delay, rx.delay), (Duration::from_millis(50), tx.delay));
        let chance = |probability, correlation| {
            Loss::Random(Chance {
                probability,
                correlation,
            })
        };
        assert_eq!((tx.loss, rx.loss), (chance(0.01, 0.25), chance(0.02, 0.0)));
        assert_eq!((tx.rate, rx.rate), (Some(10e6), None));
        assert_eq!((tx.limit, tx.gap, seed), (1000, 1, None));
    }

    #[test]
    fn super_frames_are_cut_where_each_frame_has_a_fate() {
        for (keys, offloads) in [
            ("delay=1ms", Offloads::ALL),
            ("rate=10gbit/delay=1ms", Offloads::ALL),
            ("rate=100mbit", Offloads::CSUM),
            ("delay=1ms/jitter=1us", Offloads::CSUM),
            ("loss=1%", Offloads::CSUM),
            ("gemodel=1%", Offloads::CSUM),
            ("delay=1ms/reorder=1%", Offloads::CSUM),
            ("duplicate=1%", Offloads::CSUM),
            ("corrupt=1%/loss=1%", Offloads::NONE),
        ] {
            let settings = Settings::parse(&format!("tx.limit=1/rate=1gbit/{keys}"));
            let settings = settings.unwrap();
            assert_eq!(settings.rx.offloads(), offloads, "{keys}");
            assert_eq!(settings.tx.offloads(), offloads, "{keys}");
        }
    }

    #[test]
    fn models_of_channels() {
        let model = |to_bad, to_good, lost_bad, lost_good| Loss::GilbertElliott {
            to_bad,
            to_good,
            lost_bad,
            lost_good,
        };
        assert_eq!(channel("10%").unwrap(), model(0.1, 0.9, 1.0, 0.0));
        let full = channel("1%,10%,50%,0.5%").unwrap();
        assert_eq!(full, model(0.01, 0.1, 0.5, 0.005));
        for bad in ["", "1", "1%,2%,3%,4%,5%"] {
            assert!(channel(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bad_keys_are_refused_in_one_line() {
        for (keys, words) in [
            ("delay=50", "bad value '50' for key 'delay'"),
            ("delai=1ms", "unknown key 'delai'"),
            ("loss=1%/gemodel=1%", "exclude each other"),
            ("reorder=1%", "'reorder' has no meaning without 'delay'"),
            ("limit=10", "'limit' has no meaning without 'rate'"),
            ("rate=1mbit/limit=0", "a number from 1 on"),
            ("jitter=1ms/distribution=x", "no distribution 'x'"),
            ("seed=x", "bad value 'x' for key 'seed'"),
            ("loss=%zz", "% without two"),
        ] {
            let error = Settings::parse(keys).unwrap_err().to_string();
            assert!(error.contains(words), "{keys}: {error}");
            assert!(!error.contains('\n'), "{keys}: {error}");
        }
    }
}
