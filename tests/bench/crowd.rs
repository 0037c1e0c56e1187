//! The group `crowd`: what one more namespace costs beside many.
//!
//! Theory of operation. On a switch the same start, `vdens vde://… true`, is timed alone and beside
//! [`MANY`] other sessions. These start one after another, each as soon as the command of the one
//! before has written to a FIFO. A chain starts likewise: each of its namespaces has two
//! interfaces, and shares a `ptp://` with the one before and the one behind. Debian's programs
//! cannot start such a chain, so its column compares with theirs on their switch. Memory is counted
//! as in [`costs`](crate::costs).

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Result;
use crate::bench::{Bench, Values};
use crate::costs::{Memory, Starts, program, vdens_rows};
use crate::lab::{Lab, Maker, PATIENCE, Who};
use crate::process::{Proc, Procs, check_interrupted, pause, wait_for};
use crate::results::{Better, Group, Measure};
use vdens_tests::{family, name};

/// The group's name.
pub(crate) const ID: &str = "crowd";
/// The measure of a start beside others, as a ratio to the same alone.
pub(crate) const BESIDE_TO_ALONE: &str = "beside-to-alone";
/// The measure of a start in a chain.
pub(crate) const CHAIN: &str = "chain";
/// How many others there are.
const MANY: usize = 200;
/// The same in a smoke test.
const SOME: usize = 20;
/// How often the start is timed, alone and again beside the others.
const STARTS: usize = 20;
/// How long those that have just started are left alone: for some seconds the kernel floods what
/// IPv6 says on each of 200 interfaces to the others.
const SETTLING: Duration = Duration::from_secs(10);

/// The group's rows and measures.
pub(crate) fn group(lab: &Lab) -> Group {
    let time = |key, title| Measure::new(key, title, "ms", Better::Less);
    let memory = |key, title| Measure::new(key, title, "MiB", Better::Less);
    Group {
        id: ID,
        title: "One more of many",
        reference: None,
        rivals: "Debian's",
        rows: vdens_rows(lab),
        measures: vec![
            time("alone", "`true` and exit on a switch, alone"),
            time("beside", "The same, beside 200 others"),
            Measure::new(BESIDE_TO_ALONE, "The same, to alone", "ratio", Better::Less).absolute(),
            time("on-switch", "Each of 200 on a switch, one after another"),
            time(CHAIN, "Each of 200 in a chain (Debian's: on its switch)"),
            memory("memory-on-switch", "Memory of each of 200 on a switch"),
            memory("memory-chain", "Memory of each of 200 in a chain"),
        ],
    }
}

/// The names of what is run.
pub(crate) fn probes() -> Vec<String> {
    ["switch", "chain"].map(str::to_owned).to_vec()
}

/// Measures a row.
pub(crate) fn visit(bench: &mut Bench<'_>, row: &str, probes: &[String]) {
    let lab = bench.lab;
    let count = if bench.plan.quick { SOME } else { MANY };
    for probe in probes {
        bench.measure(ID, row, probe, || match probe.as_str() {
            "switch" => on_switch(lab, row, count),
            _ if row == "debian" => Ok(Values::new()),
            _ => in_chain(lab, row, count),
        });
    }
}

