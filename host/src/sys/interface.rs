//! The kernel's counters of an interface. They count every frame, whichever tier carries it.

use std::fs;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// An interface's own counters, from its namespace's point of view. A super-frame is one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Traffic {
    /// What it received.
    pub received: Count,
    /// What it sent.
    pub sent: Count,
}

impl Traffic {
    /// The same as the other end of the interface's cable counts it.
    pub(crate) fn at_the_other_end(self) -> Self {
        Self {
            received: self.sent,
            sent: self.received,
        }
    }
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Count {
    /// Frames.
    pub frames: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Frames that were dropped.
    pub dropped: u64,
}

/// The counters of the interface `name` in the network namespace of `process`. `None` if there is
/// none.
pub(crate) fn traffic(process: Pid, name: &str) -> Option<Traffic> {
    let table = fs::read(format!("/proc/{process}/net/dev")).ok()?;
    // Others in the namespace may have any name.
    parse(&String::from_utf8_lossy(&table), name)
}

/// Reads /proc/net/dev (proc(5)): eight numbers for what was received, of which the first, second
/// and fourth are bytes, frames and drops, then eight for what was sent, in the same order.
fn parse(text: &str, name: &str) -> Option<Traffic> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, numbers) = lines.find(|(interface, _)| interface.trim() == name)?;
    let numbers: Vec<u64> = numbers
        .split_whitespace()
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    let count = |numbers: &[u64]| {
        Some(Count {
            bytes: *numbers.first()?,
            frames: *numbers.get(1)?,
            dropped: *numbers.get(3)?,
        })
    };
    Some(Traffic {
        received: count(&numbers)?,
        sent: count(numbers.get(8..)?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let text = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
  vde0: 1006      11    0    2    0     0          0         0     2010      21    0    3    0     0       0          0
";
        let count = |frames, bytes, dropped| Count {
            frames,
            bytes,
            dropped,
        };
        let traffic = parse(text, "vde0").unwrap();
        assert_eq!(traffic.received, count(11, 1006, 2));
        assert_eq!(traffic.sent, count(21, 2010, 3));
        assert_eq!(parse(text, "vde"), None);
        assert_eq!(parse("vde0: 1 2", "vde0"), None);
    }
}
