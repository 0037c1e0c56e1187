//! What goes wrong, one thing after the other, as a seed decides.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{PATIENCE, children};

use crate::links::Links;

/// Strikes, and counts its strikes.
pub(crate) struct Faults {
    random: fastrand::Rng,
    counts: BTreeMap<&'static str, u32>,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            counts: BTreeMap::new(),
        }
    }

    /// Makes something fail; what it was.
    pub(crate) fn strike(&mut self, links: &mut Links<'_>) -> &'static str {
        let supervisors = links.supervisors();
        let supervisor = supervisors[self.random.usize(..supervisors.len())];
        let moment = Duration::from_millis(self.random.u64(200..3000));
        let kind = self.random.usize(..10);
        let what = match kind {
            0 => hit(&twins(supervisor), Signal::SIGKILL, "worker killed"),
            1 => hit(&twins(supervisor), Signal::SIGABRT, "worker aborted"),
            2 => hit(&twins(supervisor), Signal::SIGTERM, "worker terminated"),
            3 => stop(&twins(supervisor), moment, "worker stopped for a moment"),
            4 => stop(&[supervisor], moment, "supervisor stopped for a moment"),
            5 | 6 => {
                let switch = &mut links.switches[kind - 5];
                switch.kill();
                sleep(moment);
                switch.start();
                if switch.is_ours {
                    "our switch killed"
                } else {
                    "vde_switch killed"
                }
            }
            7 => {
                let switch = &links.switches[self.random.usize(..2)];
                stop(&[switch.pid()], moment, "a switch stopped for a moment")
            }
            8 => {
                let service = twins(links.switches[0].pid());
                hit(&service, Signal::SIGKILL, "panel service killed")
            }
            _ => {
                let vnl = links.lab.vnl("ptp", "guest");
                let guest = links.lab.vdens([vnl.as_str(), "sleep", "60"]).spawn();
                sleep(moment);
                // The kill must not affect the sessions that share the panel with it.
                guest.signal(Signal::SIGKILL);
                let _ = guest.wait(PATIENCE);
                "a session on the panel came and was killed"
            }
        };
        *self.counts.entry(what).or_default() += 1;
        what
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts
            .iter()
            .try_for_each(|(what, count)| writeln!(f, "{count:>6}  {what}"))
    }
}

/// The children of a process that are it again: forked, and not become a command.
fn twins(pid: i32) -> Vec<i32> {
    let line = |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let children = children(pid).into_iter();
    children.filter(|child| line(*child) == line(pid)).collect()
}

fn hit(pids: &[i32], signal: Signal, what: &'static str) -> &'static str {
    for pid in pids {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(*pid), signal);
    }
    what
}

fn stop(pids: &[i32], time: Duration, what: &'static str) -> &'static str {
    hit(pids, Signal::SIGSTOP, what);
    sleep(time);
    hit(pids, Signal::SIGCONT, what)
}
