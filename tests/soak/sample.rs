//! What the long-lived processes of ours use.

use std::fmt;
use std::fs;

use crate::links::Links;

/// What a process uses.
struct Use {
    pid: i32,
    /// Proportional set size, in KiB.
    memory: u64,
    descriptors: usize,
}

/// The supervisors at one time.
pub(crate) struct Sample(Vec<Use>);

impl Sample {
    pub(crate) fn take(links: &Links<'_>) -> Self {
        let supervisors = links.supervisors().into_iter();
        let uses = supervisors.map(|pid| Use {
            pid,
            memory: memory(pid),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count),
        });
        Self(uses.collect())
    }

    /// Which processes use more than before: memory by `growth` KiB, or any descriptor but those of
    /// a status being asked.
    pub(crate) fn grown_since(&self, before: &Self, growth: u64) -> Vec<String> {
        let pairs = self.0.iter().zip(&before.0);
        pairs
            .filter(|(now, was)| {
                now.memory > was.memory + growth || now.descriptors > was.descriptors + 2
            })
            .map(|(now, was)| {
                format!(
                    "process {} went from {} KiB and {} descriptors to {} and {}",
                    now.pid, was.memory, was.descriptors, now.memory, now.descriptors
                )
            })
            .collect()
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory: u64 = self.0.iter().map(|used| used.memory).sum();
        let descriptors: usize = self.0.iter().map(|used| used.descriptors).sum();
        let count = self.0.len();
        write!(
            f,
            "{count} supervisors: {memory} KiB, {descriptors} descriptors"
        )
    }
}

fn memory(pid: i32) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = smaps.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}
