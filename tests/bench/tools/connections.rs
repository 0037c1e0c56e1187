//! The tools that open TCP connections, and the servers for them.
//!
//! Theory of operation. A request is [`SIZE`] bytes, and so is the answer, after which the server
//! closes the connection: what waits for late segments (TIME-WAIT) is then on the server's side,
//! and no client runs out of ports. As many threads serve as there are clients, each for one
//! connection after the other.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::report_times;
use crate::Result;

/// The bytes of a request, and of an answer.
const SIZE: usize = 100;
/// How many connections are served at once.
const SERVERS: usize = 32;
/// How many clients ask at once.
const CLIENTS: usize = 16;
/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Answers requests.
pub(super) fn answer(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    thread::scope(|scope| {
        for _ in 0..SERVERS {
            scope.spawn(|| {
                for stream in listener.incoming() {
                    // A client that has gone is no reason to end.
                    let _ = stream.and_then(|mut stream| {
                        stream.set_read_timeout(Some(PATIENCE))?;
                        stream.read_exact(&mut [0; SIZE])?;
                        stream.write_all(&[0; SIZE])
                    });
                }
            });
        }
    });
    Ok(())
}

/// Asks again and again, as [`CLIENTS`] clients at once, and reports the times.
pub(super) fn requests(to: SocketAddr, limit: Duration) -> Result<()> {
    let start = Instant::now();
    let client = || {
        let (mut times, mut failed) = (Vec::new(), 0);
        while start.elapsed() < limit {
            let begin = Instant::now();
            match ask(to) {
                Ok(()) => times.push(begin.elapsed()),
                Err(_) => failed += 1,
            }
        }
        (times, failed)
    };
    let (mut times, mut lost) = (Vec::new(), 0);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        for (its, failed) in clients.into_iter().filter_map(|client| client.join().ok()) {
            times.extend(its);
            lost += failed;
        }
    });
    report_times(times, lost, start.elapsed());
    Ok(())
}

/// Opens a connection, asks, and waits for the answer and the end.
fn ask(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[0; SIZE])?;
    stream.read_exact(&mut [0; SIZE])?;
    match stream.read(&mut [0; 1])? {
        0 => Ok(()),
        _ => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

/// Asks until there is an answer, and says when that was.
pub(super) fn first(to: SocketAddr, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    while let Err(error) = ask(to) {
        if Instant::now() > deadline {
            return Err(format!("no answer from {to} within {limit:?}: {error}").into());
        }
        sleep(Duration::from_millis(1));
    }
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    println!("{}", json!({ "at": u64::try_from(now.as_nanos())? }));
    Ok(())
}

/// Lets this process have as many descriptors as the system allows it.
fn raise_limit() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(())
}

/// Accepts connections, and keeps them.
pub(super) fn keep(port: u16) -> Result<()> {
    raise_limit()?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let mut kept = Vec::new();
    loop {
        kept.push(listener.accept()?);
    }
}

/// Opens connections, and keeps them.
pub(super) fn open(to: SocketAddr, count: usize) -> Result<()> {
    raise_limit()?;
    let streams = (0..count).map(|_| TcpStream::connect_timeout(&to, PATIENCE));
    let _streams = streams.collect::<std::io::Result<Vec<TcpStream>>>()?;
    loop {
        thread::park();
    }
}
