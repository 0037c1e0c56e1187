//! What a transport is: an open link that receives and sends batches of frames.
//!
//! The host polls a link's descriptors and calls it when there is something to do; a link never blocks
//! and needs no thread of its own. A link that has several sockets or timers puts them into an epoll
//! instance and gives that as its descriptor.

use std::os::fd::BorrowedFd;

use crate::{Result, RxBatch, Status, TxBatch};

/// Offloads that the far end of a link understands: bits of the kernel's `TUN_F_*` (`linux/if_tun.h`).
/// Bits that the receiver does not know are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads(pub u32);

impl Offloads {
    /// None: frames are complete and no longer than the interface's MTU asks.
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

    /// What both sets have.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The state of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Whether the far end is there: an interface on a link without carrier says NO-CARRIER.
    pub carrier: bool,
    /// What may be left undone in the frames given to [`Link::send`].
    pub offloads: Offloads,
    /// Whether the kernel carries the frames, since [`crate::Host::plug`]: none go through the link.
    pub plugged: bool,
}

impl State {
    /// Carrier, no offloads: what most links always are.
    pub const UP: Self = Self {
        carrier: true,
        offloads: Offloads::NONE,
        plugged: false,
    };
    /// No carrier.
    pub const DOWN: Self = Self {
        carrier: false,
        offloads: Offloads::NONE,
        plugged: false,
    };
    /// Carrier, through the kernel.
    pub const PLUGGED: Self = Self {
        carrier: true,
        offloads: Offloads::NONE,
        plugged: true,
    };

    /// [`State::UP`] or [`State::DOWN`].
    pub fn carrier(up: bool) -> Self {
        if up { Self::UP } else { Self::DOWN }
    }
}

/// An open link. Dropping it closes it and removes what it made in the file system.
pub trait Link: Send {
    /// The descriptor that is readable when [`Link::recv`] has something to do: a frame to receive, or
    /// work of the link's own. Asked for before every wait, so it may change.
    fn fd(&self) -> BorrowedFd<'_>;

    /// The descriptor that is writable when [`Link::send`] can go on after it did not take everything.
    fn send_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }

    /// Receives the frames that are waiting, as many as fit; none is fine. Never blocks. A link may use
    /// the call for work of its own.
    ///
    /// # Errors
    /// The link is broken and of no more use; the host closes it, and may open it again.
    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()>;

    /// Takes frames to send, and returns how many, in order from the first. A link that cannot take a
    /// frame now, because a queue is full, leaves it; the host offers it again when [`Link::send_fd`]
    /// is writable. A frame that can never be sent is taken, dropped and counted
    /// ([`TxBatch::count_dropped`]). Never blocks.
    ///
    /// # Errors
    /// As for [`Link::recv`].
    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize>;

    /// Tells the link the state of the host's other side, at the start and whenever it changes: which
    /// offloads it takes, so how much [`Link::recv`] may leave undone in what it receives, and whether
    /// it has carrier, for links that can show that.
    fn other_side(&mut self, state: State) {
        let _ = state;
    }

    /// The link's state, asked for after every call.
    fn state(&self) -> State {
        State::UP
    }

    /// What a person may want to know of the link, for `vdectl status`. Asked for now and then, when somebody
    /// looks or the state has changed; it need not be cheap, but must not block.
    fn status(&self) -> Status {
        Status::default()
    }

    /// Whether the link serves others beside this host, as a switch does. Such a link is never made to
    /// wait: what the other side of the host cannot take at once is dropped.
    fn is_shared(&self) -> bool {
        false
    }

    /// Whether the link may ask for the interface to be plugged into its peer's ([`crate::Host::plug`]). An
    /// interface of another link is made in the way that suits user space best.
    fn wants_panel(&self) -> bool {
        false
    }
}
