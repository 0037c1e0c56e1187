//! What runs inside the namespaces: hidden subcommands of the benchmark's own binary.
//!
//! Theory of operation. `enter` joins the namespaces of a process and executes another command. The
//! rest are senders and receivers of one purpose each. A tool ends by itself and prints one line of
//! JSON, or is a server that its owner ends. Datagrams and ICMP echo requests carry a stamp, so
//! that nothing else on the link is counted. A paced sender wakes every 100 µs and sends what is
//! due, at most [`BURST`] at once: after a pause it does not catch up with a flood.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Subcommand;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_timerslack;
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, recvmmsg, send,
    sendmmsg, setsockopt, socket, sockopt,
};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde_json::json;

use crate::Result;

mod connections;
mod stamps;

/// The size of a datagram, unless another one is asked for.
const PAYLOAD: usize = 64;
/// Room for any datagram.
const BUFFER: usize = 2048;
/// What datagrams of the benchmark start with.
const STAMP: [u8; 8] = *b"vdensbm1";
/// How many frames a paced sender sends at once, at most.
const BURST: usize = 64;
/// How long a tool that has nothing to do sleeps.
const NAP: Duration = Duration::from_micros(100);
/// Enough of a pause to mean that the sender is done.
const SILENCE: Duration = Duration::from_millis(400);
/// The receive buffer asked for: what gets lost is to get lost on the link, not behind it.
const RECEIVE_BUFFER: usize = 16 << 20;

