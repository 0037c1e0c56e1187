//! `vdectl capture`: the frames of interfaces of sessions and labs, as pcapng.
//!
//! # Theory of operation
//!
//! For each interface a child enters its namespaces and makes a packet socket there; the descriptor
//! comes back. Everything else happens here: each socket gets the filter and a ring ([`ring`]), and
//! one loop waits for all rings, for signals, and for the end of the processes whose interfaces
//! they are. What a ring has becomes blocks of pcapng ([`pcapng`]), which go to the file
//! ([`output`]). While a pipe does not take them, no ring is read.
//!
//! The network comes first. The capture has the lowest priority, so on a busy machine it loses
//! frames where it would slow the network down; each loss is counted.
//!
//! A packet socket keeps its network namespace alive. So the capture of an interface ends when the
//! process that the interface belongs to does, and the whole one with the last interface. What the
//! kernel has in blocks that are not full comes within [`ring::TIMEOUT`]; it is waited for.

mod filter;
mod output;
mod pcapng;
mod places;
mod ring;

use std::fs;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use vdens_plugin_kit::process::open_pidfd;

use crate::error::{Error, ErrorKind, Result, system};
use crate::output::complain;
use crate::sys::process::wait;
use crate::sys::signals::Signals;
use filter::Filter;
use output::{Output, Sink, Written};
use pcapng::{Interface, Packet, Statistics};
pub use places::{Place, places};
use ring::{Captured, Ring};

/// The memory of all rings together, in bytes, and the most of one.
const MEMORY: usize = 64 << 20;
const MOST_MEMORY: usize = 16 << 20;

/// The blocks that are read from one ring before the others have their turn.
const TURN: usize = 4;

/// How often it is looked whether an interface that is down is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How long a reader of a pipe may take for what is left at the end.
const LAST: Duration = Duration::from_secs(2);

/// What is captured, and where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `-` or nothing is standard output.
    pub write: Option<PathBuf>,
    /// The most bytes of a frame that are kept.
    pub snaplen: u32,
    /// The filter's expression, or `@` and the file with its program.
    pub filter: Option<String>,
    /// The size in bytes from which on a file is followed by the next.
    pub ring: Option<u64>,
    /// How many of these files stay.
    pub files: Option<NonZeroUsize>,
}

/// Captures until a signal ends it, all interfaces are gone, or nobody reads the capture any more.
///
/// # Errors
/// An interface cannot be captured on, the filter is wrong, or the capture cannot be written.
pub fn run(places: &[Place], options: &Options, is_quiet: bool) -> Result<()> {
    let filter = match &options.filter {
        Some(text) => Filter::new(text, options.snaplen)?,
        None => Filter::all(options.snaplen),
    };
    allow_files()?;
    let memory = (MEMORY / places.len().max(1)).min(MOST_MEMORY);
    let links = places
        .iter()
        .map(|place| Link::open(place.clone(), &filter, memory));
    let links: Vec<_> = links.collect::<Result<_>>()?;
    let mut output = Output::open(sink(options)?)?;
    output.begin(header(&links, &filter, options.snaplen));
    yield_to_others();
    let signals = Signals::block()?;
    let mut capture = Capture { links, output };
    if !is_quiet {
        complain(format_args!(
            "capturing on {}; end with Ctrl-C",
            names(places)
        ));
    }
    let result = capture.run(&signals);
    let result = result.and_then(|written| capture.finish(written));
    // Those that are open still if the capture cannot be written.
    capture.links.iter_mut().for_each(Link::close);
    if !is_quiet {
        capture.links.iter().for_each(Link::report);
    }
    result
}

fn names(places: &[Place]) -> String {
    let names: Vec<_> = places.iter().map(|place| place.name.as_str()).collect();
    match names.len() {
        0..=5 => names.join(", "),
        count => format!("{count} interfaces"),
    }
}

fn sink(options: &Options) -> Result<Sink> {
    let path = options.write.clone().filter(|path| path.as_os_str() != "-");
    match (path, options.ring) {
        (None, None) => Ok(Sink::Stdout),
        (None, Some(_)) => Err(Error::usage("--ring needs files").hint("name them with -w FILE")),
        (Some(path), None) => Ok(Sink::File(path)),
        (Some(path), Some(size)) => Ok(Sink::Ring {
            path,
            size,
            keep: options.files,
        }),
    }
}

/// The blocks that each file begins with.
fn header(links: &[Link], filter: &Filter, snaplen: u32) -> Vec<u8> {
    let read = |name| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    let os = format!("{} {}", read("ostype").trim(), read("osrelease").trim());
    let program = concat!("vdectl ", env!("CARGO_PKG_VERSION"));
    let mut header = Vec::new();
    pcapng::section_header(&mut header, program, &os);
    for link in links {
        let interface = Interface {
            name: link.place.name.clone(),
            mac: link.mac,
            snaplen,
            filter: filter.text.clone(),
        };
        pcapng::interface_description(&mut header, &interface);
    }
    header
}

