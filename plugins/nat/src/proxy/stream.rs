//! One direction of a connection: bytes from one socket to another, with back-pressure.
//!
//! Bulk goes through a pipe without being copied. What is little is read and written: that takes no
//! pipe, and a read that is short tells that nothing is left, which saves one.
//!
//! A stream reads only when everything before has been written, so what a connection holds here is
//! one pipe at most. When the end has come and all is written, the other socket's direction is shut
//! down, and the other direction goes on (half-close, RFC 9293, section 3.6).

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::pipes::{Pipe, Pipes};

/// How much one stream moves before others have their turn, in bytes.
const TURN: usize = 1 << 20;

/// A stream from which less than this is read at once is no bulk, in bytes.
const BULK: usize = 16_384;

/// A socket of a connection, and what is known of it.
pub(crate) struct End<S> {
    pub socket: S,
    pub readable: bool,
    pub writable: bool,
    /// Whether the last that is to be read has come, so that a read which is short does not tell
    /// that nothing is left.
    pub is_ending: bool,
    /// Whether the kernel is not asked to tell of something to read.
    pub is_muted: bool,
}

impl<S> End<S> {
    /// A socket of which nothing is known yet.
    pub(crate) fn new(socket: S) -> Self {
        Self {
            socket,
            readable: true,
            writable: true,
            is_ending: false,
            is_muted: false,
        }
    }
}

/// What has been read and not yet written.
enum Buffer {
    Empty,
    Pipe(Pipe),
    /// Where there is no pipe: the bytes, and how many of them are written.
    Bytes(Vec<u8>, usize),
}

/// How far a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The end has been read.
    Ending,
    /// The end has been passed on.
    Ended,
}

/// One direction of a connection.
pub(crate) struct Stream {
    buffer: Buffer,
    phase: Phase,
    is_bulk: bool,
    /// How many bytes have been moved.
    pub moved: u64,
}

/// What a stream can do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing until a socket is ready.
    Wait,
    /// More, when others have had their turn.
    More,
    /// Nothing ever.
    Ended,
}

impl Stream {
    pub(crate) fn new() -> Self {
        Self {
            buffer: Buffer::Empty,
            phase: Phase::Open,
            is_bulk: false,
            moved: 0,
        }
    }

    /// Moves what there is.
    ///
    /// # Errors
    /// The connection is broken.
    pub(crate) fn pump<A: AsFd, B: AsFd>(
        &mut self,
        from: &mut End<A>,
        to: &mut End<B>,
        pipes: &mut Pipes,
        spare: &mut [u8],
    ) -> nix::Result<Next> {
        let mut turn = 0;
        loop {
            if self.write(to, pipes)? == Written::Blocked {
                return Ok(Next::Wait);
            }
            match self.phase {
                Phase::Open => {}
                Phase::Ending => {
                    self.phase = Phase::Ended;
                    match shutdown(to.socket.as_fd().as_raw_fd(), Shutdown::Write) {
                        // The far side has closed the connection already.
                        Ok(()) | Err(Errno::ENOTCONN) => {}
                        Err(error) => return Err(error),
                    }
                    return Ok(Next::Ended);
                }
                Phase::Ended => return Ok(Next::Ended),
            }
            if !from.readable {
                return Ok(Next::Wait);
            }
            if turn >= TURN {
                return Ok(Next::More);
            }
            let read = self.read(from, to, pipes, spare);
            match read {
                Ok(0) => self.phase = Phase::Ending,
                Ok(count) => {
                    self.is_bulk = count >= BULK;
                    turn += count;
                    self.moved += count as u64;
                }
                Err(Errno::EAGAIN) => from.readable = false,
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether it waits for room to write, so that nothing is read.
    pub(crate) fn is_blocked(&self) -> bool {
        !matches!(self.buffer, Buffer::Empty)
    }

    fn read<A: AsFd, B: AsFd>(
        &mut self,
        from: &mut End<A>,
        to: &mut End<B>,
        pipes: &mut Pipes,
        spare: &mut [u8],
    ) -> nix::Result<usize> {
        if self.is_bulk
            && let Some(mut pipe) = pipes.take()
        {
            return match pipe.fill(&from.socket) {
                Ok(count) if count > 0 => {
                    self.buffer = Buffer::Pipe(pipe);
                    Ok(count)
                }
                nothing => {
                    pipes.give(pipe);
                    nothing
                }
            };
        }
        let fd = from.socket.as_fd().as_raw_fd();
        let count = loop {
            match recv(fd, spare, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        if count > 0 {
            from.readable = count == spare.len() || from.is_ending;
            let sent = match write(to, &spare[..count]) {
                Err(Errno::EAGAIN) => 0,
                sent => sent?,
            };
            if sent < count {
                self.buffer = Buffer::Bytes(spare[sent..count].to_vec(), 0);
            }
        }
        Ok(count)
    }

    fn write<B: AsFd>(&mut self, to: &mut End<B>, pipes: &mut Pipes) -> nix::Result<Written> {
        loop {
            if matches!(self.buffer, Buffer::Empty) {
                return Ok(Written::All);
            }
            if !to.writable {
                return Ok(Written::Blocked);
            }
            let written = match &mut self.buffer {
                Buffer::Empty => return Ok(Written::All),
                Buffer::Pipe(pipe) => pipe.empty(&to.socket),
                Buffer::Bytes(bytes, done) => {
                    write(to, &bytes[*done..]).inspect(|count| *done += count)
                }
            };
            match written {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => to.writable = false,
                Err(error) => return Err(error),
            }
            self.buffer = match std::mem::replace(&mut self.buffer, Buffer::Empty) {
                Buffer::Pipe(pipe) if pipe.filled == 0 => {
                    pipes.give(pipe);
                    Buffer::Empty
                }
                Buffer::Bytes(bytes, done) if done == bytes.len() => Buffer::Empty,
                filled => filled,
            };
        }
    }

    /// Gives back what the stream holds.
    pub(crate) fn close(self, pipes: &mut Pipes) {
        if let Buffer::Pipe(pipe) = self.buffer {
            pipes.discard(pipe);
        }
    }
}

fn write<B: AsFd>(to: &End<B>, bytes: &[u8]) -> nix::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(to.socket.as_fd().as_raw_fd(), bytes, flags)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    All,
    Blocked,
}
