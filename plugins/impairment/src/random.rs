//! Chance: events with a correlation, and delays with a distribution.
//!
//! # Theory of operation
//!
//! An [`Event`] happens with a probability, and with a correlation to the one before. It is a
//! Markov chain with two states: after a time at which it happened it happens with probability
//! `p + c(1 - p)`, otherwise with `p(1 - c)`. So the share of all times is `p` whatever the
//! correlation `c` is, and the autocorrelation at a distance of one is `c`.
//!
//! A [`Delay`] draws from a standard normal process of first order, `z' = cz + √(1 - c²) e`, and
//! maps `z` by way of its rank to the distribution. So the correlation does not change the
//! distribution.
//!
//! Each of them has a generator of its own, with a seed that is derived from the link's. So the
//! same frames are lost with the same seed, whatever else is set.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use fastrand::Rng;
use vdens_plugin_kit::{Error, Result};

/// The probability of an event, and its correlation with the one before: both from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Chance {
    pub probability: f64,
    pub correlation: f64,
}

/// Something that happens to some frames.
#[derive(Debug)]
pub(crate) struct Event {
    rng: Rng,
    happened: bool,
}

impl Event {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            happened: false,
        }
    }

    /// Whether it happens to the next frame.
    pub(crate) fn happens(&mut self, chance: Chance) -> bool {
        let Chance {
            probability: p,
            correlation: c,
        } = chance;
        let now = if self.happened {
            p + c * (1.0 - p)
        } else {
            p * (1.0 - c)
        };
        self.happened = self.rng.f64() < now;
        self.happened
    }

    /// A number below `end`, for the details of the event.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.rng.usize(..end.max(1))
    }
}

/// How frames are lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Loss {
    /// Each with a probability.
    Random(Chance),
    /// In bursts: the channel of Gilbert and Elliott, whose state changes with each frame.
    GilbertElliott {
        /// The probability of a change from good to bad.
        to_bad: f64,
        /// The probability of a change from bad to good.
        to_good: f64,
        /// The share of frames that are lost in the bad state.
        lost_bad: f64,
        /// The share of frames that are lost in the good state.
        lost_good: f64,
    },
}

impl Loss {
    /// Whether any frame can be lost.
    pub(crate) fn is_possible(self) -> bool {
        self != Self::default()
    }
}

impl Default for Loss {
    fn default() -> Self {
        Self::Random(Chance::default())
    }
}

/// A channel that loses frames.
#[derive(Debug)]
pub(crate) struct Channel {
    random: Event,
    is_bad: bool,
}

impl Channel {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Event::new(seed),
            is_bad: false,
        }
    }

    /// Whether the next frame is lost.
    pub(crate) fn loses(&mut self, loss: Loss) -> bool {
        match loss {
            Loss::Random(chance) => self.random.happens(chance),
            Loss::GilbertElliott {
                to_bad,
                to_good,
                lost_bad,
                lost_good,
            } => {
                let (change, lost) = match self.is_bad {
                    true => (to_good, lost_bad),
                    false => (to_bad, lost_good),
                };
                let is_lost = self.random.rng.f64() < lost;
                self.is_bad ^= self.random.rng.f64() < change;
                is_lost
            }
        }
    }
}

/// The shape of the variation of a delay, whose unit is the jitter.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Distribution {
    /// Any delay within the jitter is as likely as any other.
    #[default]
    Uniform,
    /// The jitter is the standard deviation.
    Normal,
    /// A long tail: of Pareto's distribution with the exponent 3, as tc's table has it.
    Pareto,
    /// Variations in ascending order, each as likely as any other; at least one.
    Table(Vec<f64>),
}

impl Distribution {
    /// The unit of the numbers in a table file: a variation of one jitter
    /// (`NETEM_DIST_SCALE` of `linux/pkt_sched.h`).
    const SCALE: f64 = 8192.0;
    /// The most numbers in a table file (`NETEM_DIST_MAX` of `linux/pkt_sched.h`).
    const MAX: usize = 16_384;
    /// The largest variation in tc's tables, whose numbers have 16 bits.
    const LARGEST: f64 = 32_767.0 / Self::SCALE;