/// Opens as many files as the kernel lets this user: an interface takes two.
fn allow_files() -> Result<()> {
    let limit = Resource::RLIMIT_NOFILE;
    let raised = getrlimit(limit).and_then(|(_, most)| setrlimit(limit, most, most));
    raised.map_err(system("raise the limit of open files"))
}

/// Gives this process the lowest priority. It needs no permission, and cannot fail otherwise.
fn yield_to_others() {
    // SAFETY: it changes a number of this process.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since.as_nanos() as u64
}

/// An interface that is captured on.
#[derive(Debug)]
struct Link {
    place: Place,
    mac: Option<[u8; 6]>,
    /// When the capture began, in nanoseconds since 1970.
    start: u64,
    state: LinkState,
    statistics: Statistics,
}

#[derive(Debug)]
enum LinkState {
    Open {
        ring: Ring,
        /// Readable when its process has ended.
        process: OwnedFd,
        /// Whether the interface was set down. The kernel does not tell if it is deleted then.
        is_down: bool,
    },
    Closed,
}

impl Link {
    fn open(place: Place, filter: &Filter, memory: usize) -> Result<Self> {
        let cannot = |error: Error| Error {
            message: format!("cannot capture on {}: {}", place.name, error.message),
            ..error
        };
        let mut made = place
            .target
            .door()?
            .inside(|| {
                let flags = SockFlag::SOCK_CLOEXEC;
                let made = socket(AddressFamily::Packet, SockType::Raw, flags, None);
                Ok(vec![made.map_err(system("make a packet socket"))?])
            })
            .map_err(cannot)?;
        // The door was that of this process, so its number is still its own, or it has ended.
        let process = open_pidfd(place.target.namespace)
            .map_err(|error| cannot(Error::io("find its process", &error)))?;
        let lost = || Error::closed("a helper process lost a descriptor");
        let socket = made.pop().ok_or_else(lost)?;
        let ring = Ring::start(socket, &place.interface, filter, memory).map_err(cannot)?;
        Ok(Self {
            mac: ring.mac(&place.interface),
            place,
            start: now(),
            state: LinkState::Open {
                ring,
                process,
                is_down: false,
            },
            statistics: Statistics::default(),
        })
    }

    /// Counts what became of its frames, and ends the capture on it.
    fn close(&mut self) {
        if let LinkState::Open { ring, .. } = &mut self.state {
            let counters = ring.counters();
            self.statistics = Statistics {
                times: (self.start, now()),
                received: counters.received,
                dropped: counters.dropped,
            };
            self.state = LinkState::Closed;
        }
    }

    /// Says what became of its frames.
    fn report(&self) {
        let Statistics {
            received, dropped, ..
        } = self.statistics;
        let name = &self.place.name;
        complain(format_args!(
            "{name}: {} frames captured, {dropped} lost",
            received.saturating_sub(dropped)
        ));
    }
}

struct Capture {
    links: Vec<Link>,
    output: Output,
}

impl Capture {
    /// Captures until there is a reason to end.
    fn run(&mut self, signals: &Signals) -> Result<Written> {
        loop {
            if self.turn()? == Written::Closed {
                return Ok(Written::Closed);
            }
            let is_open = |link: &Link| matches!(link.state, LinkState::Open { .. });
            if !self.links.iter().any(is_open) {
                return Ok(Written::Open);
            }
            let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            // A pipe that nobody reads any more is an error that is polled for in any case.
            let writable = match self.output.is_flushed() {
                true => PollFlags::empty(),
                false => PollFlags::POLLOUT,
            };
            fds.push(PollFd::new(self.output.as_fd(), writable));
            let mut polled = Vec::new();
            let mut deadline = None;
            for (number, link) in self.links.iter().enumerate() {
                if let LinkState::Open {
                    ring,
                    process,
                    is_down,
                } = &link.state
                {
                    polled.push(number);
                    if *is_down {
                        deadline = Some(Instant::now() + LOOK_AGAIN);
                    }
                    fds.push(PollFd::new(process.as_fd(), PollFlags::POLLIN));
                    let readable = match self.output.is_blocked() {
                        true => PollFlags::empty(),
                        false => PollFlags::POLLIN,
                    };
                    fds.push(PollFd::new(ring.as_fd(), readable));
                }
            }
            wait(&mut fds, deadline)?;
            let has = |fd: &PollFd<'_>, flags| fd.revents().is_some_and(|is| is.intersects(flags));
            if has(&fds[1], PollFlags::POLLERR) {
                return Ok(Written::Closed);
            }
            let ended: Vec<_> = fds[2..]
                .chunks_exact(2)
                .zip(polled)
                .map(|(fds, number)| {
                    let has_failed = has(&fds[1], PollFlags::POLLERR);
                    (number, has(&fds[0], PollFlags::POLLIN), has_failed)
                })
                .collect();
            drop(fds);
            for (number, has_ended, has_failed) in ended {
                self.look_after(number, has_ended, has_failed)?;
            }
            while let Some(signal) = signals.next() {
                if signal != Signal::SIGCHLD {
                    return Ok(Written::Open);
                }
            }
        }
    }

