//! The cases of a check, one function each.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vdens_plugin_kit::vnl::{Keys, Spec, Vnl};
use vdens_plugin_kit::{
    BATCH_FRAMES, Capabilities, Error, ErrorKind, MAX_LEGACY_FRAME, MIN_FRAME, Result,
};

use super::CheckResult;
use super::bench::{Bench, FRAME_LIMIT};
use super::frames::{Flaw, compare, frame};
use crate::plugins::search::SearchPath;

/// The plugin that is checked.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// The plugin's scheme.
    pub scheme: String,
    /// The VNLs of the two ends, if they are known.
    pub vnls: Option<[String; 2]>,
    /// What the plugin says of its links.
    pub capabilities: Capabilities,
    /// Where plugins are found, this one first.
    pub path: SearchPath,
}

impl Subject {
    fn has_one_end(&self) -> bool {
        self.capabilities.contains(Capabilities::ONE_END)
    }

    /// An empty bench, or the result if no VNL was given.
    fn bench(&self) -> Result<Bench, CheckResult> {
        let vnls = self.vnls.clone();
        let vnls = vnls.ok_or_else(|| CheckResult::skipped("no VNL was given"))?;
        Ok(Bench::new(self.path.clone(), vnls))
    }

    /// A bench for two ends, or the result if links have only one.
    fn cable(&self) -> Result<Bench, CheckResult> {
        match self.has_one_end() {
            true => Err(CheckResult::skipped(
                "it says that its links have one end (capability one-end)",
            )),
            false => self.bench(),
        }
    }

    /// Opens both ends, or the only one. Returns whether they have carrier.
    fn open(&self, bench: &mut Bench) -> Result<bool> {
        match self.has_one_end() {
            true => bench.open(0).map(|()| true),
            false => bench.open_both(),
        }
    }
}

/// A case. An error comes from the link, and counts as a failure.
pub(super) type Check = fn(&Subject) -> Result<CheckResult>;

/// All cases, in the order of the report.
pub(super) const ALL: &[(&str, Check)] = &[
    ("odd VNLs", odd_vnls),
    ("open", open),
    ("frames", frames),
    ("batches", batches),
    ("idle", idle),
    ("wake-up", wake_up),
    ("full queue", full_queue),
    ("hang-up", hang_up),
    ("reopening", reopening),
    ("descriptors", descriptors),
    ("leftovers", leftovers),
];

/// Unwraps a step, or ends the case with the result of the step.
macro_rules! ready {
    ($step:expr) => {
        match $step {
            Ok(value) => value,
            Err(verdict) => return Ok(verdict),
        }
    };
}

const NO_CARRIER: &str = "state() must report carrier while the far end exists (State::UP); \
    a link that cannot know reports it always";

/// The result on a link that reported an error.
pub(super) fn broken(error: Error) -> CheckResult {
    let remedy = match error.kind {
        ErrorKind::Panic if error.message.contains("panicked") => {
            "a plugin must not panic: return an Error; RUST_BACKTRACE=1 shows where it panicked"
        }
        _ if error.hint.is_empty() => {
            "return an error from recv() or send() only when the link is of no more use"
        }
        _ => &error.hint,
    };
    CheckResult::failed(error.message.clone(), remedy)
}

/// A person can read the plugin's description.
pub(super) fn manifest(description: &str, version: &str) -> CheckResult {
    if description.trim().is_empty() || description.contains('\n') {
        let why = format!("the description is {description:?}");
        return CheckResult::failed(why, "describe the transport in one line in export_plugin!");
    }
    CheckResult::Ok(format!("{version}, {description}"))
}

/// A malformed VNL is accepted, or refused in one line without a panic.
fn odd_vnls(subject: &Subject) -> Result<CheckResult> {
    let long = "x".repeat(5000);
    let opener = |argument: &str| {
        let vnl = format!("{}://{argument}", subject.scheme);
        Bench::new(subject.path.clone(), [vnl.clone(), vnl])
    };
    let mut refused = 0;
    let odd = ["[", "'", "%", "{", "[no_such_key=1]{", long.as_str()];
    for argument in odd {
        let shown = &argument[..argument.len().min(20)];
        let mut bench = opener(argument);
        let Err(error) = bench.open(0) else {
            continue;
        };
        refused += 1;
        if error.kind == ErrorKind::Panic {
            return Ok(broken(error));
        }
        let line = error.to_string();
        if error.message.trim().is_empty() || line.contains('\n') {
            let why = format!("the error for {}://{shown} is {line:?}", subject.scheme);
            return Ok(CheckResult::failed(
                why,
                "an error is one line that says what is wrong",
            ));
        }
    }
    Ok(CheckResult::Ok(format!(
        "{refused} of {} refused in one line",
        odd.len()
    )))
}