/// A tool.
#[derive(Debug, Subcommand)]
pub(crate) enum Tool {
    /// Run a command in the namespaces of a process
    Enter {
        /// Whose namespaces
        #[arg(long)]
        pid: u32,
        /// The user namespace too, with its capabilities
        #[arg(long)]
        user: bool,
        /// As whom (root only)
        #[arg(long)]
        uid: Option<u32>,
        /// As which group (root only)
        #[arg(long)]
        gid: Option<u32>,
        /// The command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// Answer requests
    Answer {
        /// The port
        port: u16,
    },
    /// Send requests until one is answered
    First {
        /// Who is to answer
        to: SocketAddr,
        /// For how long
        milliseconds: u64,
    },
    /// Send requests, each by a connection of its own
    Requests {
        /// Who is to answer
        to: SocketAddr,
        /// For how long
        milliseconds: u64,
    },
    /// Accept connections and keep them
    Keep {
        /// The port
        port: u16,
    },
    /// Open connections and keep them
    Open {
        /// Where
        to: SocketAddr,
        /// How many
        count: usize,
    },
    /// Send datagrams back
    Echo {
        /// The port
        port: u16,
    },
    /// Send ICMP echo requests until one is answered
    Probe {
        /// Whose kernel is to answer
        to: Ipv4Addr,
        /// For how long
        milliseconds: u64,
    },
    /// Time round trips, one after the other
    Rtt {
        /// The port of an echo server; without one ICMP is used, which the kernel answers
        #[arg(long)]
        port: Option<u16>,
        /// Who is to answer
        to: Ipv4Addr,
        /// For how long
        milliseconds: u64,
        /// How many, at most
        count: usize,
        /// The pause between two
        gap_microseconds: u64,
    },
    /// Count what `flood` or `pour` sends
    Sink {
        /// Call a `pour` there
        #[arg(long)]
        call: Option<SocketAddr>,
        /// The port
        port: u16,
        /// For how long, at most
        milliseconds: u64,
    },
    /// Receive datagrams, and no more
    Drain {
        /// The port
        port: u16,
    },
    /// Wait for a call, and send datagrams to who called
    Pour {
        /// The size of a datagram
        #[arg(long, default_value_t = PAYLOAD)]
        size: usize,
        /// The port
        port: u16,
        /// For how long
        milliseconds: u64,
    },
    /// Send datagrams
    Flood {
        /// The size of a datagram
        #[arg(long, default_value_t = PAYLOAD)]
        size: usize,
        /// Where
        to: SocketAddr,
        /// For how long
        milliseconds: u64,
        /// How many a second; 0 is as many as possible
        rate: u64,
    },
    /// Send datagrams with the time in them
    Stamp {
        /// Where
        to: SocketAddr,
        /// For how long
        milliseconds: u64,
        /// How many a second
        rate: u64,
    },
    /// Count what `stamp` sends, and what comes in time
    Late {
        /// The port
        port: u16,
        /// For how long, at most
        milliseconds: u64,
        /// How late it is to come
        microseconds: u64,
    },
    /// Send frames with the time in them into a cable, and count what comes out of another in time
    Cable {
        /// The path of the first cable
        from: PathBuf,
        /// The path of the other
        to: PathBuf,
        /// For how long
        milliseconds: u64,
        /// How many a second
        rate: u64,
        /// How late they are to come
        microseconds: u64,
    },
    /// Send broadcast frames with many source addresses
    Learn {
        /// The interface
        interface: String,
        /// How many addresses
        addresses: u32,
        /// How many a second
        rate: u64,
    },
    /// Send frames to the addresses of `learn`, in random order
    Spray {
        /// The interface
        interface: String,
        /// How many addresses
        addresses: u32,
        /// For how long
        milliseconds: u64,
    },
}

impl Tool {
    /// Does what the tool is for.
    pub(crate) fn run(self) -> Result<()> {
        // Sleeps of 100 µs are not to be rounded up to 150.
        set_timerslack(1)?;
        let millis = Duration::from_millis;
        match self {
            Self::Enter {
                pid,
                user,
                uid,
                gid,
                command,
            } => enter(pid, user, uid.zip(gid), &command),
            Self::Answer { port } => connections::answer(port),
            Self::First { to, milliseconds } => connections::first(to, millis(milliseconds)),
            Self::Requests { to, milliseconds } => connections::requests(to, millis(milliseconds)),
            Self::Keep { port } => connections::keep(port),
            Self::Open { to, count } => connections::open(to, count),
            Self::Echo { port } => echo(port),
            Self::Probe { to, milliseconds } => probe(to, millis(milliseconds)),
            Self::Rtt {
                port,
                to,
                milliseconds,
                count,
                gap_microseconds,
            } => rtt(
                &mut Rounds::new(to, port, Duration::from_millis(500))?,
                millis(milliseconds),
                count,
                Duration::from_micros(gap_microseconds),
            ),
            Self::Sink {
                call,
                port,
                milliseconds,
            } => sink(port, call, millis(milliseconds)),
            Self::Drain { port } => drain(port),
            Self::Pour {
                size,
                port,
                milliseconds,
            } => pour(port, size, millis(milliseconds)),
            Self::Flood {
                size,
                to,
                milliseconds,
                rate,
            } => flood(to, size, millis(milliseconds), rate),
            Self::Stamp {
                to,
                milliseconds,
                rate,
            } => stamps::stamp(to, millis(milliseconds), rate),
            Self::Late {
                port,
                milliseconds,
                microseconds,
            } => stamps::late(
                port,
                millis(milliseconds),
                Duration::from_micros(microseconds),
            ),
            Self::Cable {
                from,
                to,
                milliseconds,
                rate,
                microseconds,
            } => stamps::cable(
                [from, to],
                millis(milliseconds),
                rate,
                Duration::from_micros(microseconds),
            ),
            Self::Learn {
                interface,
                addresses,
                rate,
            } => learn(&interface, addresses, rate),
            Self::Spray {
                interface,
                addresses,
                milliseconds,
            } => spray(&interface, addresses, millis(milliseconds)),
        }
    }
}

/// Becomes a command in the namespaces of a process. An ordinary user has all capabilities right
/// after joining a user namespace. They are made ambient, so that executing a program keeps them.
fn enter(
    pid: u32,
    user: bool,
    owner: Option<(u32, u32)>,
    command: &[std::ffi::OsString],
) -> Result<()> {
    let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}"));
    let net = open("net")?;
    if user {
        let namespace = open("user")?;
        owner.map_or(Ok(()), become_user)?;
        setns(namespace, CloneFlags::CLONE_NEWUSER)?;
        setns(net, CloneFlags::CLONE_NEWNET)?;
        let all = caps::read(None, caps::CapSet::Permitted)?;
        caps::set(None, caps::CapSet::Inheritable, &all)?;
        caps::set(None, caps::CapSet::Ambient, &all)?;
    } else {
        setns(net, CloneFlags::CLONE_NEWNET)?;
        owner.map_or(Ok(()), become_user)?;
    }
    let (program, arguments) = command.split_first().ok_or("no command")?;
    Err(Command::new(program).args(arguments).exec().into())
}