    /// A distribution by its name, or that of a file which contains a `/`.
    ///
    /// # Errors
    /// There is no such distribution, or the file is no table.
    pub(crate) fn named(name: &str) -> Result<Self> {
        match name {
            "uniform" => Ok(Self::Uniform),
            "normal" => Ok(Self::Normal),
            "pareto" => Ok(Self::Pareto),
            path if path.contains('/') => Self::read(Path::new(path)),
            other => Err(Error::usage(format!(
                "there is no distribution '{}'",
                other.escape_debug()
            ))
            .hint("write uniform, normal, pareto or the quoted path of a table of tc's")),
        }
    }

    /// Reads a table as `/usr/lib/tc` has them: numbers, and comments from `#` to a line's end.
    fn read(path: &Path) -> Result<Self> {
        let cannot = |e: &std::io::Error| Error::path("read the distribution", path, e);
        // Anything else could keep the reader waiting.
        let meta = path.metadata().map_err(|e| cannot(&e))?;
        if !meta.is_file() {
            return Err(Error::usage(format!("{} is no file", path.display())));
        }
        // A number has at most six digits and a separator.
        let limit = 16 * Self::MAX as u64;
        let mut text = String::new();
        let file = File::open(path).map_err(|e| cannot(&e))?;
        file.take(limit)
            .read_to_string(&mut text)
            .map_err(|e| cannot(&e))?;
        let lines = text
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default());
        let numbers = lines.flat_map(str::split_whitespace).map(str::parse::<i16>);
        let table: std::result::Result<Vec<_>, _> = numbers.collect();
        match table {
            Ok(mut table) if (1..=Self::MAX).contains(&table.len()) => {
                table.sort_unstable();
                let unit = |number: i16| f64::from(number) / Self::SCALE;
                Ok(Self::Table(table.into_iter().map(unit).collect()))
            }
            _ => Err(
                Error::usage(format!("{} is no table of a distribution", path.display()))
                    .hint("a table has 1 to 16384 numbers from -32768 to 32767"),
            ),
        }
    }

    /// The variation of rank `rank`, which is from 0 to 1, and whose standard normal variation is
    /// `z`.
    fn variation(&self, z: f64) -> f64 {
        let rank = libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2) / 2.0;
        match self {
            Self::Uniform => 2.0 * rank - 1.0,
            Self::Normal => z,
            Self::Pareto => {
                let value = (1.0 - rank).max(f64::MIN_POSITIVE).powf(-1.0 / 3.0);
                ((value - 1.5) * 4.0 / 3.0).min(Self::LARGEST)
            }
            Self::Table(table) => {
                let index = (rank * table.len() as f64) as usize;
                table[index.min(table.len() - 1)]
            }
        }
    }
}

/// The source of the variations of a delay.
#[derive(Debug)]
pub(crate) struct Delay {
    rng: Rng,
    /// The last standard normal variation.
    z: f64,
}

