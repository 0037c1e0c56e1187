//! The console of a lab's virtual machine: its serial line, in the user's terminal.
//!
//! The line is an abstract socket (unix(7)) in the network namespace of the machine's node, which
//! QEMU serves for one connection at a time. The terminal is raw meanwhile, so that each key goes
//! to the guest, but for Ctrl-], which leaves.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::error::{Error, Result, system};
use crate::namespace::enter::Door;
use crate::output::complain;
use crate::sys::process::wait;
use crate::sys::signals::Signals;

/// The socket's name.
pub(crate) const SOCKET: &str = "vdens-console";

/// The key that leaves: Ctrl-].
const LEAVE: u8 = 0x1d;

/// How long a machine that starts may take to have a console.
const LIMIT: Duration = Duration::from_secs(10);

/// The console of a node's machine.
fn of(door: &Door) -> Result<UnixStream> {
    let mut fds = door.inside(|| {
        let connect = || {
            SocketAddr::from_abstract_name(SOCKET)
                .and_then(|address| UnixStream::connect_addr(&address))
        };
        let deadline = Instant::now() + LIMIT;
        loop {
            match connect() {
                Ok(console) => return Ok(vec![console.into()]),
                Err(error)
                    if error.kind() == io::ErrorKind::ConnectionRefused
                        && Instant::now() < deadline =>
                {
                    sleep(Duration::from_millis(20));
                }
                Err(error) => {
                    let error = Error::io("open the machine's console", &error);
                    return Err(error.hint("vdectl lab status shows whether QEMU runs"));
                }
            }
        }
    })?;
    let console = fds.pop().map(UnixStream::from);
    console.ok_or_else(|| Error::closed("a helper process lost a descriptor"))
}

/// Connects the console of a node's machine with this process's terminal, or its standard streams,
/// until the user leaves, the input ends, or the machine does.
///
/// # Errors
/// There is no console, or standard output takes nothing.
pub(crate) fn attend(door: &Door) -> Result<()> {
    let console = of(door)?;
    let signals = Signals::block()?;
    if io::stdin().is_terminal() {
        complain("the machine's console; Ctrl-] leaves");
    }
    let terminal = Raw::start()?;
    let outcome = relay(&console, &signals);
    drop(terminal);
    outcome
}

fn relay(console: &UnixStream, signals: &Signals) -> Result<()> {
    let input = io::stdin();
    let mut line = console;
    let mut bytes = [0; 4096];
    loop {
        let mut fds = [signals.as_fd(), input.as_fd(), console.as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        wait(&mut fds, None)?;
        let [signalled, typed, said] = fds.map(|fd| fd.any() == Some(true));
        if said {
            let count = line.read(&mut bytes).map_err(cannot)?;
            if count == 0 {
                return Ok(());
            }
            let mut output = io::stdout().lock();
            let written = output.write_all(&bytes[..count]);
            written
                .and_then(|()| output.flush())
                .map_err(|error| Error::io("write to standard output", &error))?;
        }
        if typed {
            let count =
                nix::unistd::read(&input, &mut bytes).map_err(system("read standard input"))?;
            let typed = &bytes[..count];
            let kept = typed.iter().position(|byte| *byte == LEAVE);
            line.write_all(&typed[..kept.unwrap_or(count)])
                .map_err(cannot)?;
            if count == 0 || kept.is_some() {
                return Ok(());
            }
        }
        if signalled
            && signals
                .next()
                .is_some_and(|signal| signal != Signal::SIGCHLD)
        {
            return Ok(());
        }
    }
}

fn cannot(error: io::Error) -> Error {
    Error::io("use the console", &error)
}

/// The terminal as it was, which is raw until this is dropped.
struct Raw(Termios);

impl Raw {
    /// Makes the terminal raw, if standard input is one.
    fn start() -> Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin()).map_err(system("look at the terminal"))?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).map_err(system("make the terminal raw"))?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // If the terminal is gone, nothing is left to restore.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
