//! What each link moves in a second, from two samples of its counters.
//!
//! A link's counters start anew when its worker is restarted. A counter that is lower than before
//! counts from zero, so a rate is never negative. A link that was not there before has no rate yet.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::ipc::status::{Counters, Entry, LabStatus, Process, Report};
use crate::sys::interface::Count;
use crate::tools::status::client::Answer;
use crate::tools::status::text::state;

/// How many rates of a link are remembered.
pub(super) const HISTORY: usize = 120;

/// The counters of a link at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sample {
    state: String,
    vnl: String,
    received: Count,
    sent: Count,
}

/// What a link moves in one direction, for each second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rate {
    /// Bits of frames.
    pub bits: f64,
    /// Frames; a super-frame is one.
    pub frames: f64,
    /// Frames that were dropped.
    pub dropped: f64,
}

/// A link and what it moves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Moving {
    /// The link's name: that of its session, and its interface.
    pub link: String,
    /// Its state in a word or two, as `vdectl status` has it.
    pub state: String,
    /// What it is plugged into.
    pub vnl: String,
    /// From the network.
    pub received: Rate,
    /// Into the network.
    pub sent: Rate,
    /// The bits of both directions in the last seconds, the latest last.
    #[serde(skip)]
    pub history: VecDeque<u64>,
}

impl Moving {
    fn bits(&self) -> f64 {
        self.received.bits + self.sent.bits
    }

    fn frames(&self) -> f64 {
        self.received.frames + self.sent.frames
    }

    /// Drops in both directions.
    pub(super) fn dropped(&self) -> f64 {
        self.received.dropped + self.sent.dropped
    }
}

/// In what order links are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// Those with most bits first.
    #[default]
    Bits,
    /// Those with most frames first.
    Frames,
    /// Those with most drops first.
    Drops,
    /// By name.
    Name,
}

impl Order {
    /// Sorts links. Those that are equal are in the order of their names.
    pub(super) fn sort(self, links: &mut [Moving]) {
        let most = |key: fn(&Moving) -> f64| {
            // A rate is finite and not negative, and a thousandth of a bit is nothing.
            move |link: &Moving| Reverse((key(link) * 1000.0) as u64)
        };
        links.sort_by(|a, b| a.link.cmp(&b.link));
        match self {
            Self::Bits => links.sort_by_key(most(Moving::bits)),
            Self::Frames => links.sort_by_key(most(Moving::frames)),
            Self::Drops => links.sort_by_key(most(Moving::dropped)),
            Self::Name => {}
        }
    }
}

/// The rates of all links, from sample to sample.
#[derive(Debug, Default)]
pub(super) struct Rates {
    before: Option<(Instant, BTreeMap<String, Sample>)>,
    /// The links, as they are now.
    pub links: Vec<Moving>,
}

impl Rates {
    /// Takes a sample.
    pub(super) fn take(&mut self, answers: &[Answer], now: Instant) {
        let samples: BTreeMap<String, Sample> = samples(answers);
        let mut histories: BTreeMap<String, VecDeque<u64>> = self
            .links
            .drain(..)
            .map(|link| (link.link, link.history))
            .collect();
        let before = self.before.as_ref();
        let seconds = before.map(|(then, _)| now.saturating_duration_since(*then));
        for (name, sample) in &samples {
            let last = before.and_then(|(_, samples)| samples.get(name));
            let rates = last.zip(seconds).map(|(last, seconds)| {
                [
                    rate(last.received, sample.received, seconds),
                    rate(last.sent, sample.sent, seconds),
                ]
            });
            let mut history = histories.remove(name).unwrap_or_default();
            if let Some([received, sent]) = rates {
                history.push_back((received.bits + sent.bits) as u64);
                let surplus = history.len().saturating_sub(HISTORY);
                history.drain(..surplus);
            }
            let [received, sent] = rates.unwrap_or_default();
            self.links.push(Moving {
                link: name.clone(),
                state: sample.state.clone(),
                vnl: sample.vnl.clone(),
                received,
                sent,
                history,
            });
        }
        self.before = Some((now, samples));
    }
}

fn rate(before: Count, now: Count, time: Duration) -> Rate {
    let seconds = time.as_secs_f64().max(0.001);
    let of = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now) as f64 / seconds;
    Rate {
        bits: 8.0 * of(before.bytes, now.bytes),
        frames: of(before.frames, now.frames),
        dropped: of(before.dropped, now.dropped),
    }
}

/// The counters of all links, by name.
fn samples(answers: &[Answer]) -> BTreeMap<String, Sample> {
    let mut samples = BTreeMap::new();
    for answer in answers {
        match &answer.process {
            Ok(process) => samples.extend(of_process(process)),
            Err(error) => {
                let sample = Sample {
                    state: error.message.clone(),
                    vnl: String::new(),
                    received: Count::default(),
                    sent: Count::default(),
                };
                samples.insert(format!("process {}", answer.pid), sample);
            }
        }
    }
    samples
}

fn of_process(process: &Process<Report>) -> Vec<(String, Sample)> {
    let own = process.name.clone();
    let own = own.unwrap_or_else(|| format!("{} {}", process.program, process.pid));
    if let Some(lab) = &process.lab {
        return of_lab(lab);
    }
    let links = process.links.iter().enumerate().map(|(number, entry)| {
        let name = match entry.link.interface.as_str() {
            "" => format!("{own}:{number}"),
            interface => format!("{own}:{interface}"),
        };
        (name, of_entry(entry))
    });
    links.collect()
}