impl Delay {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            z: 0.0,
        }
    }

    /// The next variation, in jitters.
    pub(crate) fn variation(&mut self, distribution: &Distribution, correlation: f64) -> f64 {
        // Box and Muller's transformation; 1 - f64() is never 0.
        let radius = (-2.0 * (1.0 - self.rng.f64()).ln()).sqrt();
        let e = radius * (std::f64::consts::TAU * self.rng.f64()).cos();
        self.z = correlation * self.z + (1.0 - correlation * correlation).sqrt() * e;
        distribution.variation(self.z)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: usize = 100_000;

    /// Mean, standard deviation, and correlation of each with the one before.
    fn moments(values: &[f64]) -> (f64, f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let pairs = values.windows(2).map(|w| (w[0] - mean) * (w[1] - mean));
        (mean, variance.sqrt(), pairs.sum::<f64>() / n / variance)
    }

    fn near(value: f64, expected: f64, within: f64) {
        assert!((value - expected).abs() < within, "{value}, not {expected}");
    }

    #[test]
    fn events_keep_probability_and_correlation() {
        for (probability, correlation) in [(0.01, 0.0), (0.3, 0.0), (0.3, 0.5), (0.05, 0.9)] {
            let chance = Chance {
                probability,
                correlation,
            };
            let mut event = Event::new(7);
            let values: Vec<f64> = (0..TIMES)
                .map(|_| f64::from(u8::from(event.happens(chance))))
                .collect();
            let (mean, _, correlated) = moments(&values);
            near(mean, probability, 0.015);
            near(correlated, correlation, 0.02);
        }
    }

    #[test]
    fn never_and_always() {
        let mut event = Event::new(1);
        assert!(!(0..1000).any(|_| event.happens(Chance::default())));
        let always = Chance {
            probability: 1.0,
            correlation: 0.0,
        };
        assert!((0..1000).all(|_| event.happens(always)));
    }

    #[test]
    fn a_bad_channel_loses_in_bursts() {
        let loss = Loss::GilbertElliott {
            to_bad: 0.01,
            to_good: 0.1,
            lost_bad: 1.0,
            lost_good: 0.0,
        };
        let mut channel = Channel::new(3);
        let lost: Vec<f64> = (0..TIMES)
            .map(|_| f64::from(u8::from(channel.loses(loss))))
            .collect();
        let (mean, _, correlation) = moments(&lost);
        near(mean, 0.01 / 0.11, 0.01);
        near(correlation, 1.0 - 0.11, 0.02);
    }

    #[test]
    fn delays_keep_distribution_and_correlation() {
        let table = Distribution::Table(vec![-1.0, 1.0]);
        for (distribution, deviation, mean) in [
            (Distribution::Uniform, 1.0 / 3.0_f64.sqrt(), 0.0),
            (Distribution::Normal, 1.0, 0.0),
            (Distribution::Pareto, 0.82, -0.02),
            (table, 1.0, 0.0),
        ] {
            for correlation in [0.0, 0.6] {
                let mut delay = Delay::new(5);
                let values: Vec<f64> = (0..TIMES)
                    .map(|_| delay.variation(&distribution, correlation))
                    .collect();
                let (mean_seen, deviation_seen, correlated) = moments(&values);
                near(mean_seen, mean, 0.03);
                near(deviation_seen, deviation, 0.03);
                near(correlated, correlation, 0.2);
                if distribution == Distribution::Uniform {
                    assert!(values.iter().all(|v| v.abs() <= 1.0));
                }
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_events() {
        let chance = Chance {
            probability: 0.1,
            correlation: 0.2,
        };
        let run = |seed| -> Vec<bool> {
            let mut event = Event::new(seed);
            (0..200).map(|_| event.happens(chance)).collect()
        };
        assert_eq!(run(9), run(9));
        assert_ne!(run(9), run(10));
    }

    #[test]
    fn tables_are_read_as_tc_has_them() {
        let directory = std::env::temp_dir().join(format!("netem-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("table");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Distribution::named(path.to_str().unwrap())
        };
        let table = read("# comment\n 4096 0 # half\n-8192\n").unwrap();
        assert_eq!(table, Distribution::Table(vec![-1.0, 0.0, 0.5]));
        for bad in ["", "# nothing", "1 x", "40000", &"1 ".repeat(16_385)] {
            let error = read(bad).unwrap_err().to_string();
            assert!(
                error.contains("no table") && error.contains("16384"),
                "{error}"
            );
        }
        std::fs::remove_dir_all(&directory).unwrap();
        let error = Distribution::named("./none").unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
        let error = Distribution::named("gauss").unwrap_err().to_string();
        assert!(error.contains("uniform, normal"), "{error}");
    }
}