fn become_user((uid, gid): (u32, u32)) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}

fn bind(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    // Beyond the machine's limit if the namespace's owner may, else up to it.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    Ok(socket)
}

fn echo(port: u16) -> Result<()> {
    let socket = bind(port)?;
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        // A full queue loses an answer, as it would lose anything else.
        let _ = socket.send_to(&buffer[..length], from);
    }
}

/// Numbered questions to an echo server, or by ICMP to a kernel, each asked when the one before is
/// answered.
struct Rounds {
    socket: UdpSocket,
    /// What goes before the stamp and the number: the header of an ICMP echo request, its checksum
    /// left out; or nothing.
    header: &'static [u8],
    number: u64,
}

/// Type 8 of RFC 792; as there is one who asks, identifier and sequence number may be 0.
const ECHO_REQUEST: &[u8] = &[8, 0, 0, 0, 0, 0, 0, 0];

impl Rounds {
    /// `port` is that of an echo server; without one the kernel is asked. An answer may take as
    /// long as `patience`.
    fn new(to: Ipv4Addr, port: Option<u16>, patience: Duration) -> Result<Self> {
        let (socket, header) = match port {
            Some(_) => (bind(0)?, &[][..]),
            None => (icmp()?, ECHO_REQUEST),
        };
        socket.connect(SocketAddrV4::new(to, port.unwrap_or(0)))?;
        socket.set_read_timeout(Some(patience))?;
        Ok(Self {
            socket,
            header,
            number: 0,
        })
    }