/// The interfaces of a lab's nodes.
fn of_lab(lab: &LabStatus) -> Vec<(String, Sample)> {
    let interfaces = lab.nodes.iter().flat_map(|node| {
        node.interfaces.iter().map(|interface| {
            let name = format!("{}/{}:{}", lab.name, node.name, interface.name);
            let sample = Sample {
                state: if interface.carrier {
                    "up"
                } else {
                    "no carrier"
                }
                .to_owned(),
                vnl: String::new(),
                received: interface.traffic.received,
                sent: interface.traffic.sent,
            };
            (name, sample)
        })
    });
    interfaces.collect()
}

fn of_entry(entry: &Entry<Report>) -> Sample {
    let through = |counters: &Counters| Count {
        frames: counters.frames,
        bytes: counters.bytes,
        dropped: [
            counters.dropped.malformed,
            counters.dropped.queue_full,
            counters.dropped.undeliverable,
        ]
        .into_iter()
        .fold(0, u64::saturating_add),
    };
    let report = entry.report.as_ref();
    let [received, sent] = report.map_or_else(Default::default, |report| {
        [through(&report.received), through(&report.sent)]
    });
    // The kernel's counters know all frames, and the worker's all that it dropped itself.
    let both = |kernel: Count, worker: Count| Count {
        dropped: kernel.dropped.saturating_add(worker.dropped),
        ..kernel
    };
    let (received, sent) = match entry.link.interface_traffic {
        Some(traffic) => (both(traffic.received, received), both(traffic.sent, sent)),
        None => (received, sent),
    };
    Sample {
        state: state(entry).to_owned(),
        vnl: entry.link.vnl.clone(),
        received,
        sent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use serde_json::{Value, json};

    /// A session with an interface that has moved so many bytes, and a plug that has dropped so
    /// many frames.
    fn answers(bytes: u64, dropped: u64) -> Vec<Answer> {
        let report = json!({"carrier": true, "received": {"dropped": {"queue_full": dropped}}});
        let count = json!({"frames": bytes / 100, "bytes": bytes, "dropped": 0});
        let answer = |pid: u32, program: &str, interface: &str, traffic: Value| {
            let link = json!({"interface": interface, "vnl": "ptp:///p", "service": "served",
                "restarts": 0, "interface_traffic": traffic, "report": report});
            let process = json!({"pid": pid, "program": program, "version": "0", "command": [],
                "directory": "/", "started": 0, "links": [link]});
            let process = serde_json::from_value(process);
            Answer {
                pid,
                process: process.map_err(|error| Error::usage(error.to_string())),
            }
        };
        vec![
            answer(
                1,
                "vdens",
                "vde0",
                json!({"received": count, "sent": count}),
            ),
            answer(2, "vde_plug", "", Value::Null),
            Answer {
                pid: 3,
                process: Err(Error::closed("silence")),
            },
        ]
    }

    #[test]
    fn a_rate_is_the_difference_of_two_samples_over_their_time() {
        let start = Instant::now();
        let mut rates = Rates::default();
        rates.take(&answers(1000, 0), start);
        assert!(rates.links.iter().all(|link| link.bits() == 0.0));
        rates.take(&answers(26_000, 10), start + Duration::from_secs(2));
        let names: Vec<&str> = rates.links.iter().map(|link| link.link.as_str()).collect();
        assert_eq!(names, ["process 3", "vde_plug 2:0", "vdens 1:vde0"]);
        let link = &rates.links[2];
        assert_eq!(link.received.bits, 100_000.0);
        assert_eq!(link.sent.frames, 125.0);
        // What its worker dropped counts too.
        assert_eq!(link.received.dropped, 5.0);
        assert_eq!(link.state, "up");
        assert_eq!(link.history, [200_000]);
        assert_eq!(rates.links[1].dropped(), 5.0);
        assert_eq!(rates.links[0].state, "silence");
    }

    #[test]
    fn a_counter_that_starts_anew_gives_no_negative_rate() {
        let start = Instant::now();
        let mut rates = Rates::default();
        rates.take(&answers(u64::MAX, u64::MAX), start);
        rates.take(&answers(500, 3), start + Duration::from_secs(1));
        assert_eq!(rates.links[2].received.bits, 4000.0);
        assert_eq!(rates.links[1].dropped(), 3.0);
        // Two samples at one time.
        rates.take(&answers(u64::MAX, u64::MAX), start);
        assert!(rates.links.iter().all(|link| link.bits().is_finite()));
        for second in 0..300 {
            rates.take(&answers(second, 0), start + Duration::from_secs(second));
        }
        assert_eq!(rates.links[2].history.len(), HISTORY);
        rates.take(&[], start);
        assert!(rates.links.is_empty());
    }

    #[test]
    fn links_are_sorted_by_what_one_asks_for() {
        let link = |name: &str, bits, frames, dropped| Moving {
            link: name.into(),
            state: String::new(),
            vnl: String::new(),
            received: Rate::default(),
            sent: Rate {
                bits,
                frames,
                dropped,
            },
            history: VecDeque::new(),
        };
        let mut links = [
            link("c", 1.0, 3.0, 0.0),
            link("b", 0.0, 9.0, 2.0),
            link("a", 0.0, 0.0, 1.0),
        ];
        let mut sorted = |order: Order| {
            order.sort(&mut links);
            links.iter().map(|l| l.link.as_str()).collect::<String>()
        };
        assert_eq!(sorted(Order::Name), "abc");
        assert_eq!(sorted(Order::Frames), "bca");
        assert_eq!(sorted(Order::Drops), "bac");
        assert_eq!(sorted(Order::Bits), "cab");
    }
}
