//! Byte streams as links: frames over a pair of streams, such as a command's standard input and
//! output, or over a socket.
//!
//! The encoder keeps what the stream does not take, up to its limit. Beyond that the link makes the
//! other side wait. While the encoder holds bytes, the link is readable when its output is
//! writable, so that the last ones need not wait for the next frame. One read may bring more frames
//! than a batch has room for. While the decoder holds frames, the link is readable, whatever the
//! input is.
//!
//! The end of the input closes the link. When a link with a command is dropped, it closes the
//! command's streams and then asks the command to stop.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs::File, thread};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::ready::AlwaysReady;
use crate::wire::framing::{Decoder, Encoder, Framing};
use crate::wire::vdestream::Vdestream;
use crate::{Error, ErrorKind, Link, MAX_FRAME, MAX_LEGACY_MTU, Result, RxBatch, Status, TxBatch};

/// How long a command may take to end after its streams were closed, and after each signal.
const GRACE: Duration = Duration::from_millis(200);

/// A link over two descriptors, on which frames have a [`Framing`]: a vdestream's unless said
/// otherwise.
#[derive(Debug)]
pub struct Stream<F = Vdestream> {
    input: File,
    output: File,
    decoder: Decoder<F>,
    encoder: Encoder<F>,
    always: AlwaysReady,
    /// Whether there may be frames in the decoder.
    has_more: bool,
    /// Readable when the input is, and when the output is writable.
    either: Epoll,
}

impl<F: Framing> Stream<F> {
    /// A stream that receives from `input` and sends to `output`. Both become non-blocking.
    ///
    /// # Errors
    /// A descriptor cannot be made non-blocking, or there are none left.
    pub fn new(input: OwnedFd, output: OwnedFd) -> Result<Self> {
        for fd in [&input, &output] {
            set_nonblocking(fd.as_fd()).map_err(|errno| {
                Error::io(
                    format_args!("use a {}'s descriptor", F::NAME),
                    &errno.into(),
                )
            })?;
        }
        let either = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|errno| Error::io("make an epoll instance", &errno.into()))?;
        // A regular file cannot be watched. As an output it takes everything at once.
        let _ = either.add(&input, EpollEvent::new(EpollFlags::EPOLLIN, 0));
        let _ = either.add(&output, EpollEvent::new(EpollFlags::EPOLLOUT, 0));
        Ok(Self {
            input: input.into(),
            output: output.into(),
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            always: AlwaysReady::new()?,
            has_more: false,
            either,
        })
    }

    /// The descriptor that the link receives from. [`Link::fd`] is another one while the link holds
    /// frames.
    pub fn input(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// Whether the link holds frames that it has not received or sent completely.
    pub fn holds_frames(&self) -> bool {
        self.has_more || !self.encoder.pending().is_empty()
    }

    /// Writes encoded frames until the output takes no more.
    fn flush(&mut self) -> Result<()> {
        while !self.encoder.pending().is_empty() {
            match self.output.write(self.encoder.pending()) {
                Ok(written) => self.encoder.consume(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    let message = format!("the far end of the {} hung up", F::NAME);
                    return Err(Error::closed(message));
                }
                Err(error) => {
                    return Err(Error::io(format_args!("write to the {}", F::NAME), &error));
                }
            }
        }
        Ok(())
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

impl<F: Framing> Link for Stream<F> {
    fn fd(&self) -> BorrowedFd<'_> {
        match (self.has_more, self.encoder.pending().is_empty()) {
            (true, _) => self.always.as_fd(),
            (false, false) => self.either.0.as_fd(),
            (false, true) => self.input.as_fd(),
        }
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        self.flush()?;
        loop {
            while batch.has_room(F::MAX_FRAME) {
                match self.decoder.next_frame()? {
                    Some(frame) => batch.push(frame),
                    None => break,
                };
            }
            self.has_more = !batch.has_room(F::MAX_FRAME);
            if self.has_more {
                return Ok(());
            }
            match self.input.read(self.decoder.space()) {
                Ok(0) => return Err(Error::closed(format!("the {} ended", F::NAME))),
                Ok(read) => self.decoder.filled(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(Error::io(format_args!("read from the {}", F::NAME), &error));
                }
            }
        }
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        let (mut taken, mut lost) = (0, 0);
        for frame in batch.frames() {
            match self.encoder.push(frame.bytes()) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => lost += 1,
            }
            taken += 1;
        }
        batch.count_dropped(lost);
        self.flush()?;
        Ok(taken)
    }

    fn status(&self) -> Status {
        Status {
            max_mtu: (F::MAX_FRAME < MAX_FRAME).then_some(MAX_LEGACY_MTU),
            ..Status::default()
        }
    }
}

/// A vdestream to a command that was started for it.
#[derive(Debug)]
pub struct CommandStream {
    stream: Stream,
    child: Child,
}

impl CommandStream {
    /// Starts `sh -c COMMAND`, and exchanges frames with it.
    ///
    /// # Errors
    /// The shell cannot be started.
    pub fn shell(command: &str) -> Result<Self> {
        Self::start(Command::new("/bin/sh").arg("-c").arg(command))
    }