    /// Closes a link whose process has ended or whose interface is gone.
    fn look_after(&mut self, number: usize, has_ended: bool, has_failed: bool) -> Result<()> {
        let LinkState::Open { ring, is_down, .. } = &mut self.links[number].state else {
            return Ok(());
        };
        let is_gone = (has_failed || *is_down) && ring.is_gone();
        *is_down |= has_failed;
        if has_ended || is_gone {
            self.drain(&[number])?;
            let name = &self.links[number].place.name;
            log::warn!("{name} is gone");
            self.close(number)?;
        }
        Ok(())
    }

    /// Reads some of what the rings have, and writes it.
    fn turn(&mut self) -> Result<Written> {
        if !self.output.is_blocked() {
            for number in 0..self.links.len() {
                if let (_, Written::Closed) = self.read(number, u64::MAX)? {
                    return Ok(Written::Closed);
                }
            }
        }
        self.output.flush()
    }

    /// Reads some blocks of a ring: frames seen until `end`. Returns whether there may be more.
    fn read(&mut self, number: usize, end: u64) -> Result<(bool, Written)> {
        let Self { links, output } = self;
        let (mut outcome, mut is_over) = (Written::Open, false);
        let LinkState::Open { ring, is_down, .. } = &mut links[number].state else {
            return Ok((false, outcome));
        };
        let has_more = ring.read(TURN, |captured| {
            *is_down = false;
            is_over |= captured.time > end;
            if !is_over {
                let written = output.append(|out| write(out, number as u32, captured))?;
                if written == Written::Closed {
                    outcome = written;
                }
            }
            Ok(())
        })?;
        Ok((has_more && !is_over, outcome))
    }

    /// Reads what was seen until now and is in blocks that are not full yet.
    fn drain(&mut self, numbers: &[usize]) -> Result<()> {
        let (end, deadline) = (now(), Instant::now() + 2 * ring::TIMEOUT);
        loop {
            for &number in numbers {
                while self.read(number, end)?.0 {}
            }
            if Instant::now() >= deadline {
                return Ok(());
            }
            wait(&mut [], Some(deadline))?;
        }
    }

    /// Closes a link, and appends its statistics.
    fn close(&mut self, number: usize) -> Result<()> {
        let link = &mut self.links[number];
        if let LinkState::Open { .. } = link.state {
            link.close();
            let statistics = link.statistics;
            self.output
                .append(|out| pcapng::statistics(out, number as u32, &statistics))?;
        }
        Ok(())
    }

    /// Writes what is left. Nothing is left for a reader that is gone.
    fn finish(&mut self, written: Written) -> Result<()> {
        let all: Vec<_> = (0..self.links.len()).collect();
        if written == Written::Open {
            self.drain(&all)?;
        }
        for number in all {
            self.close(number)?;
        }
        let deadline = Instant::now() + LAST;
        while written == Written::Open
            && self.output.flush()? == Written::Open
            && !self.output.is_flushed()
        {
            if Instant::now() >= deadline {
                let message = "nobody reads the end of the capture";
                return Err(Error::new(ErrorKind::Busy, message));
            }
            let mut fds = [PollFd::new(self.output.as_fd(), PollFlags::POLLOUT)];
            wait(&mut fds, Some(deadline))?;
        }
        Ok(())
    }
}

/// Appends a frame. Its VLAN tag goes behind its two addresses (IEEE 802.1Q, 9.1).
fn write(out: &mut Vec<u8>, interface: u32, captured: Captured<'_>) {
    const ADDRESSES: usize = 12;
    let tag = captured
        .tag
        .as_ref()
        .filter(|_| captured.bytes.len() >= ADDRESSES);
    let (addresses, rest) = captured.bytes.split_at(tag.map_or(0, |_| ADDRESSES));
    let tag = tag.map_or(&[][..], |tag| &tag[..]);
    let packet = Packet {
        interface,
        time: captured.time,
        parts: &[addresses, tag, rest],
        length: captured.length + tag.len() as u32,
        direction: captured.direction,
        reception: captured.reception,
    };
    pcapng::packet(out, &packet);
}