fn on_switch(lab: &Lab, row: &str, count: usize) -> Result<Values> {
    let place = lab.unique("crowd");
    let _switch = switch(lab, row, &place, count)?;
    let vnl = format!("vde://{place}");
    let alone = start_and_exit(lab, row, &vnl)?;
    let crowd = Crowd::start(lab, row, count, |_| vec![vnl.clone()])?;
    pause(SETTLING)?;
    let beside = start_and_exit(lab, row, &vnl)?;
    let mut values: Values = [
        ("alone", alone),
        ("beside", beside),
        (BESIDE_TO_ALONE, beside / alone),
        ("on-switch", crowd.each),
        ("memory-on-switch", crowd.memory()?),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if row == "debian" {
        values.push((CHAIN.to_owned(), crowd.each));
    }
    Ok(values)
}

fn in_chain(lab: &Lab, row: &str, count: usize) -> Result<Values> {
    let place = lab.unique("chain");
    let crowd = Crowd::start(lab, row, count, |number| {
        let next = number + 1;
        let ends = [number, next].map(|number| format!("ptp://{place}.{number}"));
        let words = ["-m".to_owned()].into_iter().chain(ends);
        words.chain(["--".to_owned()]).collect()
    })?;
    pause(SETTLING)?;
    let memory = ("memory-chain".to_owned(), crowd.memory()?);
    Ok(vec![(CHAIN.to_owned(), crowd.each), memory])
}

/// A switch with room for `count` namespaces and a few more.
fn switch<'lab>(lab: &'lab Lab, row: &str, place: &str, count: usize) -> Result<Proc<'lab>> {
    let switch = match row {
        "debian" => {
            let ports = (count + 8).to_string();
            let switch = lab.program(Maker::Debian, "vde_switch");
            lab.command(Who::First, &switch, ["-s", place, "-n", &ports])
        }
        _ => {
            let plug = lab.program(Maker::Ours, "vde_plug");
            lab.command(Who::First, &plug, ["null://", &format!("switch://{place}")])
        }
    };
    let switch = Proc::spawn(switch);
    let control = Path::new(place).join("ctl");
    wait_for("the switch", PATIENCE, || {
        (control.exists() || switch.check().is_err()).then_some(())
    })?;
    switch.check()?;
    Ok(switch)
}

/// How long a program on the switch takes to start, run `true` and end, in milliseconds.
fn start_and_exit(lab: &Lab, row: &str, vnl: &str) -> Result<f64> {
    let mut starts = Starts::new(lab, row, vec![vnl.to_owned(), "true".to_owned()]);
    for _ in 0..STARTS {
        starts.one(lab);
    }
    starts.median()
}

/// Namespaces that were started one after another.
struct Crowd<'lab> {
    procs: Procs<'lab>,
    /// How long each took until its command ran, on average, in milliseconds.
    each: f64,
}

impl<'lab> Crowd<'lab> {
    fn start(
        lab: &'lab Lab,
        row: &str,
        count: usize,
        words: impl Fn(usize) -> Vec<String>,
    ) -> Result<Self> {
        let fifo = lab.unique("fifo");
        let mut ready = Ready::new(lab, &fifo)?;
        let script = format!("echo > {fifo}; exec sleep 86400");
        let (program, options) = program(lab, row);
        let mut procs = Procs::default();
        let start = Instant::now();
        for number in 0..count {
            let words = words(number);
            let words = options
                .iter()
                .copied()
                .chain(words.iter().map(String::as_str));
            let words = words.chain(["/bin/sh", "-c", &script]);
            procs
                .0
                .push(Proc::spawn(lab.command(Who::First, &program, words)));
            if !ready.wait()? {
                for proc in &procs.0 {
                    proc.check()?;
                }
                return Err(format!("the command of number {number} does not run").into());
            }
        }
        let each = start.elapsed().as_secs_f64() * 1000.0 / count as f64;
        Ok(Self { procs, each })
    }

    /// What each needs, in MiB.
    fn memory(&self) -> Result<f64> {
        let mut memory = Memory::default();
        for id in self.procs.0.iter().flat_map(|proc| family(proc.id())) {
            if name(id).as_deref() != Some("sleep") {
                memory.add(id)?;
            }
        }
        Ok(memory.kibibytes() / 1024.0 / self.procs.0.len() as f64)
    }
}

/// Commands say here that they run.
struct Ready(File);

impl Ready {
    fn new(lab: &Lab, path: &str) -> Result<Self> {
        Proc::spawn(lab.command(Who::First, Path::new("/usr/bin/mkfifo"), [path]))
            .output(PATIENCE)?;
        // Opened to write, too: so there is always a reader and never an end.
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true);
        Ok(Self(options.custom_flags(libc::O_NONBLOCK).open(path)?))
    }

    /// Whether the next command runs in time.
    fn wait(&mut self) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            check_interrupted()?;
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            // A signal ends the wait early.
            let _ = poll(&mut fds, PollTimeout::from(100_u8));
            if self.0.read(&mut [0; 1]).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