/// Both ends can be opened, and report carrier.
fn open(subject: &Subject) -> Result<CheckResult> {
    let mut bench = ready!(subject.bench());
    if subject.has_one_end() {
        bench.open(0)?;
        return Ok(CheckResult::ok());
    }
    bench.open(0)?;
    let alone = bench.carrier(0);
    bench.open(1)?;
    if !bench.await_carrier()? {
        return Ok(CheckResult::failed(
            "both ends are open, but one has no carrier",
            NO_CARRIER,
        ));
    }
    Ok(CheckResult::Ok(match alone {
        true => "carrier before the far end exists".into(),
        false => "carrier comes with the far end".into(),
    }))
}

fn flawed(flaw: Flaw, sent: &[Vec<u8>]) -> CheckResult {
    let len = |at: usize| sent.get(at).map_or(0, Vec::len);
    match flaw {
        Flaw::Lost(at) => CheckResult::failed(
            format!(
                "frame {} of {}, of {} bytes, did not arrive",
                at + 1,
                sent.len(),
                len(at)
            ),
            "the link must deliver each frame that send() counted, and make fd() readable for it",
        ),
        Flaw::Changed(at) => CheckResult::failed(
            format!("frame {} arrived changed, or was never sent", at + 1),
            "the link must deliver the bytes of a frame, and their number, unchanged",
        ),
        Flaw::Reordered(at) => CheckResult::failed(
            format!("frame {} arrived after one that was sent later", at + 1),
            "deliver frames in the order in which send() was given them",
        ),
        Flaw::Repeated(at) => CheckResult::failed(
            format!("frame {} arrived more than once", at + 1),
            "send() returns how many frames it took: only the others are offered again",
        ),
    }
}

