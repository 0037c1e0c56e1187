//! The contract of a transport: an open link that receives and sends batches of frames.
//!
//! The host polls a link's descriptors, and calls the link when there is something to do. A link
//! never blocks and needs no thread. A link with several sockets or timers puts them into an epoll
//! instance, and returns that as its descriptor.

use std::os::fd::BorrowedFd;

use crate::{Result, RxBatch, Status, TxBatch};

/// Work on a frame that may be left to its receiver: bits of the kernel's `TUN_F_*`
/// (`linux/if_tun.h`). Unknown bits are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads(pub u32);

impl Offloads {
    /// None: frames are complete, and fit the interface's MTU.
    pub const NONE: Self = Self(0);
    /// Checksums may be left to be completed (`TUN_F_CSUM`).
    pub const CSUM: Self = Self(0x01);
    /// TCP super-frames over IPv4 (`TUN_F_TSO4`).
    pub const TSO4: Self = Self(0x02);
    /// TCP super-frames over IPv6 (`TUN_F_TSO6`).
    pub const TSO6: Self = Self(0x04);
    /// TCP super-frames with ECN (`TUN_F_TSO_ECN`).
    pub const TSO_ECN: Self = Self(0x08);
    /// UDP super-frames over IPv4 (`TUN_F_USO4`); kernels from 6.2 on.
    pub const USO4: Self = Self(0x20);
    /// UDP super-frames over IPv6 (`TUN_F_USO6`); kernels from 6.2 on.
    pub const USO6: Self = Self(0x40);
    /// All of the above.
    pub const ALL: Self = Self(0x6f);

    /// Whether every offload in `other` is in this set too.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The offloads that are in both sets.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The state of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Whether the far end is there. If not, the interface shows NO-CARRIER.
    pub carrier: bool,
    /// The offloads that frames given to [`Link::send`] may use.
    pub offloads: Offloads,
    /// Whether the kernel carries the frames, after [`crate::Host::plug`] or
    /// [`crate::Host::attach`]. Then none go through the link.
    pub plugged: bool,
}

impl State {
    /// Carrier, no offloads: the constant state of most links.
    pub const UP: Self = Self {
        carrier: true,
        offloads: Offloads::NONE,
        plugged: false,
    };
    /// No carrier.
    pub const DOWN: Self = Self {
        carrier: false,
        ..Self::UP
    };
    /// Carrier; the kernel carries the frames.
    pub const PLUGGED: Self = Self {
        plugged: true,
        ..Self::UP
    };

    /// The same state with these offloads.
    #[must_use]
    pub const fn with_offloads(self, offloads: Offloads) -> Self {
        Self { offloads, ..self }
    }

    /// [`State::UP`] or [`State::DOWN`].
    pub fn carrier(up: bool) -> Self {
        if up { Self::UP } else { Self::DOWN }
    }
}

/// An open link. Dropping it closes it and removes what it made in the file system.
pub trait Link: Send {
    /// The descriptor that is readable while [`Link::recv`] has something to do: a frame to
    /// receive, or work of the link's own. The host asks before every wait, so it may change.
    fn fd(&self) -> BorrowedFd<'_>;

    /// The descriptor that becomes writable when [`Link::send`], which has not taken everything,
    /// can take more.
    fn send_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }

    /// Receives the frames that are waiting, as many as fit into the batch. Never blocks. A link
    /// may do work of its own in this call, and receive no frame.
    ///
    /// # Errors
    /// The link is broken. The host closes it, and may open the VNL again.
    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()>;

    /// Sends frames in order from the first, and returns how many it took. Never blocks.
    ///
    /// If a queue is full, the link leaves the frame, and the host offers it again when
    /// [`Link::send_fd`] is writable. A frame that can never be sent is taken, dropped and counted
    /// ([`TxBatch::count_dropped`]).
    ///
    /// # Errors
    /// As for [`Link::recv`].
    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize>;

    /// The state of the host's other side, at the start and after each change: the offloads that
    /// received frames may use, and the carrier, for a link that can pass it on.
    fn other_side(&mut self, state: State) {
        let _ = state;
    }

    /// The link's state. The host asks after every call.
    fn state(&self) -> State {
        State::UP
    }

    /// A report for the user, as `vdectl status` shows it. The host asks when a user does, and
    /// after a change of state. It need not be cheap, but must not block.
    fn status(&self) -> Status {
        Status::default()
    }

    /// Whether the link serves others beside this host, as a switch does. The host never makes such
    /// a link wait: it drops what its other side cannot take at once.
    fn is_shared(&self) -> bool {
        false
    }

    /// Whether the link may plug the interface ([`crate::Host::plug`], [`crate::Host::attach`]). If
    /// not, the host makes an interface that suits user space best.
    fn wants_panel(&self) -> bool {
        false
    }
}