    /// Starts `command`, and exchanges frames with it.
    ///
    /// # Errors
    /// The command cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| Error::io(format_args!("start {name}"), &error))?;
        let (Some(output), Some(input)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::closed(format!("{name} has no standard streams")));
        };
        Ok(Self {
            stream: Stream::new(input.into(), output.into())?,
            child,
        })
    }
}

impl CommandStream {
    /// Adds how the command ended, if the stream ended for that reason.
    fn explain(&mut self, error: Error) -> Error {
        if error.kind != ErrorKind::Closed || !ended(&mut self.child, GRACE) {
            return error;
        }
        match self.child.try_wait() {
            Ok(Some(status)) => Error::closed(format!("the command ended with {status}")),
            _ => error,
        }
    }
}

impl Link for CommandStream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.fd()
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.stream.send_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let received = self.stream.recv(batch);
        received.map_err(|error| self.explain(error))
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        let sent = self.stream.send(batch);
        sent.map_err(|error| self.explain(error))
    }

    fn status(&self) -> Status {
        self.stream.status()
    }
}

impl Drop for CommandStream {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.child.id() as i32);
        for (signal, patience) in [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, GRACE)] {
            if killpg(group, signal) == Err(Errno::ESRCH) || ended(&mut self.child, patience) {
                break;
            }
        }
        let _ = self.child.try_wait();
    }
}

/// Waits for a child for a bounded time.
fn ended(child: &mut Child, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            outcome => return !matches!(outcome, Ok(None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BATCH_FRAMES, Batch, MAX_LEGACY_FRAME};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    /// Waits until the link has received something.
    fn receive(link: &mut dyn Link, batch: &mut Batch) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while batch.is_empty() && Instant::now() < deadline {
            link.recv(&mut batch.rx())?;
        }
        Ok(())
    }

    #[test]
    fn frames_go_through_a_command_and_back() {
        let mut link = CommandStream::shell("cat").unwrap();
        let mut batch = Batch::new();
        for len in [14, 60, 1514, MAX_LEGACY_FRAME] {
            batch.clear();
            batch.rx().push(&vec![len as u8; len]);
            assert_eq!(link.send(&mut batch.tx(0)).unwrap(), 1);
            batch.clear();
            receive(&mut link, &mut batch).unwrap();
            assert_eq!(batch.tx(0).frame(0).unwrap().bytes(), vec![len as u8; len]);
        }
    }

    #[test]
    fn frames_that_a_batch_has_no_room_for_are_announced() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let output = near.try_clone().unwrap();
        let mut link = Stream::<Vdestream>::new(near.into(), output.into()).unwrap();
        let count = 2 * BATCH_FRAMES + 1;
        for _ in 0..count {
            far.write_all(&[0, 60]).unwrap();
            far.write_all(&[7; 60]).unwrap();
        }
        let is_readable = |link: &Stream| {
            let mut fds = [PollFd::new(link.fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
        };
        let (mut batch, mut received) = (Batch::new(), 0);
        while is_readable(&link) {
            batch.clear();
            link.recv(&mut batch.rx()).unwrap();
            received += batch.len();
        }
        assert_eq!(received, count);
    }

    /// The frames after which nothing is sent must arrive without another call of `send`.
    #[test]
    fn the_last_bytes_follow_when_there_is_room() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let output = near.try_clone().unwrap();
        let mut link = Stream::<Vdestream>::new(near.into(), output.into()).unwrap();
        let mut batch = Batch::new();
        while batch.rx().push(&[7; 1022]) {}
        let mut taken = 0;
        while !link.holds_frames() {
            taken += link.send(&mut batch.tx(0)).unwrap();
        }
        far.set_nonblocking(true).unwrap();
        let (mut bytes, mut received) = (vec![0; 10_000], 0);
        while received < taken * 1024 {
            received += far.read(&mut bytes).unwrap_or(0);
            let mut fds = [PollFd::new(link.fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::ZERO).unwrap() > 0 {
                link.recv(&mut Batch::new().rx()).unwrap();
            }
        }
        assert_eq!(received, taken * 1024);
        assert!(!link.holds_frames() && link.fd().as_raw_fd() == link.input().as_raw_fd());
    }

    #[test]
    fn a_command_that_ends_closes_the_link_and_one_that_stays_is_ended() {
        let mut batch = Batch::new();
        let mut link = CommandStream::shell("exit 0").unwrap();
        let error = receive(&mut link, &mut batch).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Closed);

        let link = CommandStream::shell("trap '' TERM; while :; do sleep 1; done").unwrap();
        let group = Pid::from_raw(link.child.id().cast_signed());
        drop(link);
        // A member that was killed counts until its parent, here the system's first process, takes
        // note.
        let deadline = Instant::now() + Duration::from_secs(5);
        while killpg(group, None) != Err(Errno::ESRCH) {
            assert!(Instant::now() < deadline, "the command goes on");
        }
    }
}
