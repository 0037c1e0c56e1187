//! A link at the other side of the boundary, for its caller.
//!
//! One call of `state` answers three of [`Link`]'s methods, and one of `fds` answers two. A link
//! that nests another passes each on to the nested link, so the number of calls would grow as a
//! power of the depth. Therefore a [`Remote`] keeps an answer until the outermost caller has its
//! own: that time is a [`question`]. The number of calls then grows with the depth, also for a
//! plugin that was built with an older kit.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::OnceLock;

use vdens_plugin_c::{Fds, State as RawState, link_flag};

use crate::batch::Storage;
use crate::{
    AlwaysReady, Error, ErrorKind, Link, Offloads, Result, RxBatch, State, Status, TxBatch,
};

/// Questions that links are being asked on this thread.
pub(super) mod question {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// The next question's number. Numbers are unique in the process, because a link may move to
    /// another thread.
    static NEXT: AtomicU64 = AtomicU64::new(1);

    thread_local! {
        /// The number of the question under way; 0 if there is none.
        static CURRENT: Cell<u64> = const { Cell::new(0) };
    }

    /// Calls `answer` with the number of the question under way, or of a new one if there is none.
    /// `answer` must not panic.
    pub(in super::super) fn ask<T>(answer: impl FnOnce(u64) -> T) -> T {
        CURRENT.with(|current| match current.get() {
            0 => {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                current.set(number);
                let answer = answer(number);
                current.set(0);
                answer
            }
            number => answer(number),
        })
    }
}

impl From<RawState> for State {
    fn from(raw: RawState) -> Self {
        Self {
            carrier: raw.flags & link_flag::CARRIER != 0,
            offloads: Offloads(raw.offloads).intersection(Offloads::ALL),
            plugged: raw.flags & link_flag::PLUGGED != 0,
        }
    }
}

/// The functions of a link behind a door. Dropping it closes the link.
pub(super) trait RawLink: Send {
    fn fds(&self) -> Fds;
    fn recv(&mut self, batch: &mut Storage) -> Result<()>;
    /// Returns how many frames it says that it took.
    fn send(&mut self, batch: &mut Storage, start: u32) -> Result<usize>;
    fn other_side(&mut self, state: RawState);
    fn state(&self) -> RawState;
    /// A report in JSON.
    fn status(&self) -> String;
}

/// An answer, and the number of the question that it is for.
struct Answer<T>(Cell<Option<(u64, T)>>);

impl<T: Copy> Answer<T> {
    const fn none() -> Self {
        Self(Cell::new(None))
    }

    /// The answer to the question under way. `ask` is called for it once.
    fn get(&self, ask: impl FnOnce() -> T) -> T {
        question::ask(|number| match self.0.get() {
            Some((asked, answer)) if asked == number => answer,
            _ => {
                let answer = ask();
                self.0.set(Some((number, answer)));
                answer
            }
        })
    }
}

/// A link at the other side of the boundary.
pub(super) struct Remote<L> {
    raw: L,
    fds: Answer<Fds>,
    state: Answer<RawState>,
    /// A descriptor that the link named and that can be none.
    no_descriptor: Cell<Option<RawFd>>,
}

impl<L: RawLink> Remote<L> {
    pub(super) fn new(raw: L) -> Self {
        Self {
            raw,
            fds: Answer::none(),
            state: Answer::none(),
            no_descriptor: Cell::new(None),
        }
    }

    fn fds(&self) -> Fds {
        self.fds.get(|| self.raw.fds())
    }

    fn raw_state(&self) -> RawState {
        self.state.get(|| self.raw.state())
    }

    /// A descriptor named by a plugin, for polling only. In the place of a number that can be none
    /// it is one that is ready, so that the host calls the link next and gets the error.
    fn borrow(&self, fd: RawFd) -> BorrowedFd<'_> {
        static READY: OnceLock<Option<AlwaysReady>> = OnceLock::new();
        if fd >= 0 {
            // SAFETY: the number is not -1. The link keeps the descriptor open; if it does not,
            // polling it fails and does no harm.
            return unsafe { BorrowedFd::borrow_raw(fd) };
        }
        self.no_descriptor.set(Some(fd));
        match READY.get_or_init(|| AlwaysReady::new().ok()) {
            Some(ready) => ready.as_fd(),
            // SAFETY: the number is not -1.
            None => unsafe { BorrowedFd::borrow_raw(0) },
        }
    }

    /// # Errors
    /// The link has named a descriptor that can be none.
    fn check_descriptors(&self) -> Result<()> {
        match self.no_descriptor.get() {
            None => Ok(()),
            Some(fd) => Err(wrong(format!("fds() returned the descriptor {fd}"))),
        }
    }
}

/// The error of a plugin that does not keep to the contract.
pub(super) fn wrong(what: String) -> Error {
    Error::new(ErrorKind::Panic, format!("the plugin is wrong: {what}"))
        .hint("report this to the plugin's author")
}

/// The error of a link that moved the arena or the slots of a batch.
pub(super) fn changed_batch() -> Error {
    wrong("it changed where the batch's arena or slots are".to_owned())
}

impl<L: RawLink> Link for Remote<L> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.borrow(self.fds().recv)
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.borrow(self.fds().send)
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        self.check_descriptors()?;
        let first = batch.len();
        let received = self.raw.recv(batch.raw);
        batch.drop_undecodable(first);
        received
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        self.check_descriptors()?;
        let (len, start) = (batch.len(), batch.start as u32);
        let sent = self.raw.send(batch.raw, start)?;
        Ok(sent.min(len))
    }

    fn other_side(&mut self, state: State) {
        self.raw.other_side(state.into());
    }

    fn state(&self) -> State {
        self.raw_state().into()
    }

    fn status(&self) -> Status {
        Status::from_json(&self.raw.status())
    }

    fn is_shared(&self) -> bool {
        self.raw_state().flags & link_flag::SHARED != 0
    }

    fn wants_panel(&self) -> bool {
        self.raw_state().flags & link_flag::WANTS_PANEL != 0
    }
}
