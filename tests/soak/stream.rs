//! What runs in the namespaces: consecutive 64-bit numbers, sent through TCP and compared where
//! they arrive.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Subcommand;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

const PORT: u16 = 5001;
/// Bytes sent at once, and how often.
const CHUNK: usize = 64 << 10;
const EVERY: Duration = Duration::from_millis(40);
/// Between lines of progress.
const PROGRESS: Duration = Duration::from_secs(1);

/// One end of a stream.
#[derive(Debug, Subcommand)]
pub(crate) enum Tool {
    /// Send numbers
    #[command(hide = true)]
    Send {
        /// To whom
        address: Ipv4Addr,
    },
    /// Receive and compare numbers, and print how many bytes came and the longest pause in
    /// milliseconds
    #[command(hide = true)]
    Receive,
}

impl Tool {
    pub(crate) fn run(&self) -> ExitCode {
        // Debian's vdens leaves its command behind.
        let _ = set_pdeathsig(Signal::SIGKILL);
        let outcome = match self {
            Self::Send { address } => send(*address),
            Self::Receive => receive(),
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("WRONG {error}");
                ExitCode::FAILURE
            }
        }
    }
}

fn send(address: Ipv4Addr) -> std::io::Result<()> {
    let mut stream = loop {
        match TcpStream::connect((address, PORT)) {
            Ok(stream) => break stream,
            Err(_) => sleep(Duration::from_millis(200)),
        }
    };
    let mut number = 0_u64;
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        chunk.clear();
        while chunk.len() < CHUNK {
            chunk.extend(number.to_be_bytes());
            number += 1;
        }
        stream.write_all(&chunk)?;
        sleep(EVERY);
    }
}

fn receive() -> std::io::Result<()> {
    let (mut stream, _) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?.accept()?;
    let mut chunk = vec![0; CHUNK];
    let mut number = 0_u64;
    let (mut last, mut told) = (Instant::now(), Instant::now());
    let mut longest = Duration::ZERO;
    loop {
        // Numbers come whole: the sender's chunks are full of them, TCP's segments need not be.
        stream.read_exact(&mut chunk[..8192])?;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        for bytes in chunk[..8192].chunks_exact(8) {
            if bytes != number.to_be_bytes() {
                let message = format!("{bytes:?} came for number {number}");
                return Err(std::io::Error::other(message));
            }
            number += 1;
        }
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            println!("{} {}", number * 8, longest.as_millis());
        }
    }
}
