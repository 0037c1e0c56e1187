//! `nat://`: the Internet, for a namespace or a whole network.
//!
//! # Theory of operation
//!
//! The link is one end of a cable (`ptp://`) in a directory of its own. At the other end is a
//! gateway: a session of `vdens`, so the kernel carries the frames between the two where it can.
//! The gateway's kernel ends the connections of the network inside, and a proxy outside makes them
//! again. Both are the program `vdens-nat`, which is installed beside this plugin; the plugin
//! starts the proxy, and the proxy the gateway.
//!
//! The plugin joins the cable when the proxy serves, so that the link has carrier from then on: the
//! first frame is answered like any other. Whether the kernel can run a gateway is known before,
//! when the gateway tries to write its rules. If it cannot, the plugin opens libvdeplug's slirp.
//!
//! A socket pair joins the plugin to the proxy. When the one is gone, so is the other: the link
//! breaks, and the host opens it again. The same goes for one that does not answer (`heartbeat`).

mod child;
mod forward;
#[doc(hidden)]
pub mod fuzz;
mod gateway;
mod heartbeat;
mod program;
mod proxy;
mod report;
mod resolv;
mod sandbox;
mod settings;
mod wire;

pub use program::program;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vdens_plugin_kit::{
    Capabilities, Error, ErrorKind, Link, OpenRequest, Result, RxBatch, State, Status, TxBatch,
    export_plugin, log,
};

use child::{Directory, Proxy, Start};
use heartbeat::BEAT;
use report::Report;
use settings::{Settings, Task};

/// How often the proxy is looked after while frames come without a pause.
const LOOK: Duration = Duration::from_millis(50);

/// The link: the cable's end, while the proxy lives.
struct Nat {
    /// Before the cable: the gateway's session is told to end before it sees its peer go, because
    /// it would take the time to unplug its port.
    proxy: Proxy,
    cable: Box<dyn Link>,
    /// Readable at each beat.
    beat: TimerFd,
    /// When the proxy was looked after last.
    looked: Instant,
    /// Readable when the cable, the proxy or the beat is.
    ready: Epoll,
    /// The last that the proxy told for `vdectl status`.
    told: BTreeMap<String, String>,
    /// Where the cable is; removed with the link.
    _directory: Directory,
}

impl Link for Nat {
    fn fd(&self) -> BorrowedFd<'_> {
        self.ready.0.as_fd()
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.cable.send_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        self.cable.recv(batch)?;
        // Frames are the usual reason for a call, and cost no system call more.
        if batch.is_empty() || self.looked.elapsed() >= LOOK {
            self.look()?;
        }
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        self.cable.send(batch)
    }

    fn other_side(&mut self, state: State) {
        self.cable.other_side(state);
    }

    fn state(&self) -> State {
        self.cable.state()
    }

    fn status(&self) -> Status {
        let mut status = self.cable.status();
        status.extra.extend(self.told.clone());
        status
    }

    fn wants_panel(&self) -> bool {
        self.cable.wants_panel()
    }
}

impl Nat {
    /// Handles what the proxy has told, and asks whether it still runs.
    fn look(&mut self) -> Result<()> {
        self.looked = Instant::now();
        while let Some(report) = self.proxy.next()? {
            match report {
                Report::Serving | Report::Alive => {}
                Report::Failed(why) | Report::Lacks(why) => return Err(Error::closed(why)),
                Report::Warning(text) => child::warn(&text),
                Report::Status(told) => self.told = told,
            }
        }
        // The timer does not block: it is an error that it has not expired.
        match self.beat.wait() {
            Ok(()) => self.proxy.ask(),
            Err(_) => Ok(()),
        }
    }
}

/// What this kernel lacks to run a gateway, once that is known.
static LACKING: OnceLock<String> = OnceLock::new();

/// What serves where the kernel can run no gateway.
const STAND_IN: &str = "libvdeplug://slirp://";

/// Opens what serves where the kernel can run no gateway.
fn stand_in(request: &OpenRequest<'_>, why: &str) -> Result<Box<dyn Link>> {
    match request.host.open(STAND_IN) {
        Ok(link) => {
            log::warn!("nat://: {why}; {STAND_IN} serves instead: slower, and without nat's keys");
            Ok(link)
        }
        Err(error) => {
            let message = format!(
                "{why}; and {STAND_IN} cannot serve instead: {}",
                error.message
            );
            Err(Error::new(ErrorKind::Unsupported, message).hint(
                "sudo modprobe -a nft_tproxy nft_reject_inet nft_queue, or install libvdeplug's slirp",
            ))
        }
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let mut settings = Settings::parse(request.argument())?;
    if let Some(why) = LACKING.get() {
        return stand_in(request, why);
    }
    settings.check_machine()?;
    let directory = Directory::new()?;
    let port = request.host.port();
    settings.is_cable = !port.interface.is_empty() && port.panel_address.is_some();
    // Without an interface, the other end is a switch, say.
    let inside = match port.interface.is_empty() {
        true => Vec::new(),
        false => child::siblings()?,
    };
    let task = Task {
        settings,
        directory: directory.path().to_owned(),
        vdens: child::vdens()?,
        panel: port.panel_address.is_some(),
        inside,
        processes: vec![std::process::id(), std::os::unix::process::parent_id()],
    };
    let cable = format!("ptp://{}", directory.path().join("cable").display());
    let proxy = match Proxy::start(&task)? {
        Start::Serves(proxy) => proxy,
        Start::Lacks(why) => return stand_in(request, LACKING.get_or_init(|| why)),
    };
    let cable = request.host.open(&cable)?;
    let (beat, ready) = watch(cable.fd(), proxy.fd())
        .map_err(|errno| Error::io("wait for the proxy", &errno.into()))?;
    Ok(Box::new(Nat {
        cable,
        proxy,
        beat,
        looked: Instant::now(),
        ready,
        told: BTreeMap::new(),
        _directory: directory,
    }))
}

/// A timer that expires at each beat, and what is readable when it has or a descriptor is.
fn watch(cable: BorrowedFd<'_>, proxy: BorrowedFd<'_>) -> nix::Result<(TimerFd, Epoll)> {
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    let beat = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
    let interval = Expiration::Interval(BEAT.into());
    beat.set(interval, TimerSetTimeFlags::empty())?;
    let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for fd in [cable, proxy, beat.as_fd()] {
        ready.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    }
    Ok((beat, ready))
}

export_plugin! {
    scheme: "nat",
    description: "the Internet, through a gateway of one's own: nat://",
    capabilities: Capabilities::PANEL.and(Capabilities::ONE_END).and(Capabilities::STANDS_IN),
    needs: "exec",
    open: open,
}