/// Lengths from 14 to 9234 bytes: the limits of common networks, and steps between them.
fn lengths() -> Vec<usize> {
    let edges = [
        MIN_FRAME, 59, 60, 61, 64, 1513, 1514, 1515, 1518, 1522, 4095, 4096, 4097,
    ];
    let edges = edges
        .into_iter()
        .chain([8999, 9014, 9018, MAX_LEGACY_FRAME - 1, MAX_LEGACY_FRAME]);
    let mut lengths: Vec<usize> = edges
        .chain((MIN_FRAME..128).step_by(1))
        .chain((128..MAX_LEGACY_FRAME).step_by(331))
        .collect();
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// Frames of each length pass both ways, unchanged.
fn frames(subject: &Subject) -> Result<CheckResult> {
    let mut bench = ready!(subject.cable());
    bench.open_both()?;
    let lengths = lengths();
    let mut longest = MAX_LEGACY_FRAME;
    for from in [0, 1] {
        let sent: Vec<_> = (0..)
            .zip(&lengths)
            .map(|(n, len)| frame(from, n, *len))
            .collect();
        let got = bench.pass(from, &sent, 1)?;
        match compare(&sent, &got) {
            None => {}
            // A network may have the usual MTU.
            Some(Flaw::Lost(at)) if lengths[at] > 1514 => longest = longest.min(lengths[at - 1]),
            Some(flaw) => return Ok(flawed(flaw, &sent)),
        }
    }
    Ok(CheckResult::Ok(match longest {
        MAX_LEGACY_FRAME => format!("{MIN_FRAME} to {MAX_LEGACY_FRAME} bytes, both ways"),
        longest => format!(
            "{MIN_FRAME} to {longest} bytes, both ways; longer frames are lost: the MTU is {} at most",
            longest - MIN_FRAME
        ),
    }))
}

/// Batches of each size arrive complete and in order.
fn batches(subject: &Subject) -> Result<CheckResult> {
    let mut bench = ready!(subject.cable());
    bench.open_both()?;
    let mut number = 0;
    for size in 1..=BATCH_FRAMES {
        for from in [0, 1] {
            let sent: Vec<_> = (0..3 * size)
                .map(|at| frame(from, number + at as u32, 60 + (at * 97) % 1454))
                .collect();
            number += sent.len() as u32;
            let got = bench.pass(from, &sent, size)?;
            if let Some(flaw) = compare(&sent, &got) {
                return Ok(flawed(flaw, &sent));
            }
        }
    }
    Ok(CheckResult::Ok(format!(
        "of 1 to {BATCH_FRAMES} frames, both ways, in order"
    )))
}

/// How often an idle link may wake the host in a second, for timers of its own.
const CALM: u32 = 250;

/// Counts how often links wake the host in a second without traffic.
fn wakes(bench: &mut Bench) -> Result<u32> {
    let before = bench.wakes;
    bench.serve_until(Duration::from_secs(1), |bench| {
        bench.wakes - before > 20 * CALM
    })?;
    Ok(bench.wakes - before)
}

fn busy(when: &str, wakes: u32) -> CheckResult {
    CheckResult::failed(
        format!("{when} fd() becomes readable again and again: {wakes} times in a second"),
        "recv() must consume what made fd() readable",
    )
}

/// A link without traffic does not keep the host busy.
fn idle(subject: &Subject) -> Result<CheckResult> {
    let mut bench = ready!(subject.bench());
    subject.open(&mut bench)?;
    let wakes = wakes(&mut bench)?;
    if wakes > CALM {
        return Ok(busy("without traffic", wakes));
    }
    Ok(CheckResult::Ok(format!(
        "{wakes} wake-ups in a second without traffic"
    )))
}

/// Each frame that is sent while the host waits wakes the host.
fn wake_up(subject: &Subject) -> Result<CheckResult> {
    let mut bench = ready!(subject.cable());
    bench.open_both()?;
    let mut worst = Duration::ZERO;
    for number in 0..200 {
        let from = number as usize % 2;
        let sent = [frame(from, number, 60)];
        let start = Instant::now();
        let got = bench.pass(from, &sent, 1)?;
        if got.is_empty() {
            let why = format!(
                "frame {} was sent, and fd() of the far end did not become readable",
                number + 1
            );
            let remedy = "fd() must be readable as long as there is something to receive";
            return Ok(CheckResult::failed(why, remedy));
        }
        worst = worst.max(start.elapsed());
    }
    Ok(CheckResult::Ok(format!(
        "200 times, within {} ms",
        worst.as_millis() + 1
    )))
}

/// While the far end does not receive, sending neither blocks nor fails. It resumes afterwards.
fn full_queue(subject: &Subject) -> Result<CheckResult> {
    let mut bench = ready!(subject.bench());
    subject.open(&mut bench)?;
    let start = Instant::now();
    let mut sent = Vec::new();
    let mut full = false;
    while sent.len() < 20_000 && !full && start.elapsed() < Duration::from_secs(10) {
        let number = sent.len() as u32;
        let batch: Vec<_> = (0..BATCH_FRAMES as u32)
            .map(|n| frame(0, number + n, 1514))
            .collect();
        let taken = bench.offer(0, &batch)?;
        full = taken < batch.len();
        sent.extend(batch.into_iter().take(taken));
    }
    if full && bench.is_writable(0)? && bench.offer(0, &[frame(0, u32::MAX, 1514)])? == 0 {
        let why = "send() accepts nothing although send_fd() is writable";
        let remedy =
            "send_fd() must be writable only when send() can accept frames, or the host spins";
        return Ok(CheckResult::failed(why, remedy));
    }
    let refusal = match full {
        true => format!("full after {} frames", sent.len()),
        false => format!("{} frames taken", sent.len()),
    };
    if subject.has_one_end() {
        return Ok(CheckResult::Ok(refusal));
    }
    // The transport may have dropped frames. The rest must arrive in order.
    bench.serve_until(FRAME_LIMIT, |bench| bench.wakes > u32::MAX - 1)?;
    let got = bench.take(1);
    let mut expected = sent.iter();
    let wrong = got
        .iter()
        .filter(|frame| frame[14..18] != u32::MAX.to_be_bytes());
    let wrong = wrong
        .enumerate()
        .find(|(_, frame)| !expected.any(|sent| sent == *frame));
    if let Some((at, frame)) = wrong {
        return Ok(flawed(
            match (sent.contains(frame), got[..at].contains(frame)) {
                (false, _) => Flaw::Changed(at),
                (true, true) => Flaw::Repeated(at),
                (true, false) => Flaw::Reordered(at),
            },
            &sent,
        ));
    }
    let more: Vec<_> = (0..10).map(|n| frame(0, n, 100)).collect();
    let again = bench.pass(0, &more, 1)?;
    match compare(&more, &again) {
        Some(_) => Ok(CheckResult::failed(
            format!("{refusal}; after the far end received them, no more frames arrived"),
            "a link whose queue was full must resume when there is room",
        )),
        None => Ok(CheckResult::Ok(format!(
            "{refusal}, {} arrived; then it resumes",
            got.len()
        ))),
    }
}

/// When the far end closes, the link reports it or continues, and does not spin.
fn hang_up(subject: &Subject) -> Result<CheckResult> {
    let mut bench = ready!(subject.cable());
    bench.open_both()?;
    bench.close(1);
    let told = match bench.serve_until(FRAME_LIMIT, |bench| !bench.carrier(0)) {
        Ok(true) => "carrier goes",
        Ok(false) => "the link stays up",
        Err(error) if error.kind == ErrorKind::Panic => return Ok(broken(error)),
        Err(error) => {
            return Ok(CheckResult::Ok(format!(
                "the link breaks, so the host opens it again: {}",
                error.message
            )));
        }
    };
    // Nothing receives these frames. An error is allowed: the host then opens the link again.
    for number in 0..3 {
        match bench.offer(0, &[frame(0, number, 100)]) {
            Err(error) if error.kind == ErrorKind::Panic => return Ok(broken(error)),
            Err(error) => {
                return Ok(CheckResult::Ok(format!(
                    "{told}; sending breaks the link, so the host opens it again: {}",
                    error.message
                )));
            }
            Ok(_) => bench.serve(Duration::from_millis(20))?,
        };
    }
    let wakes = wakes(&mut bench)?;
    if wakes > CALM {
        return Ok(busy("after the far end closed", wakes));
    }
    match told {
        "carrier goes" => Ok(CheckResult::Ok(told.into())),
        _ => Ok(CheckResult::skipped(
            "the link keeps its carrier: right if there can be other peers, or the link cannot know; \
                a cable reports State::DOWN",
        )),
    }
}

/// An end, or both, can be closed and opened again. Then frames pass as before.
fn reopening(subject: &Subject) -> Result<CheckResult> {
    let mut bench = ready!(subject.bench());
    if subject.has_one_end() {
        for _ in 0..3 {
            bench.open(0)?;
            bench.close(0);
        }
        return Ok(CheckResult::Ok("3 times".into()));
    }
    bench.open_both()?;
    for (round, closed) in [&[1][..], &[0], &[0, 1], &[1]].into_iter().enumerate() {
        closed.iter().for_each(|end| bench.close(*end));
        for end in closed {
            // The other end may have broken. Then the host opens it again.
            if let Err(error) = bench.open(*end) {
                if error.kind == ErrorKind::Panic || closed.len() == 2 {
                    return Ok(broken(error));
                }
                bench.reopen_both()?;
            }
        }
        if !settles(&mut bench)? {
            return Ok(CheckResult::failed(
                format!(
                    "no frame arrives after an end was closed and opened again (round {})",
                    round + 1
                ),
                "a link must find its far end again, or break, so that the host opens it again",
            ));
        }
    }
    Ok(CheckResult::Ok("either end, and both".into()))
}

/// Waits until frames pass both ways. Opens the ends again if one breaks, as the host does.
fn settles(bench: &mut Bench) -> Result<bool> {
    let deadline = Instant::now() + 3 * FRAME_LIMIT;
    let mut number = 0;
    while Instant::now() < deadline {
        let mut arrived = 0;
        for from in [0, 1] {
            number += 1;
            let sent = frame(from, number, 100);
            let step = bench
                .offer(from, std::slice::from_ref(&sent))
                .and_then(|_| {
                    bench.serve_until(Duration::from_millis(100), |_| false)?;
                    Ok(bench.take(1 - from).contains(&sent))
                });
            match step {
                Ok(came) => arrived += u32::from(came),
                Err(error) if error.kind == ErrorKind::Panic => return Err(error),
                Err(_) => {
                    bench.reopen_both()?;
                }
            }
        }
        if arrived == 2 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The descriptors of this process, and what each refers to.
fn open_descriptors() -> BTreeMap<i32, String> {
    let entries = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten();
    let named = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        Some((number, target.display().to_string()))
    });
    // Without the descriptor that reads the directory.
    named
        .filter(|(_, target)| !target.ends_with("/fd"))
        .collect()
}

/// Whether a descriptor is closed when a program is executed.
fn is_closed_on_exec(number: i32) -> bool {
    const O_CLOEXEC: u32 = 0o2_000_000;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_none_or(|flags| flags & O_CLOEXEC != 0)
}

/// Closing a link closes its descriptors. A program that is executed inherits none.
fn descriptors(subject: &Subject) -> Result<CheckResult> {
    let mut bench = ready!(subject.bench());
    let untouched = open_descriptors();
    let round = |bench: &mut Bench| {
        subject.open(bench)?;
        let sent = frame(0, 1, 100);
        bench.offer(0, &[sent])?;
        bench.serve(Duration::from_millis(20))?;
        let during = open_descriptors();
        bench.close_both();
        Ok::<_, Error>(during)
    };
    // The first link may leave a descriptor for good, a thread's for example.
    round(&mut bench)?;
    let before = open_descriptors();
    subject.open(&mut bench)?;
    let inherited = open_descriptors()
        .into_iter()
        .find(|(number, _)| !untouched.contains_key(number) && !is_closed_on_exec(*number));
    bench.close_both();
    if let Some((_, target)) = inherited {
        let why = format!("a descriptor of the link is not close-on-exec: {target}");
        return Ok(CheckResult::failed(
            why,
            "open it with O_CLOEXEC or its like (SOCK_CLOEXEC, EFD_CLOEXEC, …)",
        ));
    }
    for _ in 0..4 {
        round(&mut bench)?;
    }
    let after = open_descriptors();
    let leaked: Vec<_> = after
        .iter()
        .filter(|(number, _)| !before.contains_key(number))
        .collect();
    match leaked.first() {
        None => Ok(CheckResult::Ok(
            "all closed with the link, all close-on-exec".into(),
        )),
        Some((_, target)) => Ok(CheckResult::failed(
            format!(
                "{} descriptors stay open after 5 links were closed, such as {target}",
                leaked.len()
            ),
            "dropping the link must close all that it opened",
        )),
    }
}

/// The files whose names begin with the VNL's path: a link may have made them.
fn paths_made(vnl: &str) -> Vec<PathBuf> {
    let keys = Keys::new(&[]);
    let argument = Vnl::parse(vnl).map_or("", |vnl| vnl.argument);
    let argument = argument.split(['[', '{']).next().unwrap_or_default();
    let Ok(path) = Spec::path_grammar(argument, &keys).and_then(|spec| spec.absolute_path()) else {
        return Vec::new();
    };
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Vec::new();
    };
    let name = name.to_string_lossy().into_owned();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let alike = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&name));
    let mut paths: Vec<_> = alike.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Closing a link removes what it made in the file system.
fn leftovers(subject: &Subject) -> Result<CheckResult> {
    let mut bench = ready!(subject.bench());
    let vnl = subject.vnls.as_ref().map_or("", |vnls| vnls[0].as_str());
    let before = paths_made(vnl);
    subject.open(&mut bench)?;
    let made = paths_made(vnl).len() > before.len();
    bench.close_both();
    let mut left = paths_made(vnl).into_iter();
    match left.find(|path| !before.contains(path)) {
        Some(left) => {
            let why = format!(
                "{} is still there after both ends were closed",
                left.display()
            );
            let remedy = "dropping the link must remove what it made";
            Ok(CheckResult::failed(why, remedy))
        }
        None if made => Ok(CheckResult::Ok("what it made is removed".into())),
        None => Ok(CheckResult::Ok("none".into())),
    }
}