    /// Asks and waits for the answer, without spinning; whether it came in time.
    fn one(&mut self) -> bool {
        self.number += 1;
        let mark = [STAMP, self.number.to_be_bytes()].concat();
        let mut question = [self.header, &mark].concat();
        if !self.header.is_empty() {
            let sum = checksum(&question);
            question[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        if self.socket.send(&question).is_err() {
            return false;
        }
        let mut answer = [0; 2 * PAYLOAD];
        loop {
            match self.socket.recv(&mut answer) {
                // From a raw socket the answer comes with its headers.
                Ok(length) if answer[..length].ends_with(&mark) => return true,
                // An answer to a question that was given up.
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }
}

/// A raw socket for ICMP. The standard library's calls for UDP do for any datagrams.
fn icmp() -> Result<UdpSocket> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    )?;
    Ok(socket.into())
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks_exact(2)
        .map(|word| u16::from_be_bytes([word[0], word[1]]));
    let sum = words.fold(0_u16, |sum, word| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    });
    !sum
}

fn probe(to: Ipv4Addr, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut rounds = Rounds::new(to, None, Duration::from_millis(50))?;
    while Instant::now() < deadline {
        if rounds.one() {
            println!("{}", json!({ "attempts": rounds.number }));
            return Ok(());
        }
        // A refusal comes at once.
        sleep(Duration::from_millis(10));
    }
    Err(format!("no answer from {to} within {limit:?}").into())
}

fn rtt(rounds: &mut Rounds, limit: Duration, count: usize, gap: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut times = Vec::with_capacity(count);
    let mut lost = 0;
    while times.len() + lost < count && Instant::now() < deadline {
        let start = Instant::now();
        if rounds.one() {
            times.push(start.elapsed());
        } else {
            lost += 1;
        }
        if !gap.is_zero() {
            sleep(gap);
        }
    }
    report_times(times, lost, limit);
    Ok(())
}

/// Reports how long answers took, and within how long they came.
fn report_times(mut times: Vec<Duration>, lost: usize, span: Duration) {
    times.sort_unstable();
    let at = |share: f64| {
        let rank = (times.len().checked_sub(1)? as f64 * share).round() as usize;
        times.get(rank).map(|time| time.as_secs_f64() * 1e6)
    };
    println!(
        "{}",
        json!({
            "answers": times.len(),
            "lost": lost,
            "seconds": span.as_secs_f64(),
            "p50": at(0.5),
            "p99": at(0.99),
        })
    );
}

/// Counts datagrams. It takes them by the batch and naps in between, so that the sender is not busy
/// with waking it up. It calls until the first has arrived.
fn sink(port: u16, call: Option<SocketAddr>, limit: Duration) -> Result<()> {
    let socket = bind(port)?;
    let deadline = Instant::now() + limit;
    let mut next_call = Instant::now();
    let mut buffers = [[0; BUFFER]; BURST];
    let mut received: u64 = 0;
    let mut span: Option<(Instant, Instant)> = None;
    loop {
        let taken = receive(&socket, &mut buffers)?;
        let now = Instant::now();
        if taken > 0 {
            received += taken;
            let (start, _) = span.unwrap_or((now, now));
            span = Some((start, now));
        }
        if let Some(to) = call.filter(|_| span.is_none() && now >= next_call) {
            socket.send_to(&STAMP, to)?;
            next_call = now + SILENCE;
        }
        let idle = span.is_some_and(|(_, last)| now - last > SILENCE);
        if idle || now > deadline {
            break;
        }
        if taken < BURST as u64 {
            sleep(NAP);
        }
    }
    let seconds = span.map_or(0.0, |(first, last)| (last - first).as_secs_f64());
    println!("{}", json!({ "received": received, "seconds": seconds }));
    Ok(())
}

fn drain(port: u16) -> Result<()> {
    let socket = bind(port)?;
    loop {
        socket.recv(&mut [0; 2 * PAYLOAD])?;
    }
}

/// Takes what has arrived, a datagram for each buffer at most; how many of them are the
/// benchmark's.
fn receive(socket: &UdpSocket, buffers: &mut [[u8; BUFFER]]) -> Result<u64> {
    let mut headers = MultiHeaders::<()>::preallocate(buffers.len(), None);
    let mut slices: Vec<_> = buffers
        .iter_mut()
        .map(|buffer| [IoSliceMut::new(buffer)])
        .collect();
    let flags = MsgFlags::MSG_DONTWAIT;
    let count = match recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, flags, None) {
        Ok(messages) => messages.count(),
        Err(Errno::EAGAIN) => 0,
        Err(error) => return Err(error.into()),
    };
    let stamped = buffers[..count]
        .iter()
        .filter(|buffer| buffer.starts_with(&STAMP));
    Ok(stamped.count() as u64)
}

/// Calls `send` with how many to send and how many were sent before, until `done`. `send` returns
/// how many the kernel took. A `rate` is a number a second; 0 is as many as possible. Returns how
/// many were sent, how many of these were refused, and the time.
fn paced(
    rate: u64,
    done: impl Fn(u64, Duration) -> bool,
    mut send: impl FnMut(u64, u64) -> u64,
) -> (u64, u64, Duration) {
    let start = Instant::now();
    let (mut sent, mut refused, mut forgone) = (0, 0, 0);
    loop {
        let elapsed = start.elapsed();
        if done(sent, elapsed) {
            return (sent, refused, elapsed);
        }
        let mut due = BURST as u64;
        if rate > 0 {
            let owed = (elapsed.as_secs_f64() * rate as f64) as u64 - sent - forgone;
            due = owed.min(BURST as u64);
            forgone += owed - due;
        }
        if due > 0 {
            refused += due - send(due, sent).min(due);
            sent += due;
        }
        if rate > 0 {
            sleep(NAP);
        }
    }
}

fn flood(to: SocketAddr, size: usize, limit: Duration, rate: u64) -> Result<()> {
    let socket = bind(0)?;
    socket.set_broadcast(true)?;
    socket.connect(to)?;
    send_datagrams(&socket, size, limit, rate)
}

