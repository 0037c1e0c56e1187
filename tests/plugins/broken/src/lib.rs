//! `broken://FAULT{VNL}`: the link of another VNL, with a fault; `none` has none.
//!
//! The conformance checks must find each fault. If the environment has `VDENS_BROKEN=panic`, the
//! library panics while it is loaded.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use vdens_plugin_kit::vnl::{Keys, Spec};
use vdens_plugin_kit::{
    Batch, Capabilities, Error, Link, OpenRequest, Result, RxBatch, State, TxBatch,
};

const KEYS: Keys = Keys::new(&[]);

/// The faults. A link has one of them.
const FAULTS: [&str; 22] = [
    "none", "loses", "reorders", "repeats", "changes", "busy", "deaf", "leaks", "inherits",
    "blocks", "panics", "aborts", "silent", "swallows", "spins", "lingers", "closes", "exits",
    "floods", "stubborn", "nowhere", "boasts",
];

struct Broken {
    fault: &'static str,
    inner: Box<dyn Link>,
    batch: Batch,
    sent: u32,
    /// Always readable and writable.
    ready: EventFd,
    /// Never readable.
    never: EventFd,
    _inherited: Option<OwnedFd>,
}

impl Broken {
    fn has(&self, fault: &str) -> bool {
        self.fault == fault
    }
}

impl Link for Broken {
    fn fd(&self) -> BorrowedFd<'_> {
        match self.fault {
            "busy" => self.ready.as_fd(),
            "deaf" => self.never.as_fd(),
            // SAFETY: none; a number that is no descriptor is the fault.
            "nowhere" => unsafe { BorrowedFd::borrow_raw(9999) },
            _ => self.inner.fd(),
        }
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        match self.fault {
            "spins" => self.ready.as_fd(),
            _ => self.inner.send_fd(),
        }
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        self.batch.clear();
        self.inner.recv(&mut self.batch.rx())?;
        let frames = self.batch.tx(0);
        let mut frames: Vec<_> = frames.frames().map(|f| f.bytes().to_vec()).collect();
        match self.fault {
            "panics" if !frames.is_empty() => panic!("a frame has come"),
            "aborts" if !frames.is_empty() => std::process::abort(),
            "exits" if !frames.is_empty() => std::process::exit(0),
            "reorders" => frames.reverse(),
            "changes" => frames.iter_mut().for_each(|frame| frame[13] ^= 1),
            _ => {}
        }
        for frame in &frames {
            batch.push(frame);
        }
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        let mut passed = Batch::new();
        for frame in batch.frames() {
            self.sent += 1;
            let copies = match self.fault {
                "loses" if self.sent.is_multiple_of(20) => 0,
                "repeats" if self.sent.is_multiple_of(20) => 2,
                "swallows" => 0,
                _ => 1,
            };
            for _ in 0..copies {
                passed.rx().push(frame.bytes());
            }
        }
        match self.fault {
            "blocks" => sleep(Duration::from_secs(60)),
            "stubborn" => refuse_to_end(),
            "floods" => write_everywhere(),
            _ => {}
        }
        if self.has("spins") && self.sent > 1000 {
            return Ok(0);
        }
        let (taken, all) = (self.inner.send(&mut passed.tx(0))?, passed.len());
        if self.has("boasts") {
            return Ok(usize::MAX);
        }
        Ok(if taken < all { taken } else { batch.len() })
    }

    fn other_side(&mut self, state: State) {
        self.inner.other_side(state);
    }

    fn state(&self) -> State {
        match self.fault {
            "silent" => State::DOWN,
            _ => self.inner.state(),
        }
    }
}

/// Ignores every signal that can be ignored, and never returns.
fn refuse_to_end() {
    for number in 1..32 {
        // SAFETY: ignoring a signal runs no code; for those that cannot be ignored it fails.
        unsafe { libc::signal(number, libc::SIG_IGN) };
    }
    loop {
        sleep(Duration::from_secs(60));
    }
}

/// Writes without end to all descriptors of this process but the standard streams.
fn write_everywhere() {
    let bytes = [b'x'; 4096];
    loop {
        for fd in 3..64 {
            // SAFETY: the bytes are valid. Writing to foreign descriptors is the fault.
            unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        }
    }
}

/// Starts a process that leaves the session and its group, and holds all descriptors open.
fn leave_a_process() {
    // SAFETY: the child calls only functions that are allowed after a fork, and never returns.
    unsafe {
        if libc::fork() == 0 {
            libc::setsid();
            if libc::fork() == 0 {
                libc::sleep(1000);
            }
            libc::_exit(0);
        }
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let spec = Spec::path_grammar(request.argument(), &KEYS)?;
    let name = spec.target_str()?;
    let fault = FAULTS.into_iter().find(|fault| *fault == name);
    let fault = fault.ok_or_else(|| Error::usage(format!("'{name}' is no fault")))?;
    let inner = spec.nested();
    let inner = inner.ok_or_else(|| Error::usage("no VNL in braces"))?;
    let cannot = |errno: nix::Error| Error::io("make a descriptor", &errno.into());
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let null = || File::open("/dev/null").map_err(|error| Error::io("open /dev/null", &error));
    if fault == "leaks" {
        std::mem::forget(null()?);
    }
    match fault {
        "lingers" => leave_a_process(),
        // SAFETY: none; closing foreign descriptors is the fault.
        "closes" => drop(unsafe { libc::close_range(3, u32::MAX, 0) }),
        _ => {}
    }
    let inherited = match fault {
        "inherits" => Some(nix::unistd::dup(null()?).map_err(cannot)?),
        _ => None,
    };
    Ok(Box::new(Broken {
        fault,
        inner: request.host.open(inner)?,
        batch: Batch::new(),
        sent: 0,
        ready: EventFd::from_value_and_flags(1, flags).map_err(cannot)?,
        never: EventFd::from_flags(flags).map_err(cannot)?,
        _inherited: inherited,
    }))
}

vdens_plugin_kit::export_plugin! {
    scheme: "broken",
    description: "another link with a fault",
    capabilities: Capabilities::NESTS,
    open: open,
}

extern "C" fn at_load() {
    if std::env::var("VDENS_BROKEN").is_ok_and(|fault| fault == "panic") {
        panic!("the library panics while it is loaded");
    }
}

// SAFETY: the section holds functions of this type. The loader calls them first.
#[unsafe(link_section = ".init_array")]
#[used]
static AT_LOAD: extern "C" fn() = at_load;
