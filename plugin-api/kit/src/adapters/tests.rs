//! Nested links, through either door.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use super::{c1, v1};
use crate::{Batch, Link, Result, RxBatch, State, TxBatch, VNET_HEADER_LEN};

thread_local! {
    /// What the innermost link has been asked.
    static ASKED: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
}

fn asked(what: &'static str) {
    ASKED.with_borrow_mut(|asked| asked.push(what));
}

/// Receives three frames, the second of which it cuts short in a way that only an older kit
/// allows.
struct Innermost(File, bool);

impl Link for Innermost {
    fn fd(&self) -> BorrowedFd<'_> {
        asked("fd");
        self.0.as_fd()
    }
    fn send_fd(&self) -> BorrowedFd<'_> {
        asked("send_fd");
        self.0.as_fd()
    }
    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let second = batch.len() + 1;
        for n in 1..=3 {
            batch.push(&[n; 25]);
        }
        let cut = 20 + VNET_HEADER_LEN as u32;
        batch.raw.move_slot(second, second, cut);
        self.1 = false;
        Ok(())
    }
    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        Ok(batch.len())
    }
    fn state(&self) -> State {
        asked("state");
        State::carrier(self.1)
    }
    fn is_shared(&self) -> bool {
        asked("is_shared");
        true
    }
    fn wants_panel(&self) -> bool {
        asked("wants_panel");
        false
    }
}

/// Answers everything with another link's answer.
struct Through(Box<dyn Link>);

impl Link for Through {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
    fn send_fd(&self) -> BorrowedFd<'_> {
        self.0.send_fd()
    }
    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        self.0.recv(batch)
    }
    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        self.0.send(batch)
    }
    fn state(&self) -> State {
        self.0.state()
    }
    fn is_shared(&self) -> bool {
        self.0.is_shared()
    }
    fn wants_panel(&self) -> bool {
        self.0.wants_panel()
    }
}

/// Crosses the boundary once, through a door.
type Cross = fn(Box<dyn Link>) -> Box<dyn Link>;

const DOORS: [Cross; 2] = [v1::cross, c1::cross];

/// A link, and around it others that cross the boundary as often as `depth` nested VNLs do.
fn nested(depth: usize, door: Cross) -> Box<dyn Link> {
    let null = File::open("/dev/null").unwrap();
    let mut link = door(Box::new(Innermost(null, true)));
    ASKED.take();
    for _ in 0..depth {
        // From the inner plugin to the host, from the host to the outer plugin.
        let in_the_outer = door(link);
        link = door(Box::new(Through(in_the_outer)));
        ASKED.take();
    }
    link
}

#[test]
fn the_innermost_link_is_asked_once_a_question() {
    DOORS.into_iter().for_each(asks_once);
}

fn asks_once(door: Cross) {
    let mut link = nested(8, door);
    for _ in 0..3 {
        let _ = link.state();
        let all = ASKED.take();
        assert_eq!(all, ["state", "is_shared", "wants_panel"]);
        assert!(link.is_shared() && !link.wants_panel());
        assert_eq!(ASKED.take(), [&all[..], &all].concat());
        let _ = (link.fd(), link.send_fd());
        assert_eq!(ASKED.take(), ["fd", "send_fd", "fd", "send_fd"]);
    }
    assert!(link.state().carrier);
    link.recv(&mut Batch::new().rx()).unwrap();
    assert!(!link.state().carrier, "an answer to an earlier question");
    let asked = std::thread::spawn(move || (link.state(), ASKED.take())).join();
    assert_eq!(asked.unwrap().1.len(), 3, "a question on another thread");
}

#[test]
fn what_a_plugin_receives_is_frames_or_is_dropped_and_counted() {
    let depths = [0, 1, 3].into_iter();
    for (depth, door) in depths.flat_map(|depth| DOORS.map(|door| (depth, door))) {
        let mut batch = Batch::new();
        batch.rx().push(&[0; 14]);
        nested(depth, door).recv(&mut batch.rx()).unwrap();
        assert_eq!((batch.len(), batch.take_dropped()), (3, 1));
        let left: Vec<u8> = batch.tx(0).frames().map(|f| f.bytes()[0]).collect();
        assert_eq!(left, [0, 1, 3]);
    }
}