fn pour(port: u16, size: usize, limit: Duration) -> Result<()> {
    let socket = bind(port)?;
    let (_, caller) = socket.recv_from(&mut [0; BUFFER])?;
    socket.connect(caller)?;
    send_datagrams(&socket, size, limit, 0)
}

/// Sends datagrams to where a socket is connected.
fn send_datagrams(socket: &UdpSocket, size: usize, limit: Duration, rate: u64) -> Result<()> {
    let mut datagram = vec![0; size.max(STAMP.len())];
    datagram[..STAMP.len()].copy_from_slice(&STAMP);
    let slices = vec![[IoSlice::new(&datagram)]; BURST];
    let addresses = [None::<()>; BURST];
    // A paced sender does not wait: what the link does not take in time is lost.
    let flags = match rate {
        0 => MsgFlags::empty(),
        _ => MsgFlags::MSG_DONTWAIT,
    };
    let mut headers = MultiHeaders::preallocate(BURST, None);
    let (sent, refused, time) = paced(
        rate,
        |_, elapsed| elapsed >= limit,
        |due, _| {
            let due = usize::try_from(due).unwrap_or(BURST);
            let batch = &slices[..due];
            let fd = socket.as_raw_fd();
            let taken = sendmmsg(fd, &mut headers, batch, &addresses[..due], [], flags);
            taken.map_or(0, |messages| messages.count() as u64)
        },
    );
    println!(
        "{}",
        json!({ "sent": sent, "refused": refused, "seconds": time.as_secs_f64() })
    );
    Ok(())
}

/// A socket for whole frames on an interface.
fn raw(interface: &str) -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        // No protocol: it sends only.
        None,
    )?;
    let index = if_nametoindex(interface)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: index.try_into()?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a whole sockaddr_ll and outlives the call, and its own length is
    // passed.
    let result = unsafe {
        libc::bind(
            socket.as_fd().as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(socket)
}

/// The address of an imagined station.
fn station(number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_be_bytes();
    [0x02, 0xbe, a, b, c, d]
}

/// A frame of the smallest size, of the ethertype for local experiments.
fn frame(to: [u8; 6], from: [u8; 6]) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    // The second of the two, as the first is used by vdens itself.
    frame[12..14].copy_from_slice(&0x88b6_u16.to_be_bytes());
    frame
}

fn send_frame(socket: &OwnedFd, frame: &[u8]) -> bool {
    send(socket.as_raw_fd(), frame, MsgFlags::empty()).is_ok()
}

fn learn(interface: &str, addresses: u32, rate: u64) -> Result<()> {
    let socket = raw(interface)?;
    let (sent, refused, time) = paced(
        rate,
        |sent, _| sent >= u64::from(addresses),
        |due, before| {
            let numbers = before..before + due;
            let taken = numbers.filter(|number| {
                let source = station(u32::try_from(*number).unwrap_or(u32::MAX));
                send_frame(&socket, &frame([0xff; 6], source))
            });
            taken.count() as u64
        },
    );
    println!(
        "{}",
        json!({ "sent": sent, "refused": refused, "seconds": time.as_secs_f64() })
    );
    Ok(())
}

fn spray(interface: &str, addresses: u32, limit: Duration) -> Result<()> {
    let socket = raw(interface)?;
    let source = [0x02, 0xba, 0, 0, 0, 1];
    let (sent, refused, time) = paced(
        0,
        |_, elapsed| elapsed >= limit,
        |due, _| {
            let taken = (0..due).filter(|_| {
                let station = station(fastrand::u32(..addresses));
                send_frame(&socket, &frame(station, source))
            });
            taken.count() as u64
        },
    );
    println!(
        "{}",
        json!({ "sent": sent, "refused": refused, "seconds": time.as_secs_f64() })
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_makes_the_sum_zero() {
        // The example of RFC 1071, section 3.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&bytes), !0xddf2);
        let mut whole = bytes.to_vec();
        whole.extend(checksum(&bytes).to_be_bytes());
        assert_eq!(checksum(&whole), 0);
    }
}
