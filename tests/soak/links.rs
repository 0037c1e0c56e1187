//! The links that are kept busy, and the switches they need.

use std::fmt;
use std::fs;
use std::io;
use std::process::ChildStdin;

use nix::sys::signal::Signal;
use vdens_tests::{Lab, PATIENCE, Proc, wait_until};

/// How a session is started: its options, and by whom.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Maker {
    Ours,
    NoPanel,
    Debian,
}

/// A link's name, what it is plugged into, and who makes the receiver's end; the sender's is always
/// ours.
const LINKS: [(&str, &str, Maker); 6] = [
    ("ptp", "ptp://ptp", Maker::Ours),
    ("ptp-no-panel", "ptp://user", Maker::NoPanel),
    ("ptp-debian", "ptp://mixed", Maker::Debian),
    ("switch", "vde://ours", Maker::Ours),
    ("switch-no-panel", "vde://ours", Maker::NoPanel),
    ("vde-switch", "vde://debians", Maker::NoPanel),
];

/// Two namespaces and the stream between them.
struct Link<'lab> {
    name: &'static str,
    receiver: Proc<'lab>,
    sender: Proc<'lab>,
}

impl Link<'_> {
    /// What the receiver said last: bytes, and its longest pause in milliseconds.
    fn progress(&self) -> (u64, u64) {
        let said = self.receiver.stdout();
        let mut words = said.lines().next_back().unwrap_or_default().split(' ');
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        (number(), number())
    }
}

/// A switch, killed and started again.
pub(crate) struct Switch<'lab> {
    lab: &'lab Lab,
    pub(crate) is_ours: bool,
    running: Option<(Proc<'lab>, ChildStdin)>,
}

impl<'lab> Switch<'lab> {
    fn new(lab: &'lab Lab, is_ours: bool) -> Self {
        let mut switch = Self {
            lab,
            is_ours,
            running: None,
        };
        switch.start();
        switch
    }

    fn name(&self) -> &'static str {
        if self.is_ours { "ours" } else { "debians" }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.running
            .as_ref()
            .map_or(0, |(process, _)| process.pid())
    }

    /// Kills the switch. What Debian's leaves keeps it from starting, so that is removed.
    pub(crate) fn kill(&mut self) {
        let Some((process, stdin)) = self.running.take() else {
            return;
        };
        process.signal(Signal::SIGKILL);
        let _ = process.wait(PATIENCE);
        drop(stdin);
        if !self.is_ours {
            let _ = fs::remove_dir_all(self.lab.path(self.name()));
        }
    }

    pub(crate) fn start(&mut self) {
        let lab = self.lab;
        let command = match self.is_ours {
            true => lab.vde_plug(["null://", &lab.vnl("switch", self.name())]),
            false => lab.debian("vde_switch", ["-s", &lab.path(self.name())]),
        };
        self.running = Some(command.spawn_piped());
        lab.wait_for(&format!("{}/ctl", self.name()));
    }
}

/// Everything that runs.
pub(crate) struct Links<'lab> {
    pub(crate) lab: &'lab Lab,
    links: Vec<Link<'lab>>,
    pub(crate) switches: [Switch<'lab>; 2],
}

impl<'lab> Links<'lab> {
    /// Starts all links, and waits until every stream moves.
    ///
    /// # Errors
    /// This program cannot be copied to where the user may run it.
    pub(crate) fn new(lab: &'lab Lab) -> io::Result<Self> {
        let tool = lab.bin().join("soak");
        fs::copy(std::env::current_exe()?, &tool)?;
        // A switch that was killed leaves its directory, and so may one of Debian's that is ended.
        lab.expect("debians");
        // An end of Debian's that is ended leaves its path, which is either one of a cable's two.
        lab.expect("mixed");
        lab.expect("mixed+");
        let switches = [Switch::new(lab, true), Switch::new(lab, false)];
        let tool = tool.display().to_string();
        let links = LINKS
            .iter()
            .enumerate()
            .map(|(number, &(name, vnl, maker))| {
                let (scheme, path) = vnl.split_once("://").unwrap_or_default();
                let vnl = lab.vnl(scheme, path);
                let addresses = [1, 2].map(|end| format!("10.9.{number}.{end}"));
                let receiver = {
                    let cidr = format!("{}/24", addresses[0]);
                    let set_up = format!(
                        "ip addr add {cidr} dev vde0; ip link set vde0 up; exec {tool} receive"
                    );
                    match maker {
                        Maker::Ours => lab.vdens([&vnl, "sh", "-c", &set_up]),
                        Maker::NoPanel => lab.vdens(["--no-panel", &vnl, "sh", "-c", &set_up]),
                        Maker::Debian => lab.debian("vdens", [&vnl, "sh", "-c", &set_up]),
                    }
                };
                let receiver = receiver.spawn();
                let cidr = format!("{}/24", addresses[1]);
                let panel = match maker {
                    Maker::NoPanel => "--no-panel",
                    _ => "--up",
                };
                let sender = [panel, "--addr", &cidr, &vnl, &tool, "send", &addresses[0]];
                let sender = lab.vdens(sender).spawn();
                Link {
                    name,
                    receiver,
                    sender,
                }
            });
        let links = Self {
            lab,
            links: links.collect(),
            switches,
        };
        wait_until("every stream moves", PATIENCE, || {
            links.totals().iter().all(|total| *total > 0)
        });
        Ok(links)
    }

    /// The supervisors of our own sessions.
    pub(crate) fn supervisors(&self) -> Vec<i32> {
        let ours = |link: &Link<'_>| {
            let debians = LINKS
                .iter()
                .any(|&(name, _, maker)| name == link.name && maker == Maker::Debian);
            let receiver = (!debians).then(|| link.receiver.pid());
            receiver
                .into_iter()
                .chain([link.sender.pid()])
                .collect::<Vec<_>>()
        };
        self.links.iter().flat_map(ours).collect()
    }

    /// How many bytes each stream has carried.
    pub(crate) fn totals(&self) -> Vec<u64> {
        self.links.iter().map(|link| link.progress().0).collect()
    }

    /// Streams that have not moved since.
    pub(crate) fn stuck_since(&self, totals: &[u64]) -> Vec<String> {
        let moved = self.links.iter().zip(totals);
        moved
            .filter(|(link, total)| link.progress().0 <= **total)
            .map(|(link, _)| format!("{} does not move", link.name))
            .collect()
    }

    /// Ends that are gone, or complain.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let ends = self.links.iter().flat_map(|link| {
            [
                (link.name, "receiver", &link.receiver),
                (link.name, "sender", &link.sender),
            ]
        });
        ends.filter(|(_, _, end)| !end.is_running() || end.stdout().contains("WRONG"))
            .map(|(name, role, end)| {
                let said = end.stdout();
                let last = said.lines().next_back().unwrap_or_default();
                format!("{name}, {role}: {last} {}", end.stderr())
            })
            .collect()
    }
}

impl fmt::Display for Links<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for link in &self.links {
            let (bytes, pause) = link.progress();
            write!(
                f,
                "{} {} MiB, longest pause {pause} ms; ",
                link.name,
                bytes >> 20
            )?;
        }
        Ok(())
    }
}
